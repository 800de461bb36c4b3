"""The best point of a sweep as a Python module: a registered subclass of each experiment."""

from __future__ import annotations

import enum
import inspect
import pathlib
from collections.abc import Mapping
from typing import Any

from laser_pax.experiment import overrides
from laser_pax.sweeps import plans
from laser_pax.sweeps.spaces import Point, Sweep

_PREFIX = 'Tuned'


def module_name(points: Mapping[str, int]) -> str:
  """Returns the name of the module of some points, such as 'tuned_point_03'.

  Args:
    points: Number of each experiment's best point.
  """
  return 'tuned_point_' + '_'.join(f'{number:02d}' for number in dict.fromkeys(points.values()))


def class_name(experiment: str) -> str:
  """Returns the name of an experiment's subclass in such a module."""
  return f'{_PREFIX}{plans.short(experiment)}'


def write(
  sweep: Sweep, points: Mapping[str, int], classes: Mapping[str, type], folder: pathlib.Path
) -> tuple[pathlib.Path, list[str]]:
  """Writes the module, unless there is a file of its name.

  Args:
    sweep: The sweep.
    points: Number of each experiment's best point.
    classes: The experiments' classes, by the names that the sweep gives them.
    folder: Folder to write to.

  Returns:
    The file, and the names of its classes.
  """
  file = folder / f'{module_name(points)}.py'
  text, names = source(sweep, points, classes)
  if not file.exists():
    file.write_text(text)
  return file, names


def source(
  sweep: Sweep, points: Mapping[str, int], classes: Mapping[str, type]
) -> tuple[str, list[str]]:
  """Returns the module's text, and the names of its classes.

  A LASER twin of the first experiment at the same point sets nothing: it has the mixin in front of
  the standard twin. If the sweep has no LASER experiment, such a twin is added.

  Args:
    sweep: The sweep.
    points: Number of each experiment's best point.
    classes: The experiments' classes, by the names that the sweep gives them.
  """
  from laser_pax.experiment.laser import LaserMixin  # It imports PAX.

  imports = {'from paxml import experiment_registry'}
  bodies, names = [], []
  first = sweep.experiments[0]
  for experiment, number in points.items():
    cls, name = classes[experiment], class_name(experiment)
    is_twin = number == points.get(first) and _is_twin(cls, classes[first])
    if is_twin:
      bodies.append(_class(name, f'LaserMixin, {class_name(first)}', _line(experiment, number), []))
    else:
      values = {**sweep.fixed, **sweep.points[number - 1]}
      imports.add(f'from {cls.__module__} import {cls.__name__}')
      lines = _assignments(cls, values, imports)
      bodies.append(_class(name, cls.__name__, _line(experiment, number), lines))
    names.append(name)
  if first in points and not any(issubclass(classes[name], LaserMixin) for name in points):
    name = _twin_name(first)
    bodies.append(
      _class(name, f'LaserMixin, {class_name(first)}', f'LASER twin of {class_name(first)}.', [])
    )
    names.append(name)
  if any('LaserMixin' in body for body in bodies):
    imports.add('from laser_pax.configs import LaserMixin')
  head = f'"""The best of the sweep {sweep.name}. Registered when PAX imports this module."""'
  return '\n\n\n'.join([f'{head}\n\n' + '\n'.join(sorted(imports)), *bodies]) + '\n', names


def _is_twin(cls: type, standard: type) -> bool:
  """Returns whether a class is LASER's mixin in front of a standard experiment, and no more."""
  from laser_pax.experiment.laser import LaserMixin

  return issubclass(cls, LaserMixin) and cls.__bases__ == (LaserMixin, standard)


def _twin_name(standard: str) -> str:
  name = class_name(standard)
  return name.replace('Standard', 'Laser') if 'Standard' in name else f'{name}Laser'


def _line(experiment: str, number: int) -> str:
  return f'{plans.short(experiment)} at point {number}.'


def _class(name: str, bases: str, line: str, assignments: list[str]) -> str:
  """Returns the source of a registered class."""
  lines = ['@experiment_registry.register', f'class {name}({bases}):', f'  """{line}"""']
  return '\n'.join([*lines, *([''] if assignments else []), *assignments])


def _assignments(cls: type, values: Point, imports: set[str]) -> list[str]:
  """Returns a line for each attribute, and adds what they need to the imports."""
  lines = []
  for name, value in values.items():
    text, needed = _literal(overrides.fit(cls, name, value))
    imports.update(needed)
    lines.append(f'  {name} = {text}')
  return lines


def _literal(value: Any) -> tuple[str, set[str]]:
  """Returns the source of a value, and the import that it needs."""
  if isinstance(value, enum.Enum):
    kind = type(value)
    return f'{kind.__name__}.{value.name}', {f'from {kind.__module__} import {kind.__name__}'}
  if inspect.isclass(value):  # A dtype, such as jnp.float32.
    return f'jnp.{value.__name__}', {'import jax.numpy as jnp'}
  return repr(value), set()
