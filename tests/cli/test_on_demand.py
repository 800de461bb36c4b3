"""What SIGTERM does to a training of one process, and of several."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from laser_pax.cli.on_demand import OnDemand
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


# One of two processes: an evaluation of many batches, without a model.
ONE_OF_TWO = """
import sys, time
import jax
from laser_pax.cli.on_demand import OnDemand

jax.distributed.initialize(f'localhost:{sys.argv[1]}', 2, int(sys.argv[2]))
demand, batches = OnDemand(lambda line: print(line, flush=True)), 0
demand.agree()
demand.has_trained = sys.argv[3] == 'trained'

def evaluate():
  global batches
  for batches in range(10_000):
    demand.before_batch()
    time.sleep(0.01)
    if batches == 2:
      print('ready', flush=True)

print(demand.unless_asked(evaluate), batches, demand.is_asked())
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


@pytest.fixture(autouse=True)
def unchanged():
  from orbax.checkpoint import utils

  original = utils.reached_preemption
  yield
  utils.reached_preemption = original


def test_an_evaluation_is_given_up_at_its_next_batch_and_none_begins():
  told = []
  demand = OnDemand(told.append)
  demand.has_trained = True
  demand.listen()
  try:
    assert demand.unless_asked(lambda: 3) == 3 and not demand.is_asked()

    batches = []

    def evaluate():
      for batch in range(3):
        demand.before_batch()
        batches.append(batch)
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(demand.is_asked)

    assert demand.unless_asked(evaluate) is None and batches == [0]
    assert demand.is_asked() and demand.unless_asked(lambda: 3) is None
    wait_for(lambda: told == ['SIGTERM: it saves a checkpoint, and ends'])
  finally:
    demand.close()
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize('begun', ['trained', 'restored'])
def test_several_processes_end_at_the_same_batch(begun):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = str(free.getsockname()[1])
  command = [sys.executable, '-c', ONE_OF_TWO, port]
  processes = [
    subprocess.Popen([*command, number, begun], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for number in '01'
  ]
  try:
    assert [p.stdout.readline() for p in processes] == 2 * ['ready\n']
    processes[1].send_signal(signal.SIGTERM)
    told = [p.communicate(timeout=60)[0].splitlines() for p in processes]
  finally:
    for process in processes:
      process.kill()
  assert told[0] == told[1]
  if begun == 'restored':
    assert told[0] == ['SIGTERM before its first step: there is nothing new to save']
    assert [p.returncode for p in processes] == [75, 75]
    return
  assert told[0][0] == 'SIGTERM: it saves a checkpoint, and ends'
  evaluated, batches, is_asked = told[0][1].split()
  assert evaluated == 'None' and 2 < int(batches) < 9_999 and is_asked == 'True'


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

  demand, answers = OnDemand(), iter([False, True])
  demand.is_asked = lambda: next(answers)
  demand.answer_pax()
  assert [utils.reached_preemption(step) for step in (3, 3, 4, 4)] == [0, 0, 1, 1]


def test_several_processes_count_their_questions_alike(monkeypatch):
  """Steps and batches of evaluations are one series of numbers, up to the one agreed on."""
  from jax.experimental import multihost_utils
  from orbax.checkpoint import utils

  asked, told = [], []
  service = lambda number: asked.append(number) or number == 4  # noqa: E731
  monkeypatch.setattr(multihost_utils, 'reached_preemption_sync_point', service)
  demand = OnDemand(told.append)
  demand.agree()
  demand.answer_pax()
  demand.has_trained = True
  assert demand.ends_training()
  assert not utils.reached_preemption(10) and not utils.reached_preemption(10)
  evaluated = []

  def evaluate():
    for batch in range(9):
      demand.before_batch()
      evaluated.append(batch)

  assert demand.unless_asked(evaluate) is None and evaluated == [0]
  assert utils.reached_preemption(11) and asked == [1, 2, 3, 4]
  assert utils.reached_preemption(11)
  assert told == ['SIGTERM: it saves a checkpoint, and ends']


def test_a_thread_that_finishes_an_old_checkpoint_draws_no_question(monkeypatch):
  """orbax asks there once more, and in the first process alone."""
  from jax.experimental import multihost_utils
  from orbax.checkpoint import utils

  asked = []
  monkeypatch.setattr(multihost_utils, 'reached_preemption_sync_point', asked.append)
  demand = OnDemand()
  demand.agree()
  demand.answer_pax()
  for step in range(20):
    utils.reached_preemption(step)
  answers = []
  thread = threading.Thread(target=lambda: answers.append(utils.reached_preemption(3)))
  thread.start()
  thread.join()
  assert answers == [False] and len(asked) == 20
