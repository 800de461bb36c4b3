"""Search spaces: how a file of configs/sweeps becomes the points of a sweep."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
import os
import tomllib
from collections.abc import Mapping
from typing import Any

from laser_pax import folders
from laser_pax.errors import UserError
from laser_pax.experiment import overrides

Point = dict[str, Any]

# What is tuned: the first experiment, whose best point the rest then train; each; or nothing.
FIRST, EACH, NOTHING = 'first', 'each', 'nothing'
_TUNE = (FIRST, EACH, NOTHING)
_KINDS = ('points', 'grid', 'ranges')
_FIELDS = ('experiments', 'tune', 'seeds', 'fixed', 'draws', 'draw_seed', *_KINDS)
_SCALES = ('linear', 'log')
_DIGITS = 6  # Significant digits of a drawn value.
# The attributes that a seed of the file sets.
SEED_ATTRIBUTES = ('INIT_SEED', 'DATA_SEED')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
  """A sweep: points, each of which experiments are trained at.

  Attributes:
    name: Name of the sweep, that of its file.
    experiments: Names of the experiments.
    points: Attributes and their values, of each point. Point n of the console is points[n - 1].
    fixed: Attributes that all points have.
    tune: 'first': the points train the first experiment, and its best point the rest. 'each': the
      points train each, and each has a best point. 'nothing': they train each, to be compared.
    seeds: Seeds with which each point is trained, one after another. Empty: those of the
      experiment's own.
  """

  name: str
  experiments: tuple[str, ...]
  points: tuple[Point, ...]
  fixed: Point = dataclasses.field(default_factory=dict)
  tune: str = FIRST
  seeds: tuple[int, ...] = ()

  def dimensions(self) -> list[str]:
    """Returns the attributes in which points differ."""
    names = dict.fromkeys(name for point in self.points for name in point)
    return [
      name
      for name in names
      if any(point.get(name) != self.points[0].get(name) for point in self.points)
    ]


def read(file: os.PathLike | str) -> Sweep:
  """Reads a sweep from its file.

  Args:
    file: A toml file, as docs/sweeps.md describes it.

  Raises:
    UserError: It is missing, is no toml, or has a field that is wrong.
  """
  path = folders.resolve_local(file)
  try:
    fields = tomllib.loads(path.read_text())
  except OSError as e:
    raise UserError(f'{folders.shown(file)} cannot be read: {e.strerror}') from e
  except ValueError as e:  # It is not toml, or not UTF-8.
    raise UserError(f'{folders.shown(file)} is no toml: {e}') from e
  try:
    return parse(path.stem, fields)
  except UserError as e:
    raise UserError(f'{folders.shown(file)}: {e}') from e


def parse(name: str, fields: Mapping[str, Any]) -> Sweep:
  """Returns the sweep of a file's fields.

  Args:
    name: Name of the sweep.
    fields: The contents of the toml file.

  Raises:
    UserError: A field is unknown, missing or wrong.
  """
  _check_names(fields, _FIELDS, 'field')
  kinds = [kind for kind in _KINDS if kind in fields]
  if len(kinds) != 1:
    raise UserError(f'expected one of {", ".join(_KINDS)}; got {" and ".join(kinds) or "none"}')
  if 'ranges' not in kinds and (stray := {'draws', 'draw_seed'} & fields.keys()):
    raise UserError(f'{min(stray)} goes with ranges: leave it out, or give ranges')
  experiments = _listed(fields, 'experiments', str)
  if not experiments:
    raise UserError('expected experiments, as in experiments = ["C4StandardTiny", "C4LaserTiny"]')
  tune = fields.get('tune', FIRST)
  if tune not in _TUNE:
    raise UserError(f'tune = {tune!r}: expected one of {", ".join(_TUNE)}')
  sweep = Sweep(
    name=name,
    experiments=experiments,
    points=tuple(_points(kinds[0], fields)),
    fixed=_point(fields.get('fixed', {}), 'fixed'),
    tune=tune,
    seeds=_listed(fields, 'seeds', int),
  )
  _check_points(sweep)
  return sweep


def _check_names(fields: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
  for name in fields:
    if name not in known:
      near = difflib.get_close_matches(name, known, n=3)
      hint = f'did you mean {" or ".join(near)}?' if near else f'expected {", ".join(known)}'
      raise UserError(f'unknown {what} {name!r}; {hint}')


def _listed(fields: Mapping[str, Any], name: str, kind: type) -> tuple[Any, ...]:
  values = fields.get(name, [])
  if not isinstance(values, list) or not all(type(value) is kind for value in values):
    raise UserError(f'{name} = {values!r}: expected a list of {kind.__name__}')
  if len({*values}) < len(values):
    raise UserError(f'{name} = {values!r}: one is there twice')
  return tuple(values)


def _points(kind: str, fields: Mapping[str, Any]) -> list[Point]:
  """Returns the points that a file lists, spans as a grid, or draws from ranges."""
  if kind == 'points':
    if not isinstance(fields[kind], list):
      raise UserError('points: expected a list of tables, as in points = [{LEARNING_RATE = 1e-3}]')
    return [_point(point, f'point {i}') for i, point in enumerate(fields[kind], start=1)]
  table = _point(fields[kind], kind)
  if not table:
    raise UserError(f'[{kind}] is empty: expected attributes')
  if kind == 'ranges':
    return _drawn(table, fields)
  for name, values in table.items():
    if not isinstance(values, list) or not values:
      raise UserError(f'grid: {name} = {values!r}: expected a list of values')
  return [dict(zip(table, values, strict=True)) for values in itertools.product(*table.values())]


def _point(table: Any, where: str) -> Point:
  """Returns a table of attributes. Text stands for the value that it has on the command line."""
  if not isinstance(table, dict):
    raise UserError(f'{where}: expected a table of attributes, such as {{LEARNING_RATE = 1e-3}}')
  return {name: _plain(name, value) for name, value in table.items()}


def _plain(name: str, value: Any) -> Any:
  """Returns a value as JSON gives it back, because it is compared with what was written so."""
  try:
    return json.loads(json.dumps(overrides.read(value) if isinstance(value, str) else value))
  except TypeError as e:
    raise UserError(f'{name} = {value!r}: expected a number, a text, true, false or a list') from e


def _drawn(ranges: Point, fields: Mapping[str, Any]) -> list[Point]:
  """Draws points by scipy's scrambled Halton sequence, whose first points do not depend on more.

  A number u of [0, 1) becomes low + u (high - low), or low (high / low)^u on the scale 'log'.
  """
  from scipy.stats import qmc

  count, seed = fields.get('draws'), fields.get('draw_seed', 0)
  if type(count) is not int or count < 1:
    raise UserError(f'draws = {count!r}: expected the number of points to draw from the ranges')
  if type(seed) is not int or seed < 0:
    raise UserError(f'draw_seed = {seed!r}: expected a whole number, 0 or more')
  for name, span in ranges.items():
    _check_range(name, span)
  draws = qmc.Halton(len(ranges), scramble=True, rng=seed).random(count)
  return [
    {name: _value(u, span) for u, (name, span) in zip(draw, ranges.items(), strict=True)}
    for draw in draws.tolist()
  ]


def _check_range(name: str, span: Any) -> None:
  """Checks one range.

  Raises:
    UserError: It is no range.
  """
  example = f'{name} = {{low = 1e-4, high = 1e-2, scale = "log"}}'
  if not isinstance(span, dict) or {'low', 'high'} - span.keys():
    raise UserError(f'ranges: {name} = {span!r}: expected a range, as in {example}')
  _check_names(span, ('low', 'high', 'scale'), f'field of {name}')
  low, high, scale = span['low'], span['high'], span.get('scale', 'linear')
  if scale not in _SCALES:
    raise UserError(f'{name}: scale = {scale!r}: expected {" or ".join(_SCALES)}')
  if not all(type(end) in (int, float) and math.isfinite(end) for end in (low, high)):
    raise UserError(f'{name}: low = {low!r}, high = {high!r}: expected numbers, as in {example}')
  if not low < high or (scale == 'log' and low <= 0):
    raise UserError(f'{name}: expected low below high, and above 0 on the scale log; got {span}')


def _value(u: float, span: Mapping[str, Any]) -> float | int:
  """Returns the value at u of [0, 1) of a range. It is whole where both ends are."""
  low, high = span['low'], span['high']
  value = low * (high / low) ** u if span.get('scale') == 'log' else low + u * (high - low)
  is_whole = type(low) is type(high) is int
  return round(value) if is_whole else float(f'{value:.{_DIGITS}g}')


def _check_points(sweep: Sweep) -> None:
  """Checks that there are points, that none is there twice, and that each attribute is set once.

  Raises:
    UserError: They are not.
  """
  if not sweep.points:
    raise UserError('there is no point: expected at least one')
  seen: list[Point] = []
  for number, point in enumerate(sweep.points, start=1):
    if point in seen:
      raise UserError(f'points {seen.index(point) + 1} and {number} are the same: {words(point)}')
    seen.append(point)
    if twice := sorted(point.keys() & sweep.fixed.keys()):
      raise UserError(f'{twice[0]} is fixed, and point {number} sets it too: set it once')
    if sweep.seeds and (twice := sorted({*point, *sweep.fixed}.intersection(SEED_ATTRIBUTES))):
      raise UserError(f'seeds sets {twice[0]}, and so does point {number} or fixed: set it once')


def words(point: Point) -> str:
  """Returns a point in words: `LEARNING_RATE=0.001 NUM_LAYERS=2`."""
  return ' '.join(f'{name}={value}' for name, value in point.items()) or 'the experiment as it is'
