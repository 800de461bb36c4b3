"""Tests of the README: each of its commands runs, and its table agrees with the experiments."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from laser_pax import cli
from laser_pax.cli import experiments, quickstart
from tests.support.commands import QUICK_COMPILE

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()


def _blocks(language: str) -> list[str]:
  return re.findall(rf'```{language}\n(.*?)```', README, re.DOTALL)


def _commands() -> list[str]:
  lines = [line.split('  #')[0].strip() for block in _blocks('bash') for line in block.split('\n')]
  return [line for line in lines if line]


@pytest.fixture
def run(commands):
  """Returns a function that runs one of the README's `python -m` commands in a folder."""

  def run(command: str, cwd, **env):
    python, minus_m, module, *args = shlex.split(command)
    assert (python, minus_m) == ('python', '-m')
    env = {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(cwd), **env}
    return commands.run(module, args, cwd=cwd, env=env, timeout=900)

  return run


@pytest.fixture
def succeeds(run):
  """Returns a function that runs one of the README's commands and returns its output."""

  def succeeds(command: str, cwd, **env) -> str:
    completed = run(command, cwd, **env)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout

  return succeeds


def _subprocess(command: list[str], cwd) -> str:
  path = f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}'
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PATH': path, 'PYTHONPATH': f'{ROOT}:{cwd}'}
  completed = subprocess.run(
    command, cwd=cwd, env=env, capture_output=True, text=True, timeout=900, check=False
  )
  assert completed.returncode == 0, completed.stdout + completed.stderr
  return completed.stdout


def test_no_command_is_left_out():
  tested = {
    'scripts/quickstart.sh',
    'scripts/test.sh',
    'scripts/setup.sh tpu && source .venv/bin/activate',
    'export LASER_PAX_DATA_DIR=... LASER_PAX_VOCAB=...',
    *(c for c in _commands() if c.startswith('python -m')),
  }
  assert set(_commands()) == tested
  assert len([c for c in _commands() if c.startswith('python -m')]) == 13


def _number(text: str) -> int:
  return int(text.split()[0].replace(',', ''))


def test_table_lists_each_pair():
  rows = {row['experiment']: row for row in experiments.table()}
  table = re.findall(r'^\| `(\w+)`, `(\w+)` \|(.*)\|$', README, re.MULTILINE)
  assert sorted(name for name, _, _ in table) == sorted(n for n in rows if 'Standard' in n)
  for name, twin, cells in table:
    assert name.replace('Standard', 'Laser') == twin
    row = rows[twin]
    scale = {'M': 1e6, 'B': 1e9}
    parameters, tokens = (
      float(number) * scale[unit] for number, unit in re.findall(r'([\d.]+)([MB])', cells)[:2]
    )
    assert parameters == pytest.approx(_number(row['parameters']), rel=5e-3)
    assert tokens == pytest.approx(_number(row['trains on']), rel=5e-3)
    assert row['batch'] in cells and row['steps'] in cells
    assert cells.rstrip().endswith(row['chips'])


@pytest.mark.slow
def test_quickstart_ends_with_the_table_and_the_picture(
  commands, source, tmp_path, monkeypatch, capfd
):
  """Trains smaller twins for a few steps, on less text. scripts/quickstart.sh runs the same."""
  assert 'laser_pax quickstart "$@"' in (ROOT / 'scripts/quickstart.sh').read_text()
  flags = quickstart._experiment_flags
  small = [f'--fdl.{name}=64' for name in ('MODEL_DIMS', 'HIDDEN_DIMS')] + ['--fdl.NUM_LAYERS=1']
  small += [f'--data={source.data_dir}', f'--vocab={source.vocab}']
  monkeypatch.setattr(quickstart, '_experiment_flags', lambda *args: flags(*args) + small)
  monkeypatch.setattr(sys, 'executable', str(commands.python))
  with pytest.raises(SystemExit) as end:
    cli.main(['quickstart', '--steps', '10', '--out', str(tmp_path)])
  assert not end.value.code
  out = capfd.readouterr().out
  for word in ('standard', 'LASER', 'test loss', 'perplexity', 'tokens/s', 'unigram entropy'):
    assert word in out
  assert (tmp_path / '10-steps' / 'quickstart_text.png').read_bytes().startswith(b'\x89PNG')


def test_list_and_show(succeeds, tmp_path):
  succeeds('python -m laser_pax list', tmp_path)
  shown = ' '.join(succeeds('python -m laser_pax show C4Laser2B', tmp_path).split())
  for fact in (
    '2,213,',
    'LaserFusedDotProductAttention',
    'attention on tpu',
    "jax's splash attention",
    'attention on gpu',
    "cuDNN's attention has no logit cap",
    'attention on cpu',
    '160,000',
    '167,772,160,000',
    '[4, 64, 1]',
  ):
    assert fact in shown


