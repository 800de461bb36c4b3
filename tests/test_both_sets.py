"""One run that two sets of packages train in turn: bit-equal states, and no batch lost.

The pinned set starts, is killed, and today's jax goes on; it is killed too, and the pinned set ends
the run. `scripts/test_current.sh` runs this, and names the Python of each set.
"""

import json
import os
import pathlib
import signal
import subprocess
import time

import pytest

from tests.support.commands import QUICK_COMPILE

_ROOT = pathlib.Path(__file__).parents[1]
_PYTHONS = [os.environ.get(f'LASER_PAX_{name}_PYTHON') for name in ('PINNED', 'CURRENT')]
_EXPERIMENT = '''
import hashlib, json, os
import jax
import numpy as np
from paxml import experiment_registry
from laser_pax.configs import C4LaserTiny
from laser_pax.experiment import training


def digest(tree):
  sha = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = np.asarray(leaf)
    sha.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'.encode())
    sha.update(array.tobytes())
  return sha.hexdigest()


def train_step(self, step, state, prng_key, inputs, static_args):
  """Writes what the step starts from: the whole state, and the batch."""
  record = {'jax': jax.__version__, 'step': int(step)}
  record |= {'state': digest(state), 'batch': digest(inputs)}
  with open(os.environ['RECORD'], 'a') as f:
    f.write(json.dumps(record) + '\\n')
  return super(training.TrainProgram, self).train_step(step, state, prng_key, inputs, static_args)


training.TrainProgram.train_step = train_step


@experiment_registry.register
class Small(C4LaserTiny):
  NUM_LAYERS = 1
  MODEL_DIMS = 64
  HIDDEN_DIMS = 64
  SEQ_LEN = 64
  NUM_TRAIN_STEPS = 40
  WARMUP_STEPS = 2
  SUMMARY_INTERVAL_STEPS = 1
  CHECKPOINT_EVERY_N_STEPS = 4
  EVAL_INTERVAL_STEPS = 40
'''


class _Run:
  """One job's folder, which processes train in turn."""

  def __init__(self, folder):
    self.folder, self._job, self._records = folder, folder / 'job', folder / 'records'
    self._records.mkdir()
    (folder / 'small_experiment.py').write_text(_EXPERIMENT)

  def train(self, python, module, *words, name, killed_after=None):
    """Trains, to the end or until the step after a checkpoint has begun; returns the records."""
    record = self._records / name
    flags = ['--exp=small_experiment.Small', f'--job_log_dir={self._job}']
    env = os.environ | {'PYTHONPATH': f'{self.folder}:{_ROOT}', 'XLA_FLAGS': QUICK_COMPILE}
    log = self.folder / f'{name}.log'
    with log.open('w') as output:
      process = subprocess.Popen(
        [python, '-W', 'ignore', '-m', module, *words, *flags],
        env=env | {'RECORD': str(record), 'JAX_PLATFORMS': 'cpu'},
        stdout=output,
        stderr=subprocess.STDOUT,
      )
      if killed_after is None:
        assert process.wait(600) == 0, log.read_text()[-4000:]
      else:
        self._kill(process, record, killed_after, log)
    return _read(record)

  def _kill(self, process, record, step, log):
    checkpoint = self._job / 'checkpoints' / f'checkpoint_{step:08d}'
    deadline = time.time() + 600
    while not (checkpoint.exists() and step in _read(record)):
      assert process.poll() is None and time.time() < deadline, log.read_text()[-4000:]
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, 'it ended before it was killed'

  def losses(self):
    """Returns the losses of each step, one for each process that trained it."""
    losses = {}
    for line in (self._job / 'progress.jsonl').read_text().splitlines():
      record = json.loads(line)
      if record['kind'] == 'train':
        losses.setdefault(record['step'], []).append(record['loss'])
    return losses


def _read(record):
  lines = record.read_text().splitlines() if record.exists() else []
  return {r['step']: r for r in map(json.loads, lines)}


def _jax(records):
  (version,) = {r['jax'] for r in records.values()}
  return version


@pytest.mark.slow
@pytest.mark.skipif(None in _PYTHONS, reason='scripts/test_current.sh names the two sets')
def test_a_run_goes_from_one_set_to_the_other_and_back(tmp_path):
  pinned, current = _PYTHONS
  run = _Run(tmp_path)
  first = run.train(pinned, 'laser_pax', 'train', name='first', killed_after=4)
  second = run.train(current, 'paxml.main', name='second', killed_after=20)
  third = run.train(pinned, 'laser_pax', 'train', name='third')

  assert _jax(first) == _jax(third) != _jax(second)
  for before, after in (first, second), (second, third):
    step = min(after)  # That of the newest checkpoint when the earlier process was killed.
    assert step > min(before) and step in before
    assert after[step]['state'] == before[step]['state'], 'the restored state differs'
    for common in before.keys() & after.keys():
      assert after[common]['batch'] == before[common]['batch'], f'batch {common} differs'
  steps = {step: r['batch'] for records in (first, second, third) for step, r in records.items()}
  assert sorted(steps) == list(range(40)) and len(set(steps.values())) == 40
  for step, values in run.losses().items():
    assert values == pytest.approx([values[0]] * len(values), rel=1e-5), f'step {step}'
