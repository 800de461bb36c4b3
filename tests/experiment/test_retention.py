"""Which old checkpoints stay."""

import json

import pytest

from laser_pax.experiment import checkpoints, retention
from tests.experiment.test_checkpoints import save


@pytest.fixture
def job(tmp_path):
  for step in range(0, 12, 2):
    save(tmp_path, step)
  return tmp_path


def evaluate(job, values):
  for step, value in values.items():
    checkpoints.remember_figure(job, step, value)


def policy(every=None, best=1, better='lower'):
  return retention.Policy(every, best, better)


@pytest.mark.parametrize(
  ('kept', 'stay'),
  [
    (policy(best=0), set()),
    (policy(), {4}),
    (policy(best=2), {2, 4}),
    (policy(better='higher'), {6}),
    (policy(every=4, best=0), {4, 8}),
    (policy(every=6), {4, 6}),
  ],
)
def test_the_best_and_those_on_a_number_of_steps_stay(job, kept, stay):
  evaluate(job, {2: 3.0, 4: 2.0, 6: 5.0, 10: 4.0})
  assert retention.staying(job, kept, {0, 2, 4, 6, 8}) == stay


def test_among_equals_the_later_one_stays(job):
  evaluate(job, {2: 3.0, 6: 3.0})
  assert retention.staying(job, policy(), {0, 2, 4, 6}) == {6}


def test_a_best_one_that_is_no_longer_on_the_list_does_not_keep_an_old_one(job):
  evaluate(job, {2: 3.0, 10: 1.0})
  assert retention.staying(job, policy(), {0, 2, 4}) == set()


def test_the_last_whole_one_stays_whatever_its_age(job):
  for step in (4, 6, 8, 10):
    (job / f'checkpoints/checkpoint_{step:08d}/state/w/0.0').write_text('cut')
  assert retention.staying(job, policy(best=0), {0, 2, 4, 6}) == {2}


def test_a_deletion_that_is_cut_off_leaves_nothing_under_a_name(job, monkeypatch):
  monkeypatch.setattr(retention.shutil, 'rmtree', lambda folder: (folder / 'metadata').exists())
  retention.delete(job, 2)
  assert checkpoints.steps(job) == [0, 4, 6, 8, 10]
  assert checkpoints.survey(job).faults == {}


def test_pax_deletes_by_the_policy(job, monkeypatch):
  """What stays is deleted later, when it is best no longer."""
  from orbax.checkpoint.path import deleter

  monkeypatch.setattr(deleter.StandardCheckpointDeleter, 'delete_steps', None)
  retention.follow(job, policy())
  its = deleter.StandardCheckpointDeleter(0, job / 'checkpoints', None, None)
  evaluate(job, {0: 1.0})
  its.delete_steps([0, 2])
  assert checkpoints.steps(job) == [0, 4, 6, 8, 10]
  evaluate(job, {10: 0.5})
  its.delete_steps([4])
  assert checkpoints.steps(job) == [6, 8, 10]


def test_a_figure_comes_into_the_checkpoint_of_its_step(job, monkeypatch):
  from orbax.checkpoint import utils

  committed = []
  monkeypatch.setattr(
    utils, 'on_commit_callback', lambda temporary, *_: committed.append(temporary)
  )
  checkpoints.list_files_of_each.cache_clear()
  checkpoints.list_files_of_each()
  checkpoints.remember_figure(job, 12, 2.5)
  temporary = save(job, 99, with_list=False).rename(job / 'checkpoints/temporary')
  utils.on_commit_callback(temporary, job / 'checkpoints/checkpoint_00000012', 0.0)
  checkpoints.list_files_of_each.cache_clear()
  assert committed
  assert checkpoints.FIGURE not in json.loads((temporary / checkpoints.LIST).read_text())
  temporary.rename(job / 'checkpoints/checkpoint_00000012')
  assert checkpoints.figures(job) == {12: 2.5}
  assert checkpoints.fault(job, 12, checkpoints.damaged_files) is None
  checkpoints.remember_figure(job, 12, 2.25)  # It was evaluated again, elsewhere.
  assert checkpoints.figures(job)[12] == 2.25
  assert checkpoints.fault(job, 12, checkpoints.damaged_files) is None