def test_the_tpu_command_lacks_only_its_chips(run, tmp_path):
  command = next(c for c in _commands() if 'paxml.main' in c).replace('=...', f'={tmp_path}')
  result = run(command.replace(' --jax_fully_async_checkpoint', ''), tmp_path)
  assert result.returncode == 1
  assert 'planned for v5p-256chips; this job has 1 CPU' in result.stderr.splitlines()[-1]


def test_scaled_config_is_shown_and_refuses_to_train_without_its_chips(run, succeeds, tmp_path):
  source = next(block for block in _blocks('python') if block.startswith('# my_experiments.py'))
  (tmp_path / 'my_experiments.py').write_text(source)
  show, aot, train = (c for c in _commands() if 'my_experiments' in c)
  assert 'v5e-64chips' in succeeds(show, tmp_path)
  small = {'NUM_LAYERS': 1, 'MODEL_DIMS': 128, 'HIDDEN_DIMS': 128, 'VOCAB_SIZE': 128}
  flags = ' '.join(f'--fdl.{name}={value}' for name, value in small.items())
  small_aot = f'{aot} --pod=cpu --fdl.SEQ_LEN=128 --fdl.GLOBAL_BATCH_SIZE=2 {flags}'
  assert 'FLOPs of attention' in succeeds(small_aot, tmp_path, XLA_FLAGS=QUICK_COMPILE)
  result = run(train, tmp_path)
  assert result.returncode == 2
  assert result.stderr.splitlines()[-1].startswith(
    'error: Laser500M is planned for v5e-64chips; this job has 1 CPU'
  )


@pytest.mark.slow
def test_own_text_is_prepared_trained_on_and_what_it_gave_is_used(run, succeeds, tmp_path):
  texts = tmp_path / 'my_texts'
  texts.mkdir()
  words = (ROOT / 'docs' / 'environment.md').read_text() + (ROOT / 'docs' / 'data.md').read_text()
  for i in range(20):
    (texts / f'{i}.txt').write_text(f'{i} {words}\n')
  prepare, vocab, train = (
    next(c for c in _commands() if word in c)
    for word in ('prepare c4', 'laser_pax vocab', '--vocab my_vocab')
  )
  size = 500  # The test's texts are too small for the README's size.
  succeeds(prepare, tmp_path)
  succeeds(vocab.replace('4096', str(size)), tmp_path)
  small = {'NUM_LAYERS': 1, 'MODEL_DIMS': 64, 'VOCAB_SIZE': size, 'NUM_TRAIN_STEPS': 4}
  small |= {'WARMUP_STEPS': 1, 'SEQ_LEN': 64}
  flags = ' '.join(f'--fdl.{name}={value}' for name, value in small.items())
  small_exp = f'--fdl_config=laser_pax.configs.C4LaserTiny {flags}'
  out = succeeds(train.replace('--exp=C4LaserTiny', small_exp), tmp_path, XLA_FLAGS=QUICK_COMPILE)
  assert 'step 4: validation loss' in out

  generate, evaluate, export = (
    next(c for c in _commands() if f'laser_pax {word}' in c)
    for word in ('generate', 'eval', 'export')
  )
  succeeds(f'{generate} --max-tokens=4', tmp_path, XLA_FLAGS=QUICK_COMPILE)
  succeeds(export, tmp_path)
  assert (tmp_path / 'my_model' / 'numpy_forward.py').exists()
  # Without a network: the suite's data sets are missing, and one line says so.
  offline = run(evaluate, tmp_path, HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path / 'hub'))
  assert offline.returncode == 2
  assert 'its data set' in offline.stderr.splitlines()[-1]


@pytest.mark.slow
def test_one_value_is_changed_from_the_command_line(succeeds, tmp_path):
  command = next(c for c in _commands() if '--fdl.NUM_LAYERS=2' in c)
  few = '--fdl.NUM_TRAIN_STEPS=2 --fdl.WARMUP_STEPS=1 --fdl.MODEL_DIMS=64 --noeval_on_test'
  succeeds(f'{command} {few}', tmp_path, XLA_FLAGS=QUICK_COMPILE)
  written = (tmp_path / 'runs/two_layers/model_params.txt').read_text()
  assert re.search(r'x_times : 2\b', written)


def test_laser_in_a_model_of_ones_own(tmp_path):
  source = next(block for block in _blocks('python') if 'use_laser' in block)
  (tmp_path / 'own.py').write_text(source)
  out = _subprocess([sys.executable, 'own.py'], tmp_path)
  assert 'DotProductAttention -> LaserDotProductAttention' in out


def test_scripts_are_sound():
  shellcheck = str(pathlib.Path(sys.executable).parent / 'shellcheck')
  scripts = sorted(str(p) for p in (ROOT / 'scripts').glob('*.sh'))
  _subprocess([shellcheck, '-x', *scripts], ROOT)
