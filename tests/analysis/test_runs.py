"""Runs are read from their records, and plotted."""

import json

import pytest

from laser_pax import configs
from laser_pax.analysis import runs, summary
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


def _evaluated(figures, name='x'):
  minutes = {step: step / 10 for step in figures}
  return runs.Run(name, 'test', {}, figures, 1.0, 1.0, minutes)


def test_a_figure_is_reached_between_two_evaluations():
  run = _evaluated({10: 5.0, 20: 4.0, 30: 4.5, 40: 3.0})
  assert runs.best(run, 'lower') == (40, 3.0)
  assert runs.reached(run, 4.25, 'lower') == (17.5, 1.75)
  assert runs.reached(run, 4.0, 'lower') == (20.0, 2.0)
  assert runs.reached(run, 6.0, 'lower') == (10.0, 1.0)
  assert runs.reached(run, 2.0, 'lower') is None


def test_a_higher_figure_may_be_the_better_one():
  run = _evaluated({10: 0.1, 20: None, 30: 0.3, 40: 0.2})
  assert runs.best(run, 'higher') == (30, 0.3)
  assert runs.reached(run, 0.2, 'higher') == (20.0, 2.0)
  assert runs.reached(run, 0.4, 'higher') is None


def test_a_run_without_a_finite_figure_has_no_best_and_no_race():
  nothing, run = _evaluated({10: None}), _evaluated({10: 5.0})
  assert runs.best(nothing, 'lower') is None
  assert summary.race(nothing, run, 'lower') is summary.race(run, nothing, 'lower') is None
  assert summary.race(run, run, 'lower').second.step == 10


def test_a_process_that_started_later_counts_from_its_own_first_record(tmp_path):
  records = [
    {**_train(step, seconds), 'started': started}
    for step, (seconds, started) in enumerate([(60, 1), (70, 1), (200, 2), (210, 2)], start=1)
  ]
  _write(tmp_path, [*records, {**_eval(4, 210, 7.0), 'started': 2}])
  assert runs.read_run('x', tmp_path).minutes == pytest.approx(20 / 60)


def test_skipped_steps_of_a_resumed_run_add_up(tmp_path):
  skipped = [0, 1, 1, 0, 2]  # The fourth is the first of a new process.
  records = [
    _train(step + 1, seconds) | {'skipped_steps': count}
    for step, (count, seconds) in enumerate(zip(skipped, [1, 2, 3, 1, 2], strict=True))
  ]
  _write(tmp_path, [*records, _eval(5, 3, 7.5)])
  run = runs.read_run('x', tmp_path)
  assert run.skipped_steps == 3
  assert run.minutes_at == {5: pytest.approx(4 / 60)}


def test_a_plot_needs_no_chance_and_no_figure_of_each_evaluation(tmp_path):
  _write(tmp_path, [_train(1, 1), _train(2, 2), _eval(1, 1, None), _eval(2, 3, 0.5)])
  runs.plot_runs([runs.read_run('a', tmp_path)], 'loss', None, tmp_path / 'curves.png')
  assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')
