"""`analyse` of two jobs whose checkpoints PAX saved, from the command line."""

import json

import numpy as np
import pytest

from laser_pax import cli
from laser_pax.analysis import lines
from laser_pax.cli import analyse
from laser_pax.errors import UserError
from laser_pax.experiment import saved_models
from tests.support import random_checkpoint, stored_jobs
from tests.support.commands import QUICK_COMPILE, ROOT

STEPS = (random_checkpoint.STEP, random_checkpoint.STEP + 1)
NAMES = {lines.STANDARD: 'C4StandardTiny', lines.LASER: 'C4LaserTiny'}


@pytest.fixture(scope='module')
def run(commands):
  """Returns a function that runs the command, and returns what it printed."""

  def run(*args):
    env = {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': QUICK_COMPILE}
    result = commands.run('laser_pax', ['analyse', *map(str, args)], env=env, cwd=ROOT, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout

  return run


def told_of(printed):
  (line,) = (line for line in printed.splitlines() if ' reaches ' in line)
  return line


@pytest.mark.slow
def test_a_pair_is_measured_once_and_compared(run, tmp_path):
  jobs = [tmp_path / form for form in NAMES]
  for job, (form, name) in zip(jobs, NAMES.items(), strict=True):
    for step in STEPS:
      random_checkpoint.save(job, name, step, NUM_LAYERS=2)
    stored_jobs.write_progress(job, form)
  printed = run(*jobs, '--rows=8')
  assert printed.count(': measured') == 4
  assert "LASER reaches standard's best loss 4.0000, at step 40" in printed
  for job, form in zip(jobs, NAMES, strict=True):
    files = [lines.file_of(job / 'analysis', step, 8) for step in STEPS]
    assert sorted((job / 'analysis').glob('*.jsonl')) == files
    kept, other = ([json.loads(x) for x in file.read_text().splitlines()] for file in files)
    for first, second in zip(kept, other, strict=True):
      assert first['layer'] == second['layer'] and first != second | {'step': first['step']}
    described = [x for x in kept if x['kind'] == 'attention']
    assert [(x['layer'], x['attention']) for x in described] == [(0, form), (1, form)]
    assert all(0 < x['pairs'] <= 8 * 32 * 33 // 2 for x in described)
    norms = [x for x in kept if x['kind'] == 'gradients']
    assert {(x['layer'], x['attention']) for x in norms} == {(i, f) for i in (0, 1) for f in NAMES}
    assert all(np.isfinite(x[n]).all() and np.all(x[n]) for x in norms for n in lines.NORMS)
  pictures = {file.name for file in (jobs[0] / 'analysis').glob('*.png')}
  assert pictures == {
    'probabilities.png',
    'gradients.png',
    'values.png',
    'curves.png',
  }
  race = json.loads((jobs[0] / 'analysis' / 'pair.json').read_text())
  assert race['best'] == 4.0 and race['second'] == {'step': 36.0, 'minutes': pytest.approx(35 / 60)}
  again = run(*reversed(jobs), '--rows=8')
  assert ': measured' not in again and told_of(again) == told_of(printed)
  one = saved_models.find(str(jobs[0] / 'checkpoints' / f'checkpoint_{STEPS[0]:08d}'))
  assert analyse._checkpoints(str(one.folder), one) == [one]


def test_three_jobs_are_refused(capsys):
  with pytest.raises(SystemExit) as ended:
    cli.main(['analyse', 'a', 'b', 'c'])
  assert ended.value.code == 2 and 'expected one job or two, got 3' in capsys.readouterr().err


def test_jobs_are_told_by_the_ends_of_their_folders():
  assert analyse.job_names(['/a/run', '/b/run2']) == ['run', 'run2']
  assert analyse.job_names(['/a/1/run', '/a/2/run']) == ['1/run', '2/run']
  with pytest.raises(UserError, match='named twice'):
    analyse.job_names(['/a/run', '/a/run'])


def test_a_folder_of_results_is_that_of_one_job(tmp_path):
  place = tmp_path / 'J'
  place.mkdir()
  assert analyse.is_of(place, '/a/J')
  analyse._claim(place, '/a/J')
  analyse._claim(place, '/a/J')
  assert analyse.is_of(place, '/a/J') and not analyse.is_of(place, '/b/J')
  with pytest.raises(UserError, match='has the analysis of /a/J, not of /b/J: name another --out'):
    analyse._claim(place, '/b/J')


def test_results_of_a_bucket_need_a_folder(tmp_path):
  with pytest.raises(UserError, match='is in a bucket: name a local folder'):
    analyse.folder_of('gs://bucket/run', None)
  assert analyse.folder_of('gs://bucket/run', str(tmp_path)) == tmp_path / 'run'
