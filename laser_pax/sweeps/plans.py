"""The runs of a sweep: which there are, whether their values fit, and the command of each."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from laser_pax.errors import UserError
from laser_pax.sweeps import spaces
from laser_pax.sweeps.spaces import Point, Sweep

if TYPE_CHECKING:
  from laser_pax.experiment.base import Experiment
  from laser_pax.experiment.family import Metric


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """One training of a sweep.

  Attributes:
    point: Number of the point, from 1.
    experiment: Name of the experiment, as the sweep's file has it.
    overrides: Attributes that differ from the experiment's own, and their values.
    seed: Its seed of the sweep's seeds; None if there are none.
  """

  point: int
  experiment: str
  overrides: Point
  seed: int | None = None

  @property
  def name(self) -> str:
    """The name of its folder, such as 'point-03-C4StandardTiny-seed-1'."""
    seed = '' if self.seed is None else f'-seed-{self.seed}'
    return f'point-{self.point:02d}-{short(self.experiment)}{seed}'

  def flags(self) -> list[str]:
    """Returns the flags of `train` that set its overrides."""
    return [f'--fdl.{name}={value}' for name, value in self.overrides.items()]

  def command(self, folder: str, more_flags: Sequence[str] = ()) -> list[str]:
    """Returns the command that trains it.

    Args:
      folder: Its job folder.
      more_flags: More flags of `train`, such as --data.
    """
    how = 'fdl_config' if self.overrides else 'exp'
    train = [sys.executable, '-m', 'laser_pax', 'train', f'--{how}={self.experiment}']
    return [*train, *self.flags(), f'--job_log_dir={folder}', *more_flags]


def short(experiment: str) -> str:
  """Returns an experiment's name without its module."""
  return experiment.rpartition('.')[2]


def runs_of(sweep: Sweep, experiment: str, numbers: Sequence[int]) -> list[Run]:
  """Returns the runs of an experiment at some of a sweep's points, one for each seed.

  Args:
    sweep: The sweep.
    experiment: Name of the experiment.
    numbers: Numbers of the points, from 1.
  """
  runs = []
  for number in numbers:
    values = {**sweep.fixed, **sweep.points[number - 1]}
    for seed in sweep.seeds or (None,):
      seeds = {} if seed is None else dict.fromkeys(spaces.SEED_ATTRIBUTES, seed)
      run = Run(point=number, experiment=experiment, overrides={**values, **seeds}, seed=seed)
      runs.append(run)
  return runs


def tuned(sweep: Sweep) -> tuple[str, ...]:
  """Returns the experiments that are trained at every point."""
  return sweep.experiments[:1] if sweep.tune == spaces.FIRST else sweep.experiments


def planned(sweep: Sweep, best: int | None) -> list[Run]:
  """Returns the runs of a sweep, in order: point by point, seed by seed, twin beside twin.

  Args:
    sweep: The sweep.
    best: The best point of the first experiment, which the rest train if only the first is tuned.
      None where it is not known yet.
  """
  numbers = range(1, len(sweep.points) + 1)
  runs = [run for experiment in tuned(sweep) for run in runs_of(sweep, experiment, numbers)]
  position = {name: i for i, name in enumerate(sweep.experiments)}
  seeds = {seed: i for i, seed in enumerate(sweep.seeds or (None,))}
  runs.sort(key=lambda run: (run.point, seeds[run.seed], position[run.experiment]))
  if sweep.tune == spaces.FIRST and best is not None:
    for experiment in sweep.experiments[1:]:
      runs += runs_of(sweep, experiment, [best])
  return runs


def every(sweep: Sweep) -> list[Run]:
  """Returns each experiment's runs at every point, planned or not."""
  numbers = range(1, len(sweep.points) + 1)
  return [run for name in sweep.experiments for run in runs_of(sweep, name, numbers)]


