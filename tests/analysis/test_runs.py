"""Runs are read from their records, and plotted."""

import json

import pytest

from laser_pax import configs
from laser_pax.analysis import runs
from laser_pax.cli import quickstart
from laser_pax.errors import UserError


def _write(folder, records):
  folder.mkdir(exist_ok=True)
  (folder / 'progress.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in records))


def _train(step, seconds, loss=2.0, rate=100.0):
  return {
    'kind': 'train',
    'step': step,
    'loss': loss,
    'tokens_per_second': rate,
    'seconds': seconds,
  }


def _eval(step, seconds, value, label='loss'):
  return {'kind': 'eval', 'step': step, label: value, 'seconds': seconds}


def test_the_last_records_of_a_resumed_run_count_and_its_minutes_add_up(tmp_path):
  records = [
    _train(1, 10, rate=None),
    _train(2, 70, loss=9.0, rate=50.0),
    # The run was killed, and continued from step 1.
    _train(2, 5, loss=8.0, rate=100.0),
    _train(3, 35, loss=7.0, rate=200.0),
    _eval(3, 65, 7.5),
  ]
  _write(tmp_path, records)
  run = runs.read_run('LASER', tmp_path)
  assert run.train == {1: 2.0, 2: 8.0, 3: 7.0}
  assert run.last == 7.5
  assert run.minutes == pytest.approx(2.0)
  assert run.units_per_second == 100.0


def test_a_run_without_a_record_or_an_evaluation_is_refused(tmp_path):
  with pytest.raises(UserError, match=r'progress.jsonl does not exist'):
    runs.read_run('x', tmp_path)
  _write(tmp_path, [_train(1, 1)])
  with pytest.raises(UserError, match='no evaluation'):
    runs.read_run('x', tmp_path)


def test_a_line_that_was_cut_is_left_out(tmp_path):
  _write(tmp_path, [_train(1, 1), _train(2, 2), _eval(2, 3, 0.5)])
  with (tmp_path / 'progress.jsonl').open('a') as file:
    file.write('{"kind": "tr')
  assert runs.read_run('x', tmp_path).last == 0.5


def test_smoothing_keeps_a_constant_and_leaves_skipped_losses_out():
  steps, means = runs.smooth({1: 2.0, 2: None, 3: 2.0, 4: 2.0}, window=2)
  assert (steps, means) == ([1, 3, 4], [2.0, 2.0, 2.0])
  assert runs.smooth({1: 1.0, 2: 3.0, 3: 5.0}, window=2)[1] == [1.0, 2.0, 4.0]


def test_figures_are_called_by_their_split(tmp_path):
  records = [_train(1, 1), _train(2, 2), _eval(2, 3, 0.5, 'accuracy') | {'split': 'validation'}]
  records.append(_eval(2, 3, 0.9, 'accuracy') | {'split': 'train_eval'})
  _write(tmp_path, records)
  run = runs.read_run('LASER', tmp_path, 'accuracy', 'validation')
  assert run.last == 0.5
  experiment = configs.ImageNetLaserViTTiny()
  table = quickstart.result_table([run], experiment, ('by frequency', 0.4))
  assert [column.header for column in table.columns][1] == 'validation accuracy'
  runs.plot_runs([run], 'accuracy', ('by frequency', 0.4), tmp_path / 'curves.svg')
  # Letters are shapes in an SVG file, and each text is told in a comment.
  assert '<!-- LASER, validation: 0.5000 at the end -->' in (tmp_path / 'curves.svg').read_text()


@pytest.mark.parametrize('label', ['loss', 'accuracy'])
def test_plot_is_a_picture(tmp_path, label):
  _write(tmp_path / 'a', [_train(1, 1), _train(2, 2), _eval(2, 3, 0.5, label)])
  run = runs.read_run('a', tmp_path / 'a', label)
  assert run.last == 0.5 and run.split == 'test'
  picture = tmp_path / 'plots' / 'curves.png'
  runs.plot_runs([run, run], label, ('by frequency', 0.4), picture)
  assert picture.read_bytes().startswith(b'\x89PNG')
