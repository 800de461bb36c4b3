"""Held-out rows of an experiment's data, as batches for `Restored.run`."""

import numpy as np
from praxis import pax_fiddle, py_utils

from laser_pax.errors import UserError
from laser_pax.experiment.base import Experiment

# Fields [B] that are 0 for a row which only fills the last batch.
_WEIGHTS = ('eval_sample_weights', 'weight')


def batches(experiment: Experiment, rows: int, multiple: int, at_once: int) -> list:
  """Returns the first rows of the split that the experiment is judged by.

  Args:
    experiment: The experiment.
    rows: Rows to return. There are fewer if the split has fewer, and as many as fill batches.
    multiple: Number that divides a batch.
    at_once: Greatest number of batches' rows, a multiple of `multiple`.

  Returns:
    Batches of one size, each a NestedMap of NumPy arrays.

  Raises:
    UserError: The data are not there, or the split has too few rows.
  """
  source = pax_fiddle.instantiate(_split(experiment))
  parts, count = [], 0
  while count < rows:
    try:
      part = _real_rows(source.get_next())
    except StopIteration:
      break
    parts.append(part)
    count += _size(part)
  if min(count, rows) < multiple:
    raise UserError(
      f'{count} rows of {experiment.METRIC.split or "the test split"} for {multiple} devices: '
      f'expected at least {multiple}; analyse on fewer devices, or ask for more with --rows'
    )
  size = min(at_once, min(count, rows) // multiple * multiple)
  whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  starts = range(0, min(count, rows) // size * size, size)
  return [
    py_utils.NestedMap({name: x[start : start + size] for name, x in whole.items()})
    for start in starts
  ]


def _split(experiment: Experiment) -> pax_fiddle.Config:
  """Returns the input that the experiment is judged by, else its first evaluation input."""
  inputs = [x for x in experiment.datasets() if not x.is_training]
  named = [x for x in inputs if x.name == experiment.METRIC.split]
  if not inputs:
    raise UserError(f'{type(experiment).__name__} has no data to evaluate on')
  return (named or inputs)[0]


def _real_rows(batch: py_utils.NestedMap) -> dict[str, np.ndarray]:
  """Returns the numbers of a batch, by field, without rows that only fill it."""
  arrays = {name: np.asarray(x) for name, x in batch.FlattenItems()}
  arrays = {
    name: x
    for name, x in arrays.items()
    if x.dtype.kind in 'fiub' and not name.startswith(py_utils.PROVENANCE_PREFIX)
  }
  weight = next((arrays[name] for name in _WEIGHTS if name in arrays), None)
  if weight is None:
    return arrays
  return {name: x[weight > 0] for name, x in arrays.items()}


def _size(part: dict[str, np.ndarray]) -> int:
  return len(next(iter(part.values())))
