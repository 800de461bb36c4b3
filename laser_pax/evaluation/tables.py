"""Tables of an evaluation: each task, the mean, and the paired difference of two models."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# Metrics that are shares between 0 and 1. A task is judged by the first that it has [ours].
SHARES = ('acc', 'exact_match', 'em', 'f1', 'acc_norm')

RESAMPLES = 10_000
SEED = 0
# Counts that are drawn at a time: 80 MB.
_COUNTS = 10_000_000


class Result(NamedTuple):
  """What a model reached at a task.

  Attributes:
    task: Name of the task.
    metric: Name of the metric that it is judged by.
    value: The metric.
    error: Standard error of the mean over examples, s / sqrt(n). None where the metric is no mean,
      or where there is one example alone.
    examples: What each example gave, in the order of the data. Empty where the metric is no mean.
    count: Number of examples.
  """

  task: str
  metric: str
  value: float
  error: float | None
  examples: np.ndarray
  count: int

  @property
  def is_share(self) -> bool:
    """Whether the metric is a share, and so belongs to the mean over tasks."""
    return self.metric in SHARES


class Mean(NamedTuple):
  """The mean over tasks whose metric is a share.

  Attributes:
    value: The mean.
    error: Its standard error; None if one of the tasks has none.
    tasks: Number of tasks.
  """

  value: float
  error: float | None
  tasks: int


class Difference(NamedTuple):
  """How much one model is better than another.

  Attributes:
    value: Their difference.
    relative: The difference, as a share of the other's value; None where that is 0.
    interval: The 95% confidence interval of the difference, by the bootstrap over examples. None
      where the metric is no mean over examples.
  """

  value: float
  relative: float | None
  interval: tuple[float, float] | None


def results(evaluation: Mapping[str, Any]) -> list[Result]:
  """Returns the result of each task.

  Args:
    evaluation: lm_eval's results, with samples.
  """
  return [
    _result(task, metrics, evaluation['samples'][task])
    for task, metrics in evaluation['results'].items()
    if task in evaluation['samples']  # Groups have none.
  ]


def _result(task: str, metrics: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> Result:
  names = [name for name in metrics if ',' in name and '_stderr,' not in name]
  place = {name: i for i, name in enumerate(SHARES)}
  key = min(names, key=lambda name: place.get(name.split(',')[0], len(SHARES)))
  metric, filter_name = key.split(',')
  chosen = [sample for sample in samples if sample['filter'] == filter_name]
  value, error, examples = float(metrics[key]), None, np.zeros(0)
  if metric in SHARES:
    chosen.sort(key=lambda sample: sample['doc_id'])
    values = np.array([sample[metric] for sample in chosen], dtype=object)
    if all(np.ndim(x) == 0 for x in values) and np.isclose(values.astype(float).mean(), value):
      examples = values.astype(float)
      if len(examples) > 1:
        error = float(examples.std(ddof=1) / np.sqrt(len(examples)))
  return Result(task, metric, value, error, examples, len(chosen))


def mean(rows: Sequence[Result]) -> Mean | None:
  """Returns the mean of the tasks whose metric is a share; None if there is none.

  Tasks weigh alike. The standard error takes tasks as independent: sqrt(sum of squares) / tasks.
  """
  shares = [row for row in rows if row.is_share]
  if not shares:
    return None
  errors = [row.error for row in shares]
  error = None if None in errors else float(np.sqrt(np.square(errors).sum()) / len(shares))
  return Mean(float(np.mean([row.value for row in shares])), error, len(shares))


def differences(
  first: Sequence[Result], second: Sequence[Result]
) -> tuple[dict[str, Difference], Difference | None]:
  """Returns the difference of two models, `first` minus `second`: of each task, and of the mean.

  Examples are paired: a resample draws examples, and has the two models' values of each. The
  interval of a task is that of the mean of its differences. For the mean over tasks, each task is
  resampled by itself.

  Args:
    first: Results of one model.
    second: Results of the other, of the same tasks and examples.
  """
  rng = np.random.default_rng(SEED)
  by_task, resampled = {}, []
  for row, other in zip(first, second, strict=True):
    interval = None
    if len(row.examples) and len(row.examples) == len(other.examples):
      means = _resampled_means(row.examples - other.examples, rng)
      interval = _interval(means)
      resampled.append(means)
    by_task[row.task] = _difference(row.value, other.value, interval)
  ours, theirs = mean(first), mean(second)
  if ours is None or theirs is None:
    return by_task, None
  interval = _interval(np.mean(resampled, axis=0)) if len(resampled) == ours.tasks else None
  return by_task, _difference(ours.value, theirs.value, interval)


def _difference(value: float, other: float, interval: tuple[float, float] | None) -> Difference:
  return Difference(value - other, (value - other) / other if other else None, interval)


def _interval(means: np.ndarray) -> tuple[float, float]:
  low, high = np.percentile(means, (2.5, 97.5))
  return float(low), float(high)


def _resampled_means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Returns the means of RESAMPLES resamples of values.

  A resample is drawn by its counts of each distinct value, which are few for shares.
  """
  distinct, counts = np.unique(values, return_counts=True)
  share = counts / len(values)
  means = []
  left = RESAMPLES
  while left:
    size = min(left, max(1, _COUNTS // len(distinct)))
    means.append(rng.multinomial(len(values), share, size) @ distinct / len(values))
    left -= size
  return np.concatenate(means)
