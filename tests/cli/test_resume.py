"""A killed run continues at its last checkpoint with the next batch."""

import json
import signal
import time

import pytest

from tests.support.commands import QUICK_COMPILE

EXPERIMENT = """
from paxml import experiment_registry
from laser_pax.configs import C4LaserTiny

@experiment_registry.register
class Small(C4LaserTiny):
  NUM_LAYERS = 1
  MODEL_DIMS = 64
  HIDDEN_DIMS = 64
  SEQ_LEN = 64
  NUM_TRAIN_STEPS = 12
  WARMUP_STEPS = 2
  SUMMARY_INTERVAL_STEPS = 1
  CHECKPOINT_EVERY_N_STEPS = 4
  EVAL_INTERVAL_STEPS = 6
"""


@pytest.fixture
def start(commands, source, tmp_path):
  """Returns a function that starts a Python module on the experiment, in a job's folder."""
  (tmp_path / 'small_experiment.py').write_text(EXPERIMENT)

  def start(folder, module, *args):
    flags = ['--exp=small_experiment.Small', f'--job_log_dir={tmp_path / folder}']
    env = {'PYTHONPATH': str(tmp_path), 'XLA_FLAGS': QUICK_COMPILE}
    env |= {'LASER_PAX_DATA_DIR': source.data_dir, 'LASER_PAX_VOCAB': source.vocab}
    return commands.start(module, [*args, *flags], env=env)

  return start


def _finish(command) -> str:
  assert command.wait() == 0, command.stdout + command.stderr
  return command.stdout


def _recorded(folder) -> dict[int, float]:
  records = [json.loads(line) for line in (folder / 'progress.jsonl').read_text().splitlines()]
  return {r['step']: r['loss'] for r in records if r['kind'] == 'train'}


def _summaries(folder, writer, tag) -> dict[int, float]:
  """Returns TensorBoard's values by step. If a step has several values, the last one counts."""
  import tensorflow as tf

  values = {}
  for file in sorted((folder / 'summaries' / writer).iterdir(), key=lambda f: f.stat().st_mtime):
    for event in tf.compat.v1.train.summary_iterator(str(file)):
      for value in event.summary.value:
        if value.tag == tag:
          values[event.step] = float(tf.make_ndarray(value.tensor))
  return values


@pytest.mark.slow
def test_killed_and_run_again_gives_the_losses_of_one_run(start, tmp_path):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  shown = _finish(start('whole', 'laser_pax', 'train'))
  assert 'step 6: validation loss' in shown
  assert 'step 12: validation loss' in shown
  assert len(shown.splitlines()) < 20, 'the console must stay quiet'

  command = start('killed', 'paxml.main', '--eval_on_test')
  deadline = time.time() + 300
  while not (killed / 'checkpoints' / 'checkpoint_00000004').exists() and time.time() < deadline:
    assert command.poll() is None, command.stdout + command.stderr
    time.sleep(0.02)
  command.send_signal(signal.SIGKILL)
  command.wait()
  assert not (killed / 'checkpoints' / 'checkpoint_00000012').exists()
  _finish(start('killed', 'paxml.main', '--eval_on_test'))

  # paxml counts a step's summary as the next one's, as the record does.
  assert _summaries(killed, 'train', 'loss') == pytest.approx(_recorded(whole), abs=0, rel=1e-7)
  evaluations = _summaries(killed, 'eval_test_validation', 'Metrics/log_pplx')
  assert evaluations == _summaries(whole, 'eval_test_validation', 'Metrics/log_pplx')
  assert set(evaluations) >= {6, 12}

  again = _finish(start('killed', 'laser_pax', 'train'))
  assert 'resuming at step 12 of 12' in again
