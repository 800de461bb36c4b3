"""What SIGTERM does to a training that is a process alone."""

import os
import signal
import subprocess
import sys
import time

from laser_pax.cli.on_demand import OnDemand, save_on_demand_when
from tests.support.commands import ROOT

# A function of C computes for minutes, and no handler of Python runs in it.
BEFORE_THE_FIRST_STEP = """
import hashlib
from laser_pax.cli.on_demand import OnDemand

demand = OnDemand(lambda line: print(line, flush=True))
demand.listen()
print('ready', flush=True)
hashlib.pbkdf2_hmac('sha256', b'', b'', 2**30)
"""


def wait_for(condition):
  deadline = time.time() + 20
  while not condition() and time.time() < deadline:
    time.sleep(0.005)
  assert condition()


def test_before_the_first_step_it_ends_at_once():
  process = subprocess.Popen(
    [sys.executable, '-c', BEFORE_THE_FIRST_STEP], cwd=ROOT, stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == 'ready\n'
  process.send_signal(signal.SIGTERM)
  told, _ = process.communicate(timeout=20)
  assert process.returncode == 75
  assert told == 'SIGTERM before its first step: there is nothing new to save\n'


def test_an_evaluation_is_given_up_and_none_begins():
  told = []
  demand = OnDemand(told.append)
  demand.has_trained = True
  demand.listen()
  try:
    assert demand.unless_asked(lambda: 3) == 3 and not demand.is_asked()

    def evaluate():
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(20)

    start = time.time()
    assert demand.unless_asked(evaluate) is None and time.time() - start < 10
    assert demand.is_asked() and demand.unless_asked(lambda: 3) is None
    wait_for(lambda: told == ['SIGTERM: it saves a checkpoint, and ends'])
  finally:
    demand.close()
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_in_a_step_nothing_is_interrupted():
  demand = OnDemand(lambda line: None)
  demand.has_trained = True
  demand.listen()
  try:
    os.kill(os.getpid(), signal.SIGTERM)
    wait_for(demand.is_asked)
  finally:
    demand.close()


def test_pax_gets_one_answer_for_a_step():
  """Else it may not save at a step, and end after it."""
  from orbax.checkpoint import utils

  original, answers = utils.reached_preemption, iter([False, True])
  try:
    save_on_demand_when(lambda: next(answers))
    assert [utils.reached_preemption(step) for step in (3, 3, 4, 3, 4)] == [0, 0, 1, 0, 1]
  finally:
    utils.reached_preemption = original
