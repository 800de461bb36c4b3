"""How long a user waits: for `show`, and for the first step of `train`.

`python benchmarks/start.py` runs each in turn, some minutes on two cores. `train` runs twice a
round: with no compiled program kept, and with those that the first of the two kept.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROUNDS = 3
_MODULE = [sys.executable, '-m', 'laser_pax']


def show() -> float:
  """Returns the seconds of `show`."""
  start = time.time()
  subprocess.run([*_MODULE, 'show', 'C4Laser2B'], check=True, capture_output=True)
  return time.time() - start


def first_step(compiled: pathlib.Path) -> float:
  """Returns the seconds until `train` has computed a step.

  Args:
    compiled: The folder of compiled programs.
  """
  env = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(compiled)}
  with tempfile.TemporaryDirectory() as folder:
    start = time.time()
    command = [*_MODULE, 'train', '--exp=C4LaserTiny', f'--job_log_dir={folder}/job']
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    record = pathlib.Path(folder, 'job', 'progress.jsonl')
    while not (record.exists() and '\n' in record.read_text()):
      if process.poll() is not None:
        raise SystemExit(f'train ended with exit code {process.returncode}')
      time.sleep(0.02)
    seconds = time.time() - start
    process.kill()
    process.wait()
  return seconds


def main() -> None:
  """Prints the median of each, and all rounds, as JSON."""
  seconds = {'show': [], 'train, nothing kept': [], 'train, programs kept': []}
  for _ in range(ROUNDS):
    seconds['show'].append(show())
    with tempfile.TemporaryDirectory() as compiled:
      seconds['train, nothing kept'].append(first_step(pathlib.Path(compiled)))
      seconds['train, programs kept'].append(first_step(pathlib.Path(compiled)))
  for name, rounds in seconds.items():
    print(f'{name}: {statistics.median(rounds):.1f} s')
  print(json.dumps(seconds))


if __name__ == '__main__':
  main()
