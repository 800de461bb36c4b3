"""A run on images or speech goes on with the next batch: order and augmentation are the same."""

import json
import shutil
import socket

import pytest

from tests.support import small_images, small_speech
from tests.support.commands import QUICK_COMPILE

IMAGES = """
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
  TRAIN_EVAL_IMAGES = 5
"""
SPEECH = """
from paxml import experiment_registry
from laser_pax.configs import LibriSpeechLaserConformerTiny

@experiment_registry.register
class Small(LibriSpeechLaserConformerTiny):
  VALIDATION_SPLITS = ('dev_clean',)
  MAX_SECONDS = 3.2
  MAX_LABELS = 64
  VOCAB_SIZE = 40
  NUM_LAYERS = 1
  MODEL_DIMS = 16
  HIDDEN_DIMS = 32
  NUM_HEADS = 2
  DROPOUT_PROB = 0.1
  INPUT_DROPOUT_PROB = 0.1
  GLOBAL_BATCH_SIZE = 2
"""
STEPS = """
  NUM_TRAIN_STEPS = 9
  WARMUP_STEPS = 1
  SUMMARY_INTERVAL_STEPS = 1
  CHECKPOINT_EVERY_N_STEPS = 3
  EVAL_INTERVAL_STEPS = 9
"""


def _images(folder):
  data_dir = small_images.prepare(folder, 11, ('train', 'val', 'test'))
  return {'LASER_PAX_DATA_DIR': str(data_dir)}


def _speech(folder):
  data_dir, vocab = small_speech.prepared()
  return {'LASER_PAX_DATA_DIR': data_dir, 'LASER_PAX_VOCAB': vocab}


def _records(folder):
  lines = (folder / 'progress.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def _losses(folder) -> dict[int, float]:
  return {r['step']: r['loss'] for r in _records(folder) if r['kind'] == 'train'}


def _evaluations(folder) -> dict[str, dict]:
  return {
    r['split']: r | {'seconds': 0, 'started': 0} for r in _records(folder) if r['kind'] == 'eval'
  }


def _two_hosts() -> tuple[dict[str, str], list[list[str]]]:
  """Returns the environment of two processes of one device, and the flags of each."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  env = {'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo', 'JAX_COMPILATION_CACHE_DIR': ''}
  flags = ['--multiprocess_gpu', f'--server_addr=localhost:{port}', '--num_hosts=2']
  return env, [[*flags, f'--host_idx={index}'] for index in range(2)]


def _copy_at_step_3(whole, folder) -> None:
  """Copies a run as a process leaves it that is killed after step 3."""
  shutil.copytree(whole, folder, ignore=shutil.ignore_patterns('progress.jsonl', '*_0000000[69]'))


def _check_close(actual: dict[str, dict], expected: dict[str, dict], bound: float) -> None:
  assert set(actual) == set(expected)
  for split, evaluation in actual.items():
    assert evaluation == pytest.approx(expected[split], abs=bound)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('text', 'data', 'splits'),
  [
    pytest.param(IMAGES, _images, {'train_eval', 'test', 'validation'}, id='images'),
    pytest.param(SPEECH, _speech, {'validation'}, id='speech'),
  ],
)
def test_a_run_goes_on_in_one_process_and_in_two(commands, tmp_path, text, data, splits):
  (tmp_path / 'small_family.py').write_text(text + STEPS)
  env = {'PYTHONPATH': str(tmp_path), 'XLA_FLAGS': QUICK_COMPILE} | data(tmp_path)

  def start(folder, *flags, experiment='--exp=small_family.Small', **more):
    flags = ['train', experiment, f'--job_log_dir={folder}', *flags]
    return commands.start('laser_pax', flags, cwd=tmp_path, env=env | more)

  whole, again, hosts = tmp_path / 'whole', tmp_path / 'again', tmp_path / 'hosts'
  command = start(whole)
  assert command.wait() == 0, command.stdout + command.stderr
  _copy_at_step_3(whole, again)
  command = start(again, '--noeval_on_test')
  assert command.wait() == 0, command.stdout + command.stderr
  assert 'resuming at step 3' in command.stdout
  expected = _losses(whole)
  assert len(expected) == 9 and _losses(again) == {s: expected[s] for s in range(4, 10)}
  evaluations = _evaluations(whole)
  assert set(evaluations) == splits

  if text is SPEECH:  # It has more to evaluate: another process does, and not the two hosts.
    command = start(again, '--mode=eval')
    assert command.wait() == 0, command.stdout + command.stderr
    _check_close(_evaluations(again), evaluations, 1e-6)

  _copy_at_step_3(whole, hosts)
  env_of_two, flags_of_two = _two_hosts()
  layout = ['--fdl.ICI_MESH_SHAPE=[2,1,1]', '--fdl.MICRO_BATCHES=1']
  layout += [] if text is IMAGES else ['--noeval_on_test']
  both = [
    start(hosts, *layout, *flags, experiment='--fdl_config=small_family.Small', **env_of_two)
    for flags in flags_of_two
  ]
  for command in both:
    assert command.wait() == 0, command.stdout + command.stderr
  assert _losses(hosts) == pytest.approx({s: expected[s] for s in range(4, 10)}, abs=1e-5)

  if text is IMAGES:
    _check_close(_evaluations(hosts), evaluations, 1e-5)