def check(sweep: Sweep, classes: Mapping[str, type]) -> None:
  """Checks every point of every experiment, before anything is trained.

  Args:
    sweep: The sweep.
    classes: The experiments' classes, by the names that the sweep gives them.

  Raises:
    UserError: An attribute does not exist or cannot have its value, or sizes do not fit.
  """
  names = [short(name) for name in sweep.experiments]
  if twice := [name for name in names if names.count(name) > 1]:
    raise UserError(f'two experiments are named {twice[0]}: rename one, folders have these names')
  for run in every(sweep):
    resolved(run, classes[run.experiment])
  metric(sweep, classes)


def metric(sweep: Sweep, classes: Mapping[str, type]) -> Metric:
  """Returns the metric of a sweep, which all of its experiments have.

  Args:
    sweep: The sweep.
    classes: The experiments' classes, by the names that the sweep gives them.

  Raises:
    UserError: They have several.
  """
  metrics = {name: classes[name]().METRIC for name in sweep.experiments}
  first = metrics[sweep.experiments[0]]
  for name, other in metrics.items():
    if other.label != first.label:
      raise UserError(
        f'{sweep.experiments[0]} is judged by {first.label}, {name} by {other.label}: sweep them '
        'in two files'
      )
  return first


def resolved(run: Run, experiment_cls: type) -> Experiment:
  """Returns a run's experiment with its overrides, after checking it on its planned slice.

  Raises:
    UserError: An attribute does not exist or cannot have its value, or sizes do not fit.
  """
  from laser_pax.experiment.base import Experiment

  if not issubclass(experiment_cls, Experiment):
    raise UserError(f'{run.experiment} has no METRIC: a sweep takes subclasses of Experiment')
  experiment = experiment_cls().on()
  for name, value in run.overrides.items():
    setattr(experiment, name, value)
  try:
    experiment.check_overrides()
    experiment.check_numbers()
    experiment.check()
    if not experiment.EVAL_INTERVAL_STEPS:
      raise UserError('EVAL_INTERVAL_STEPS = 0: without evaluations there is nothing to compare')
  except UserError as e:
    raise UserError(f'point {run.point}, {spaces.words(run.overrides)}: {e}') from e
  return experiment


def differences(old: Mapping[str, Any], sweep: Sweep, flags: Sequence[str] = ()) -> str | None:
  """Returns in words how a sweep differs from what a folder was begun with, or None.

  Points that were added are no difference.

  Args:
    old: The fields of the sweep that the folder was begun with, from `fields_of`.
    sweep: The sweep.
    flags: More flags of each training, such as --data.
  """
  new = fields_of(sweep, flags)
  for name in ('experiments', 'tune', 'seeds', 'flags'):
    if old.get(name, new[name]) != new[name]:
      return f'{name} was {old[name]}, and is {new[name]}'
  for name in dict.fromkeys([*old['fixed'], *new['fixed']]):
    was, now = (fields['fixed'].get(name, 'not set') for fields in (old, new))
    if was != now:
      return f'{name} of [fixed] was {was}, and is {now}'
  for number, point in enumerate(old['points'], start=1):
    if point not in new['points']:
      return f'point {number} was {spaces.words(point)}, and no point is so now'
  return None


def fields_of(sweep: Sweep, flags: Sequence[str] = ()) -> dict[str, Any]:
  """Returns the fields of a sweep that its folder keeps, as JSON gives them back."""
  return {
    'experiments': [*sweep.experiments],
    'tune': sweep.tune,
    'seeds': [*sweep.seeds],
    'fixed': sweep.fixed,
    'flags': [*flags],
    'points': [*sweep.points],
  }


def numbered_as(sweep: Sweep, old_points: Sequence[Point]) -> Sweep:
  """Returns a sweep whose old points keep their numbers. Points that were added come after them."""
  added = [point for point in sweep.points if point not in old_points]
  return dataclasses.replace(sweep, points=(*old_points, *added))
