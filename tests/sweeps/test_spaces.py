"""Files of search spaces: their points, and what is refused."""

import math

import pytest

from laser_pax.errors import UserError
from laser_pax.sweeps import plans, spaces

EXPERIMENTS = {'experiments': ['C4StandardTiny']}
RANGE = {'low': 1e-4, 'high': 1e-2, 'scale': 'log'}


def parse(**fields):
  return spaces.parse('x', EXPERIMENTS | fields)


def test_a_grid_has_each_combination():
  sweep = parse(grid={'LEARNING_RATE': [1, 2, 3], 'WEIGHT_DECAY': [0, 0.1]})
  pairs = {(point['LEARNING_RATE'], point['WEIGHT_DECAY']) for point in sweep.points}
  assert pairs == {(a, b) for a in (1, 2, 3) for b in (0, 0.1)}
  assert len(sweep.points) == 6
  assert sweep.dimensions() == ['LEARNING_RATE', 'WEIGHT_DECAY']


def test_only_attributes_that_differ_are_dimensions():
  sweep = parse(points=[{'A': 1, 'B': 2}, {'A': 1, 'B': 3}, {'A': 1, 'B': 3, 'C': 0}])
  assert sweep.dimensions() == ['B', 'C']


@pytest.mark.parametrize('scale', ['log', 'linear'])
def test_draws_fill_a_range_evenly_on_its_scale(scale):
  sweep = parse(ranges={'A': RANGE | {'scale': scale}, 'B': {'low': 0, 'high': 1}}, draws=64)
  values = [point['A'] for point in sweep.points]
  assert min(values) >= 1e-4 and max(values) <= 1e-2
  position = (
    (lambda x: math.log(x / 1e-4) / math.log(100)) if scale == 'log' else (lambda x: x * 100)
  )
  quarters = [sum(k <= 4 * position(x) < k + 1 for x in values) for k in range(4)]
  assert min(quarters) >= 12, quarters  # Random numbers would often miss this.


def test_more_draws_keep_the_first_and_another_seed_changes_all():
  few, many = (parse(ranges={'A': RANGE}, draws=n).points for n in (5, 50))
  assert many[:5] == few
  assert not {p['A'] for p in parse(ranges={'A': RANGE}, draws=5, draw_seed=1).points} & {
    p['A'] for p in few
  }


def test_ranges_of_whole_numbers_have_whole_draws():
  points = parse(ranges={'N': {'low': 1, 'high': 100}, 'X': RANGE}, draws=9).points
  assert all(type(point['N']) is int and 1 <= point['N'] <= 100 for point in points)


def test_text_is_what_it_is_on_the_command_line():
  (point,) = parse(points=[{'A': 'None', 'B': '[1, 2]', 'C': 'bfloat16', 'D': '(1, 2)'}]).points
  assert point == {'A': None, 'B': [1, 2], 'C': 'bfloat16', 'D': [1, 2]}
  (run,) = plans.planned(parse(points=[point]), None)
  assert run.flags() == ['--fdl.A=None', '--fdl.B=[1, 2]', '--fdl.C=bfloat16', '--fdl.D=[1, 2]']


@pytest.mark.parametrize(
  'fields, words',
  [
    ({}, 'expected one of points, grid, ranges; got none'),
    ({'points': [{}], 'grid': {'A': [1]}}, 'got points and grid'),
    ({'pionts': [{}]}, "unknown field 'pionts'; did you mean points?"),
    ({'points': []}, 'no point'),
    ({'points': {}}, 'expected a list of tables'),
    ({'points': [1]}, 'point 1: expected a table'),
    ({'points': [{'A': 1}, {'A': 2}, {'A': 1}]}, 'points 1 and 3 are the same: A=1'),
    ({'points': [{'A': 1}], 'fixed': {'A': 2}}, 'A is fixed, and point 1 sets it too'),
    ({'points': [{'DATA_SEED': 1}], 'seeds': [1]}, 'seeds sets DATA_SEED'),
    ({'points': [{}], 'fixed': {'INIT_SEED': 1}, 'seeds': [1]}, 'seeds sets INIT_SEED'),
    ({'points': [{}], 'seeds': [1, 1]}, 'one is there twice'),
    ({'points': [{}], 'seeds': ['1']}, 'expected a list of int'),
    ({'points': [{}], 'tune': 'all'}, "tune = 'all': expected one of first, each, nothing"),
    ({'points': [{}], 'draws': 3}, 'draws goes with ranges'),
    ({'points': [{}], 'experiments': []}, 'expected experiments'),
    ({'points': [{}], 'experiments': 'X'}, 'expected a list of str'),
    ({'grid': {}}, r'\[grid\] is empty'),
    ({'grid': {'A': 1}}, 'grid: A = 1: expected a list'),
    ({'ranges': {'A': RANGE}}, 'draws = None: expected the number of points'),
    ({'ranges': {'A': RANGE}, 'draws': 0}, 'draws = 0'),
    ({'ranges': {'A': RANGE}, 'draws': 1, 'draw_seed': -1}, 'draw_seed = -1'),
    ({'ranges': {'A': [1, 2]}, 'draws': 1}, 'expected a range, as in A = {low'),
    ({'ranges': {'A': {'low': 1}}, 'draws': 1}, 'expected a range'),
    ({'ranges': {'A': RANGE | {'hihg': 1}}, 'draws': 1}, 'did you mean high'),
    ({'ranges': {'A': RANGE | {'scale': 'ln'}}, 'draws': 1}, "scale = 'ln'"),
    ({'ranges': {'A': RANGE | {'low': 0}}, 'draws': 1}, 'above 0 on the scale log'),
    ({'ranges': {'A': {'low': 2, 'high': 1}}, 'draws': 1}, 'expected low below high'),
    ({'ranges': {'A': {'low': '2', 'high': 1}}, 'draws': 1}, 'expected numbers'),
  ],
)
def test_a_wrong_file_is_refused_with_the_field(fields, words):
  with pytest.raises(UserError, match=words):
    parse(**fields)


def test_a_file_that_is_none_is_refused_by_name(tmp_path):
  with pytest.raises(UserError, match='no.toml cannot be read: No such file'):
    spaces.read(tmp_path / 'no.toml')
  (tmp_path / 'cut.toml').write_text('points = [')
  with pytest.raises(UserError, match='cut.toml is no toml'):
    spaces.read(tmp_path / 'cut.toml')
  (tmp_path / 'empty.toml').write_text('')
  with pytest.raises(UserError, match='empty.toml: expected one of points'):
    spaces.read(tmp_path / 'empty.toml')
