"""PAX's other modes: a second process evaluates and decodes a job while it trains."""

import json
import signal
import time

import pytest

from tests.support import small_records
from tests.support.commands import QUICK_COMPILE

SETTINGS = """
from orbax.checkpoint import checkpoint_utils
from paxml import experiment_registry
from laser_pax.configs import C4LaserTiny, WikipediaLaserBertTiny

wait = checkpoint_utils.wait_for_new_checkpoint

def wait_impatiently(*args, **kwargs):  # PAX looks once a minute.
  return wait(*args, **kwargs | {'seconds_to_sleep': 0.1})

checkpoint_utils.wait_for_new_checkpoint = wait_impatiently

class Small:
  NUM_LAYERS = 1
  MODEL_DIMS = 32
  HIDDEN_DIMS = 32
  GLOBAL_BATCH_SIZE = 8
  NUM_TRAIN_STEPS = 80
  WARMUP_STEPS = 2
  SUMMARY_INTERVAL_STEPS = 1
  CHECKPOINT_EVERY_N_STEPS = 4
  EVAL_INTERVAL_STEPS = 4

@experiment_registry.register
class Text(Small, C4LaserTiny):
  SEQ_LEN = 32

@experiment_registry.register
class Bert(Small, WikipediaLaserBertTiny):
  SEQ_LEN = 32
  VOCAB_SIZE = 300
"""
STEPS = 12


@pytest.fixture
def start(commands, tmp_path, source):
  """Returns a function that starts `python -m laser_pax train` in the folder of one job."""
  (tmp_path / 'small_modes.py').write_text(SETTINGS)
  env = {'PYTHONPATH': str(tmp_path), 'XLA_FLAGS': QUICK_COMPILE}

  def start(*flags, data_dir=source.data_dir):
    data = {'LASER_PAX_DATA_DIR': str(data_dir), 'LASER_PAX_VOCAB': source.vocab}
    flags = ['train', f'--job_log_dir={tmp_path}/job', *flags]
    return commands.start('laser_pax', flags, cwd=tmp_path, env=env | data)

  return start


def _wait(is_there, command):
  deadline = time.time() + 300
  while not is_there():
    assert command.poll() is None, command.stdout + command.stderr
    assert time.time() < deadline, command.stdout + command.stderr
    time.sleep(0.01)


def _check_curve(job, metric):
  """Checks that both processes recorded each checkpoint's evaluation, and the same figures."""
  records = [json.loads(line) for line in (job / 'progress.jsonl').read_text().splitlines()]
  for step in range(4, STEPS + 1, 4):
    values = [r[metric] for r in records if r['kind'] == 'eval' and r['step'] == step]
    assert len(values) == 2 and abs(values[0] - values[1]) <= 1e-6, (step, values)


@pytest.mark.slow
def test_a_second_process_evaluates_and_decodes_each_checkpoint_of_a_training(start, tmp_path):
  """It takes the number of steps, with which it ends, from the job."""
  job = tmp_path / 'job'
  training = start('--fdl_config=small_modes.Text', f'--fdl.NUM_TRAIN_STEPS={STEPS}')
  _wait((job / 'checkpoints' / 'checkpoint_00000000').exists, training)
  beside = start('--exp=small_modes.Text', '--mode=decode', '--eval_during_decode')
  for step in range(4, STEPS + 1, 4):
    _wait((job / 'checkpoints' / f'checkpoint_{step:08d}').exists, training)
    training.send_signal(signal.SIGSTOP)
    _wait(lambda step=step: f'step {step}: validation loss' in beside.stdout, beside)
    training.send_signal(signal.SIGCONT)
  for command in (training, beside):
    assert command.wait() == 0, command.stdout + command.stderr
  _check_curve(job, 'loss')
  for step in range(4, STEPS + 1, 4):
    (file,) = (job / 'decoder_out' / 'continuations').glob(f'decoder_out_{step}_*.jsonl')
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 16
    assert all(1 <= len(row['decoded_ids']) <= 16 for row in rows)


@pytest.mark.slow
def test_bert_is_evaluated_after_its_training_and_refuses_to_decode(start, tmp_path):
  data_dir, job = small_records.write(tmp_path), tmp_path / 'job'
  flags = '--fdl_config=small_modes.Bert', f'--fdl.NUM_TRAIN_STEPS={STEPS}'
  training = start(*flags, data_dir=data_dir)
  assert training.wait() == 0, training.stdout + training.stderr
  evaluation = start('--exp=small_modes.Bert', '--mode=eval', data_dir=data_dir)
  assert evaluation.wait() == 0, evaluation.stdout + evaluation.stderr
  records = [json.loads(line) for line in (job / 'progress.jsonl').read_text().splitlines()]
  trained, evaluated = [
    {k: v for k, v in r.items() if k != 'seconds'}
    for r in records
    if r['kind'] == 'eval' and r['step'] == STEPS
  ]
  assert evaluated == pytest.approx(trained, abs=1e-6)
  decoding = start('--exp=small_modes.Bert', '--mode=decode_once', data_dir=data_dir)
  assert decoding.wait() == 2
  (error,) = [line for line in decoding.stderr.splitlines() if line.startswith('error: ')]
  assert 'has nothing to decode' in error and '--mode=eval' in error
  assert 'Traceback' not in decoding.stderr
