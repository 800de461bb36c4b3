"""A run on images goes on with the next batch: augmentation, mixup and order are the same."""

import json
import signal
import time

import pytest

from tests.support import small_images
from tests.support.commands import QUICK_COMPILE

EXPERIMENT = """
from paxml import experiment_registry
from laser_pax.configs import ImageNetLaserViTTiny

@experiment_registry.register
class Small(ImageNetLaserViTTiny):
  IMAGE_SIZE = 16
  NUM_CLASSES = 3
  NUM_LAYERS = 1
  MODEL_DIMS = 32
  HIDDEN_DIMS = 32
  GLOBAL_BATCH_SIZE = 8
  DROPOUT_PROB = 0.1
  NUM_TRAIN_STEPS = 9
  WARMUP_STEPS = 1
  TRAIN_EVAL_IMAGES = 5
  SUMMARY_INTERVAL_STEPS = 1
  CHECKPOINT_EVERY_N_STEPS = 3
  EVAL_INTERVAL_STEPS = 9
"""


def _records(folder):
  lines = (folder / 'progress.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def _losses(folder) -> dict[int, float]:
  return {r['step']: r['loss'] for r in _records(folder) if r['kind'] == 'train'}


@pytest.mark.slow
def test_killed_and_run_again_gives_the_losses_of_one_run(commands, tmp_path):
  (tmp_path / 'small_vision.py').write_text(EXPERIMENT)
  data_dir = small_images.prepare(tmp_path, 11, ('train', 'val', 'test'))
  env = {'PYTHONPATH': str(tmp_path), 'XLA_FLAGS': QUICK_COMPILE}
  env['LASER_PAX_DATA_DIR'] = str(data_dir)

  def start(folder):
    flags = ['train', '--exp=small_vision.Small', f'--job_log_dir={folder}']
    return commands.start('laser_pax', flags, cwd=tmp_path, env=env)

  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  command = start(whole)
  assert command.wait() == 0, command.stdout + command.stderr
  command = start(killed)
  while not list((killed / 'checkpoints').glob('checkpoint_00000003')):
    assert command.poll() is None, command.stdout + command.stderr
    time.sleep(0.01)
  command.send_signal(signal.SIGKILL)
  command.wait()
  command = start(killed)
  assert command.wait() == 0, command.stdout + command.stderr
  assert 'resuming at step' in command.stdout
  expected, losses = _losses(whole), _losses(killed)
  # What a killed process had not written yet is missing before the step where the other began.
  assert len(expected) == 9 and {4, 5, 6, 7, 8, 9} <= set(losses)
  assert losses == {step: expected[step] for step in losses}
  evaluations = [
    {r['split']: r['accuracy'] for r in _records(folder) if r['kind'] == 'eval' and r['step'] == 9}
    for folder in (whole, killed)
  ]
  assert evaluations[0] == evaluations[1] and set(evaluations[0]) == {
    'train_eval',
    'test',
    'validation',
  }
