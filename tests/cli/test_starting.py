"""Runs that start from another run's checkpoint, by the command line."""

import json
import os
import shutil

import pytest

from tests.support.commands import QUICK_COMPILE, ROOT

NAME = 'tests.support.toy_family.Bags'


@pytest.fixture(scope='module')
def train(commands):
  """Returns a function that trains the toy family for some steps, and returns what it printed."""

  def run(folder, steps, *flags):
    env = {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': QUICK_COMPILE}
    words = ['train', f'--fdl_config={NAME}', f'--job_log_dir={folder}', *flags]
    words += [f'--fdl.NUM_TRAIN_STEPS={steps}']
    result = commands.run('laser_pax', words, env=env, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout

  return run


@pytest.fixture(scope='module')
def other(train, tmp_path_factory):
  """The job of a run of 8 steps, with checkpoints of steps 4 and 8."""
  folder = tmp_path_factory.mktemp('other')
  train(folder, 8)
  return folder


def losses(folder, kind):
  rows = [json.loads(line) for line in (folder / 'progress.jsonl').read_text().splitlines()]
  return {row['step']: row['loss'] for row in rows if row['kind'] == kind}


@pytest.mark.slow
def test_weights_are_kept_where_the_rate_is_near_zero(train, other, tmp_path):
  rest = '--fdl.LEARNING_RATE=1e-30', f'--init_from={other}'
  printed = train(tmp_path, 6, *rest)
  assert f'starts from the weights of {other}, step 8: 3 arrays, 356 numbers; a run' in printed
  assert 'left there: optimiser, step and place in the data' in printed
  assert printed.index('left there') < printed.index('starting of 6')
  assert losses(tmp_path, 'eval')[6] == pytest.approx(losses(other, 'eval')[8], abs=1e-6)
  (log,) = (tmp_path / 'logs').iterdir()
  assert 'starts from the weights of' in log.read_text()
  assert str(other) in (tmp_path / 'train_state_provenance.txt').read_text()


@pytest.mark.slow
def test_all_goes_on_as_the_other_run_did(train, other, tmp_path):
  moved = tmp_path / 'moved'
  shutil.copytree(other, moved)
  rest = f'--init_from={moved}/checkpoints/checkpoint_00000004', '--fdl.INIT_FROM_TAKES=all'
  printed = train(tmp_path / 'job', 8, *rest)
  assert f'starts from all of {moved}, step 4: weights' in printed
  expected = {step: loss for step, loss in losses(other, 'train').items() if step > 4}
  assert losses(tmp_path / 'job', 'train') == expected
  # A run that has begun does not look for the other run. Its last checkpoint is lost.
  shutil.rmtree(moved)
  last = tmp_path / 'job' / 'checkpoints' / 'checkpoint_00000008'
  os.rename(last, tmp_path / 'lost')
  printed = train(tmp_path / 'job', 8, *rest)
  assert 'starts from' not in printed and 'resuming at step 4' in printed
  assert losses(tmp_path / 'job', 'train') == expected
