"""A family that knows `Experiment` and `Family` alone: every tool takes it."""

import json

import pytest

from laser_pax.cli import eval, experiments
from laser_pax.costs import libtpu
from laser_pax.errors import UserError
from tests.support.commands import QUICK_COMPILE, ROOT

NAME = 'tests.support.toy_family.Bags'


@pytest.fixture(scope='module')
def run(commands):
  """Returns a function that runs `python -m laser_pax`, and returns what it printed."""

  def run(*args, **env):
    env |= {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': QUICK_COMPILE}
    result = commands.run('laser_pax', args, env=env, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout

  return run


def losses(folder):
  rows = [json.loads(line) for line in (folder / 'progress.jsonl').read_text().splitlines()]
  return [(row['step'], row['loss']) for row in rows if row['kind'] == 'train']


def test_list_has_a_row_of_it():
  assert experiments.row(experiments.load(NAME)().on()) == {
    'experiment': 'Bags',
    'parameters': '356',
    'trains on': '2,560 bags',
    'batch': '64',
    'steps': '40',
    'chips': '1',
  }


def test_it_scores_no_text():
  with pytest.raises(UserError, match='Bags is no decoder of text'):
    eval._check_family(experiments.load(NAME)())


def test_show_prints_its_own_rows(run):
  printed = run('show', NAME)
  assert 'words' in printed and '2,560 (7.2 a parameter)' in printed


def test_aot_compiles_it(run):
  try:
    libtpu.library()
  except UserError as e:
    pytest.skip(str(e))
  (report,) = json.loads(run('aot', f'--exp={NAME}', '--pod=v5e-4chips', '--json'))
  assert report['fits'] and report['parameters'] == 356


@pytest.mark.slow
def test_it_trains_and_resumes(run, tmp_path):
  flags = f'--exp={NAME}', f'--job_log_dir={tmp_path}'
  assert 'step 6: test loss' in run('train', *flags, STEPS='8')
  first = losses(tmp_path)
  assert 'resuming at step 8 of 40' in run('train', *flags)
  steps = [step for step, _ in losses(tmp_path)]
  assert steps == list(range(1, 41)) and losses(tmp_path)[:8] == first
  assert losses(tmp_path)[-1][1] < 0.9 * first[0][1]
