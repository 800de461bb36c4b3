"""Overrides of capital attributes: how a word becomes a value, and whether it fits.

jax and pydantic are imported where they are used, so that a program that only reads starts fast.
"""

from __future__ import annotations

import ast
import enum
import math
from collections.abc import Callable, Sequence
from typing import Any

from laser_pax.errors import UserError

_SIMPLE = (bool, int, float, str)


def read(text: str) -> Any:
  """Returns the value that a word of the command line stands for: a Python literal, or the word."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return text


def of_flags(flags: Sequence[str]) -> dict[str, Any]:
  """Returns the values that flags `--fdl.NAME=VALUE` give to attributes, by name.

  Raises:
    UserError: A flag has another form.
  """
  changed = {}
  for flag in flags:
    name, _, value = flag.removeprefix('--fdl.').partition('=')
    if not flag.startswith('--fdl.') or not value:
      raise UserError(f'unexpected {flag!r}: attributes are changed by --fdl.NAME=VALUE')
    changed[name] = read(value)
  return changed


def fit(cls: type, name: str, value: Any) -> Any:
  """Returns an override's value in the type of its attribute: 2 for 2.0, where that is an integer.

  Args:
    cls: Class of the experiment.
    name: Name of an attribute that the class has.
    value: Value of the override.

  Raises:
    UserError: The attribute cannot have this value.
  """
  import jax.numpy as jnp
  import pydantic

  default = getattr(cls, name, None)
  try:
    if name.endswith('DTYPE') and jnp.issubdtype(value, jnp.floating):
      return jnp.dtype(value).type
    if isinstance(value, bool) and not isinstance(default, bool):
      raise TypeError('Input should not be True or False')
    fitting = pydantic.TypeAdapter(_type(cls, name)).validate_python(value)
    if isinstance(fitting, float) and not math.isfinite(fitting):
      raise TypeError('Input should be a finite number')
    return fitting
  except (pydantic.ValidationError, TypeError) as e:
    errors = e.errors() if isinstance(e, pydantic.ValidationError) else [{'msg': str(e)}]
    expected = ', or: '.join(dict.fromkeys(error['msg'] for error in errors))
    raise UserError(
      f'{cls.__name__}.{name} = {value!r}: {expected}; without the override it is {default!r}'
    ) from e


def _type(cls: type, name: str) -> Any:
  """Returns an attribute's type, by its annotation, else by its default."""
  import pydantic

  annotations = (vars(base).get('__annotations__', {}).get(name) for base in cls.__mro__)
  kind = next((x for x in annotations if x is not None and not isinstance(x, str)), None)
  if kind is None:
    default = getattr(cls, name, None)
    kind = Any if default is None else type(default)
  is_simple = not isinstance(kind, type) or issubclass(kind, enum.Enum) or kind in _SIMPLE
  return kind if is_simple else pydantic.InstanceOf[kind]


class FollowsFrom:
  """A capital attribute whose value follows from others, unless it is overridden."""

  def __init__(self, rule: str, compute: Callable[[Any], Any]):
    """Takes the rule in words, and the function of the experiment that computes the value."""
    self._rule, self._compute = rule, compute

  def __get__(self, experiment: Any, cls: type) -> Any:
    """Returns the value; of the class, this object."""
    return self if experiment is None else self._compute(experiment)

  def __repr__(self) -> str:
    return self._rule
