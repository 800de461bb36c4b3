"""`eval` on a small job: its tables and files, and one clear error for each wrong use."""

import importlib.util
import json
import shutil

import pytest

from laser_pax import cli
from laser_pax.data import vocabulary
from laser_pax.experiment.saved_models import Saved
from tests.support import local_tasks
from tests.support.commands import QUICK_COMPILE

ROWS = [
  {'question': 'The state of our', 'options': ['union', 'people'], 'label': 0},
  {'question': 'Our people are', 'options': ['free', 'strong'], 'label': 0},
  {'question': 'Number 7: the union is', 'options': ['the', 'of', 'strong'], 'label': 2},
]


@pytest.fixture(scope='module')
def job(commands, source, tmp_path_factory):
  """A job with checkpoints at steps 2 and 4."""
  folder = tmp_path_factory.mktemp('eval') / 'job'
  sizes = dict(NUM_LAYERS=1, MODEL_DIMS=64, HIDDEN_DIMS=64, SEQ_LEN=64, NUM_TRAIN_STEPS=4)
  sizes |= dict(WARMUP_STEPS=2, CHECKPOINT_EVERY_N_STEPS=2, SUMMARY_INTERVAL_STEPS=4)
  flags = [f'--fdl.{name}={value}' for name, value in sizes.items()]
  trained = commands.run(
    'laser_pax',
    ['train', '--fdl_config=C4LaserTiny', f'--job_log_dir={folder}', '--noeval_on_test', *flags],
    env={
      'XLA_FLAGS': QUICK_COMPILE,
      'LASER_PAX_DATA_DIR': source.data_dir,
      'LASER_PAX_VOCAB': source.vocab,
    },
  )
  assert trained.returncode == 0, trained.stdout + trained.stderr
  return folder


@pytest.fixture(scope='module')
def include(tmp_path_factory):
  folder = tmp_path_factory.mktemp('include')
  (folder / 'tools.yaml').write_text(local_tasks.TOOLS)
  (folder / 'tools.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in ROWS))
  return folder


def _eval(*args):
  with pytest.raises(SystemExit) as ended:
    cli.main(['eval', *map(str, args)])
  return ended.value.code


def _refused(capsys, *args) -> str:
  assert _eval(*args) == 2
  errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
  assert len(errors) == 1
  return errors[0]


def test_two_checkpoints_are_compared_and_the_same_command_gives_the_same(job, include, capsys):
  newest, older = job, job / 'checkpoints' / 'checkpoint_00000002'
  flags = ['--tasks=tools', f'--include={include}', f'--checkpoint={newest}', f'--against={older}']
  assert _eval(*flags) == 0
  first = capsys.readouterr().out
  assert 'C4LaserTiny, step 4 against C4LaserTiny, step 2' in first.replace('\n', ' ')
  ours, theirs = job / 'eval_00000004', job / 'eval_00000002'
  stem = 'tools_1-shot'
  records = [json.loads((folder / f'{stem}.json').read_text()) for folder in (ours, theirs)]
  for record, step in zip(records, (4, 2), strict=True):
    assert record['step'] == step and record['experiment'] == 'C4LaserTiny'
    assert record['tasks']['tools']['examples'] == 3
    assert record['mean']['value'] == record['tasks']['tools']['value']
  examples = [json.loads(line) for line in (ours / f'{stem}.examples.jsonl').open()]
  assert [e['example'] for e in examples] == [0, 1, 2]
  assert sum(e['acc'] for e in examples) / 3 == pytest.approx(records[0]['mean']['value'])
  difference = json.loads((ours / f'{stem}_difference.json').read_text())
  low, high = difference['mean']['interval']
  assert low <= difference['mean']['value'] <= high
  table = (ours / f'{stem}.txt').read_text()
  assert 'tools' in table and 'mean of 1' in table and '± ' in table

  assert len(list((ours / 'cache').glob('*.db'))) == 1
  assert _eval(*flags) == 0
  assert capsys.readouterr().out == first


def test_a_trial_has_files_of_its_own(job, include, tmp_path, capsys):
  flags = ['--tasks=tools', f'--include={include}', f'--checkpoint={job}', f'--out={tmp_path}']
  assert _eval(*flags, '--limit=2', '--shots=0') == 0
  assert {f.name for f in tmp_path.iterdir() if f.is_file()} == {
    f'tools_0-shot_limit-2.{end}' for end in ('txt', 'json', 'examples.jsonl')
  }
  capsys.readouterr()


def test_wrong_uses_are_refused(job, include, tmp_path, capsys, monkeypatch):
  checkpoint = f'--checkpoint={job}'
  assert 'not both' in _refused(capsys, checkpoint, '--suite=paper', '--tasks=tools')
  assert 'no such folder' in _refused(capsys, checkpoint, '--include=/nowhere/x')
  assert 'names no task' in _refused(capsys, checkpoint, '--tasks=,')
  assert 'not of laser_pax.configs.C4StandardTiny' in _refused(
    capsys, checkpoint, '--exp=C4StandardTiny', '--tasks=tools'
  )
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda name: None if name == 'lm_eval' else find_spec(name)
  )
  assert 'scripts/setup.sh eval' in _refused(capsys, checkpoint)


def test_a_checkpoint_that_is_being_written_is_refused(job, tmp_path, capsys):
  unfinished = tmp_path / 'checkpoints' / 'checkpoint_00000002.orbax-checkpoint-tmp-17'
  unfinished.mkdir(parents=True)
  assert 'still being written' in _refused(capsys, f'--checkpoint={unfinished}')
  assert 'no finished checkpoint' in _refused(capsys, f'--checkpoint={tmp_path}')


def test_a_wrong_second_checkpoint_is_told_by_its_own_flag(job, tmp_path, capsys):
  flags = f'--checkpoint={job}', f'--against={tmp_path}'
  assert f'--against={tmp_path}: no finished checkpoint' in _refused(capsys, *flags)
  saved = Saved(str(tmp_path), 2, None).folder
  for part in ('state', 'metadata'):
    (saved / part).mkdir(parents=True)
    (saved / part / part).write_text('{}')
  message = _refused(capsys, *flags)
  assert f'--against={tmp_path} does not say which experiment it is of: write ' in message
  assert message.endswith(f'into {tmp_path}/experiment.txt')


def test_another_vocabulary_is_refused(job, source, include, tmp_path, texts, capsys):
  copy = tmp_path / 'job'
  shutil.copytree(job, copy)
  (copy / 'vocab.model').unlink()
  vocabulary.train_vocabulary(texts['train'], copy / 'vocab.model', size=60, sentences=300)
  message = _refused(capsys, f'--checkpoint={copy}', '--tasks=tools', f'--include={include}')
  assert '60 pieces' in message and 'VOCAB_SIZE = 4096' in message


def test_a_model_of_no_text_is_refused(tmp_path, capsys, monkeypatch):
  from laser_pax.cli import eval as command
  from laser_pax.configs import ImageNetLaserViTTiny

  saved = Saved(str(tmp_path), 1, None)
  monkeypatch.setattr(command, 'open_run', lambda *_, **__: (ImageNetLaserViTTiny(), saved))
  assert 'ImageNetLaserViTTiny is no decoder of text' in _refused(capsys, '--checkpoint=x')
