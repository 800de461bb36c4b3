"""Job folders, and the marks that name their runs."""

import pytest

from laser_pax.errors import UserError
from laser_pax.experiment import jobs

LASER, STANDARD = 'laser_pax.configs.C4LaserTiny', 'laser_pax.configs.C4StandardTiny'


def test_a_run_may_continue_with_another_layout_but_not_another_size():
  mark = jobs.mark_text('laser_pax.configs.C4LaserTiny', ['NUM_LAYERS=2'])
  moved = ['NUM_LAYERS=2', 'ICI_MESH_SHAPE=[1,4,1]', 'MICRO_BATCHES=2', 'POD=cpu']
  assert jobs.mark_text('laser_pax.configs.C4LaserTiny', moved) == mark
  assert jobs.mark_text('laser_pax.configs.C4LaserTiny', ['NUM_LAYERS=4']) != mark


def test_a_folder_without_checkpoints_belongs_to_no_run(tmp_path):
  jobs.write_mark(tmp_path, STANDARD)
  jobs.check_run(tmp_path, LASER)
  jobs.write_mark(tmp_path, LASER)
  assert (tmp_path / jobs.MARK).read_text() == LASER + '\n'


def test_a_folder_with_checkpoints_keeps_its_mark(tmp_path):
  jobs.write_mark(tmp_path, LASER)
  (tmp_path / 'checkpoints').mkdir()
  other_size = jobs.mark_text(LASER, ['NUM_LAYERS=2'])
  for mark in (STANDARD, other_size):
    with pytest.raises(UserError, match='name another --job_log_dir'):
      jobs.check_run(tmp_path, mark)
    jobs.write_mark(tmp_path, mark)
  jobs.check_experiment(tmp_path, other_size)  # Overrides may differ.
  with pytest.raises(UserError, match='name another folder'):
    jobs.check_experiment(tmp_path, STANDARD)
  assert (tmp_path / jobs.MARK).read_text() == LASER + '\n'


def test_a_value_is_the_same_however_it_is_written(tmp_path):
  jobs.write_mark(tmp_path, jobs.mark_text(LASER, ['LEARNING_RATE=1e-3', 'NUMERICS=paper']))
  (tmp_path / 'checkpoints').mkdir()
  jobs.check_run(tmp_path, jobs.mark_text(LASER, ['NUMERICS="paper"', 'LEARNING_RATE=0.001']))
  with pytest.raises(UserError, match='name another --job_log_dir'):
    jobs.check_run(tmp_path, jobs.mark_text(LASER, ['NUMERICS=paper', 'LEARNING_RATE=0.002']))


def test_checkpoints_without_a_mark_are_of_no_known_run(tmp_path):
  (tmp_path / 'checkpoints' / 'checkpoint_00000002').mkdir(parents=True)
  for mark in (LASER, STANDARD):
    with pytest.raises(UserError, match='write the name of their experiment into'):
      jobs.check_run(tmp_path, mark)
  (tmp_path / jobs.MARK).write_text('')  # It was cut.
  with pytest.raises(UserError, match='write the name of their experiment into'):
    jobs.check_run(tmp_path, LASER)
  (tmp_path / jobs.MARK).write_text(LASER)
  jobs.check_run(tmp_path, LASER)


def test_a_marks_overrides_give_the_experiment_again(tmp_path):
  from laser_pax import configs

  experiment = configs.C4LaserTiny()
  experiment.FPROP_DTYPE, experiment.NUM_LAYERS, experiment.NUMERICS = 'bfloat16', 2, 'paper'
  experiment.check_overrides()
  (tmp_path / jobs.MARK).write_text(experiment.job_mark())
  again = configs.C4LaserTiny()
  for name, value in jobs.read_mark(tmp_path).overrides.items():
    setattr(again, name, value)
  again.check_overrides()
  assert vars(again) == vars(experiment)
