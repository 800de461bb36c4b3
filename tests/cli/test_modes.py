"""A second process evaluates and decodes a job while it trains; then its text is continued."""

import json
import signal
import time

import pytest

from laser_pax import configs
from laser_pax.errors import UserError
from laser_pax.experiment import modes
from tests.support.commands import QUICK_COMPILE

SETTINGS = """
from orbax.checkpoint import checkpoint_utils
from paxml import experiment_registry
from laser_pax.configs import C4LaserTiny

wait = checkpoint_utils.wait_for_new_checkpoint

def wait_impatiently(*args, **kwargs):  # PAX looks once a minute.
  return wait(*args, **kwargs | {'seconds_to_sleep': 0.1})

checkpoint_utils.wait_for_new_checkpoint = wait_impatiently

@experiment_registry.register
class Small(C4LaserTiny):
  NUM_LAYERS = 1
  MODEL_DIMS = 32
  HIDDEN_DIMS = 32
  SEQ_LEN = 32
  NUM_TRAIN_STEPS = 80
  WARMUP_STEPS = 2
  SUMMARY_INTERVAL_STEPS = 1
  CHECKPOINT_EVERY_N_STEPS = 4
  EVAL_INTERVAL_STEPS = 4
"""
STEPS = 12


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The folder of the job, and of the module of its experiment."""
  folder = tmp_path_factory.mktemp('modes')
  (folder / 'small_modes.py').write_text(SETTINGS)
  return folder


@pytest.fixture(scope='module')
def start(commands, folder, source):
  """Returns a function that starts `python -m laser_pax`."""
  env = {'PYTHONPATH': str(folder), 'XLA_FLAGS': QUICK_COMPILE}
  env |= {'LASER_PAX_DATA_DIR': source.data_dir, 'LASER_PAX_VOCAB': source.vocab}

  def start(*words):
    return commands.start('laser_pax', words, cwd=folder, env=env)

  return start


@pytest.fixture(scope='module')
def job(start, folder):
  """The folder of a job that another process evaluated and decoded while it trained.

  That process takes the number of steps, with which it ends, from the job.
  """
  job = folder / 'job'
  train = 'train', f'--job_log_dir={job}'
  training = start(*train, '--fdl_config=small_modes.Small', f'--fdl.NUM_TRAIN_STEPS={STEPS}')
  _wait((job / 'checkpoints' / 'checkpoint_00000000').exists, training)
  beside = start(*train, '--exp=small_modes.Small', '--mode=decode', '--eval_during_decode')
  for step in range(4, STEPS + 1, 4):
    _wait((job / 'checkpoints' / f'checkpoint_{step:08d}').exists, training)
    training.send_signal(signal.SIGSTOP)
    _wait(lambda step=step: f'step {step}: validation loss' in beside.stdout, beside)
    training.send_signal(signal.SIGCONT)
  for command in (training, beside):
    assert command.wait() == 0, command.stdout + command.stderr
    assert 'Traceback' not in command.stdout + command.stderr
  return job


def _wait(is_there, command):
  deadline = time.time() + 300
  while not is_there():
    assert command.poll() is None, command.stdout + command.stderr
    assert time.time() < deadline, command.stdout + command.stderr
    time.sleep(0.01)


@pytest.mark.slow
def test_both_processes_record_one_curve(job):
  records = [json.loads(line) for line in (job / 'progress.jsonl').read_text().splitlines()]
  for step in range(4, STEPS + 1, 4):
    losses = [r['loss'] for r in records if r['kind'] == 'eval' and r['step'] == step]
    assert len(losses) == 2 and abs(losses[0] - losses[1]) <= 1e-6, (step, losses)


@pytest.mark.slow
def test_half_rows_are_continued_at_each_checkpoint(job):
  for step in range(4, STEPS + 1, 4):
    (file,) = (job / 'decoder_out' / 'continuations').glob(f'decoder_out_{step}_*.jsonl')
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 16
    assert all(1 <= len(row['decoded_ids']) <= 16 for row in rows)


@pytest.mark.slow
def test_prompts_are_continued_by_the_jobs_own_model_and_vocabulary(job, start, folder):
  (folder / 'prompts.txt').write_text('Number 5: the state\nof our union\n')
  words = ('--prompt=the people', '--prompts=prompts.txt', '--max-tokens=8', '--out=out.jsonl')
  command = start('generate', f'--checkpoint={job}', *words)
  assert command.wait() == 0, command.stdout + command.stderr
  records = [json.loads(line) for line in (folder / 'out.jsonl').read_text().splitlines()]
  assert [r['prompt'] for r in records] == ['the people', 'Number 5: the state', 'of our union']
  assert command.stdout.splitlines() == [r['text'] for r in records]
  for record in records:
    assert 1 <= record['tokens'] <= 8
    assert record['end'] == ('max tokens' if record['tokens'] == 8 else 'end of sequence')
  (speed,) = command.stderr.splitlines()
  count = sum(record['tokens'] for record in records)
  assert speed.startswith(f'{count} new tokens in ') and 'tokens/s; compiled before' in speed


@pytest.mark.slow
@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['--checkpoint=job', '--prompt= '], 'prompt 1 is empty'),
    (['--checkpoint=job', '--prompt=a', '--max-tokens=32'], 'SEQ_LEN = 32'),
    (['--checkpoint=unfinished', '--prompt=a'], 'still being written'),
  ],
)
def test_a_wrong_prompt_or_checkpoint_is_one_clear_error(job, start, folder, words, message):
  unfinished = job / 'checkpoints' / 'checkpoint_00000016.orbax-checkpoint-tmp-1'
  unfinished.mkdir(exist_ok=True)
  words = [word.replace('unfinished', str(unfinished)) for word in words]
  command = start('generate', *words)
  assert command.wait() == 2
  (error,) = command.stderr.splitlines()
  assert error.startswith('error: ') and message in error


def test_a_family_without_anything_to_decode_refuses_to(monkeypatch):
  monkeypatch.setattr(modes, 'mode', lambda: 'decode_once')
  for name in ('WikipediaLaserBertTiny', 'ImageNetLaserViTTiny'):
    with pytest.raises(UserError, match=f'{name} has nothing to decode.*--mode=eval'):
      modes.check_decodes(getattr(configs, name)())
