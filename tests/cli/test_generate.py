"""`python -m laser_pax generate` on a job that was trained for a few steps."""

import json

import pytest

from tests.support.commands import QUICK_COMPILE

SMALL = ('NUM_LAYERS=1', 'MODEL_DIMS=32', 'HIDDEN_DIMS=32', 'SEQ_LEN=32')
STEPS = ('NUM_TRAIN_STEPS=2', 'WARMUP_STEPS=1')


@pytest.fixture(scope='module')
def generate(commands, source, tmp_path_factory):
  """Returns a function that runs `generate` beside a job, in the job's folder."""
  folder = tmp_path_factory.mktemp('generate')
  # The vocabulary is the job's own copy: this names none.
  env = {'XLA_FLAGS': QUICK_COMPILE}
  data = {'LASER_PAX_DATA_DIR': source.data_dir, 'LASER_PAX_VOCAB': source.vocab}
  flags = [f'--fdl.{override}' for override in (*SMALL, *STEPS)]
  flags += ['--fdl_config=laser_pax.configs.C4LaserTiny', f'--job_log_dir={folder}/job']
  training = commands.run('laser_pax', ['train', *flags, '--noeval_on_test'], env=env | data)
  assert training.returncode == 0, training.stdout + training.stderr

  def run(*words, checkpoint='job'):
    words = ['generate', f'--checkpoint={checkpoint}', *words]
    return commands.run('laser_pax', words, cwd=folder, env=env)

  run.folder = folder
  return run


def _refused(command, *words):
  assert command.returncode == 2, command.stdout + command.stderr
  (error,) = command.stderr.splitlines()
  assert error.startswith('error: ')
  for word in words:
    assert word in error


@pytest.mark.slow
def test_prompts_are_continued_by_the_jobs_own_model_and_vocabulary(generate):
  (generate.folder / 'prompts.txt').write_text('Number 5: the state\nof our union\n')
  words = ('--prompt=the people', '--prompts=prompts.txt', '--max-tokens=8', '--out=out.jsonl')
  command = generate(*words)
  assert command.returncode == 0, command.stdout + command.stderr
  records = [json.loads(line) for line in (generate.folder / 'out.jsonl').read_text().splitlines()]
  assert [r['prompt'] for r in records] == ['the people', 'Number 5: the state', 'of our union']
  assert command.stdout.splitlines() == [r['text'] for r in records]
  for record in records:
    assert 1 <= record['tokens'] <= 8
    assert record['end'] == ('max tokens' if record['tokens'] == 8 else 'end of sequence')
  (speed,) = command.stderr.splitlines()
  count = sum(record['tokens'] for record in records)
  assert speed.startswith(f'{count} new tokens in ') and 'tokens/s; compiled before' in speed


@pytest.mark.slow
def test_what_is_wrong_is_one_clear_error_before_the_weights_are_read(generate):
  _refused(generate(), '--prompt=TEXT')
  _refused(generate('--prompt= '), 'prompt 1 is empty')
  _refused(generate('--prompt=a', '--max-tokens=32'), '32 more', 'SEQ_LEN = 32')
  _refused(generate('--prompt=a', '--exp=C4StandardTiny'), 'C4LaserTiny', 'not of')
  temporary = generate.folder / 'job/checkpoints/checkpoint_00000009.orbax-checkpoint-tmp-1'
  temporary.mkdir()
  _refused(generate('--prompt=a', checkpoint=str(temporary)), 'still being written')
  temporary.rmdir()
  kept = generate.folder / 'job/vocab.model'
  contents = kept.read_bytes()
  kept.write_bytes(contents[:1000])
  _refused(generate('--prompt=a'), 'vocab.model', 'not a SentencePiece model')
  kept.write_bytes(contents)
