"""A training that is disturbed in each way ends as one that nothing disturbed.

`python -m tests.faults` disturbs a decoder for longer (docs/reliability.md).
"""

import random
import re

import pytest

from laser_pax.experiment import checkpoints, jobs
from tests.faults import lives

STEPS = 30


@pytest.fixture(scope='module')
def make(commands, tmp_path_factory):
  root = tmp_path_factory.mktemp('lives')

  def make(name):
    return lives.Training(commands, root / name, {}, STEPS, experiment=lives.BAGS)

  return make


@pytest.fixture(scope='module')
def whole(make):
  training = make('whole')
  training.finish(JAX_LOG_COMPILES='1')
  return training


@pytest.mark.slow
def test_an_evaluation_compiles_no_step_for_which_sigterm_would_wait(whole):
  (log,) = (whole.folder / 'logs').iterdir()
  before, evaluation, after = log.read_text().partition('Starting eval_step')
  compiles = re.compile(r'Compiling (?:jit\()?_wrapped_step_fn')
  assert evaluation and compiles.search(before)
  assert not compiles.search(after)


@pytest.mark.slow
def test_disturbed_in_each_way_it_ends_the_same(make, whole):
  disturbed, rng = make('disturbed'), random.Random(0)
  for name in lives.DISTURBANCES:
    disturbed.live(name, rng)
  disturbed.finish()
  lives.check_equal(disturbed, whole)
  lives.check_no_secret(disturbed)
  best = min(whole.evaluations(), key=whole.evaluations().get)
  assert {best, 24, 27, 30} <= set(checkpoints.steps(whole.folder))
  assert {best, 27, 30} <= set(checkpoints.steps(disturbed.folder))


@pytest.mark.slow
def test_a_second_training_in_a_folder_is_refused(make):
  training = make('shared')
  (first,) = training.start()
  while not (training.folder / jobs.LOCK).exists() or not training.recorded():
    assert first.poll() is None, first.stdout + first.stderr
  (second,) = training.start()
  assert second.wait() == 2
  told = second.stderr
  assert f'{training.folder} is held by a training that runs, process {first.pid} on' in told
  assert first.wait() == 0, first.stderr
  assert sorted(training.recorded()) == [*range(1, STEPS + 1)]


@pytest.mark.slow
def test_a_folder_that_vanishes_ends_the_training_in_one_line(make):
  training = make('vanishing')
  (process,) = training.start()
  while len(training.recorded()) < 4:
    assert process.poll() is None, process.stdout + process.stderr
  training.folder.rename(training.folder.with_name('elsewhere'))
  code, told = process.wait(), process.stderr
  assert code == 2 and len(told.splitlines()) == 1, (code, told)
  assert told.startswith('error: ') and str(training.folder) in told
