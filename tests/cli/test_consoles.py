"""The log takes what it can, the console stays clean, and Ctrl-C is answered."""

import os
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, resource, sys, pathlib
from laser_pax.cli import consoles
log = pathlib.Path(sys.argv[1])
with consoles.output_to(log) as console:
  console.write('begins\\n')
  print('to the log', flush=True)
  os.write(2, b'from C++\\n')
  if sys.argv[2] == 'full':
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
    for _ in range(1000):
      print('more than the log can take')
      print('the same', file=sys.stderr)
  console.write('ends\\n')
print('after')
"""


@pytest.mark.parametrize('how', ['roomy', 'full'])
def test_a_full_log_loses_its_lines_and_nothing_else(tmp_path, how):
  log = tmp_path / 'log'
  completed = subprocess.run(
    [sys.executable, '-c', PROGRAM, str(log), how], capture_output=True, text=True
  )
  assert (completed.returncode, completed.stderr) == (0, '')
  assert completed.stdout == 'begins\nends\nafter\n'
  assert 'to the log' in log.read_text() and 'from C++' in log.read_text()
  assert log.stat().st_size <= 50


INTERRUPTED = """
import sys, time
from laser_pax.cli import consoles
try:
  with consoles.telling_of_interrupts(sys.stdout):
    print('ready', flush=True)
    time.sleep(60)
finally:
  sys.stdout.flush()
  print('ending', flush=True)
  time.sleep(float(sys.argv[1]))
"""


@pytest.mark.parametrize('presses', [1, 2])
def test_ctrl_c_is_told_at_once_and_a_second_ends_at_once(presses):
  process = subprocess.Popen(
    [sys.executable, '-c', INTERRUPTED, '60' if presses == 2 else '0'],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'ready\n'
  os.kill(process.pid, signal.SIGINT)
  assert process.stdout.readline() == '\n'
  assert process.stdout.readline().startswith('interrupted')
  assert process.stdout.readline() == 'ending\n'
  if presses == 2:
    os.kill(process.pid, signal.SIGINT)
  _, stderr = process.communicate(timeout=30)
  assert process.returncode == -signal.SIGINT
  assert ('KeyboardInterrupt' in stderr) == (presses == 1)
