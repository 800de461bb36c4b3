"""What came out of each run: the lines of results.jsonl."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from laser_pax.errors import UserError
from laser_pax.experiment import checkpoints, progress
from laser_pax.sweeps import plans, spaces
from laser_pax.sweeps.plans import Run
from laser_pax.sweeps.spaces import Sweep

if TYPE_CHECKING:
  from laser_pax.experiment.base import Experiment

# A run is complete, or its figure or loss is no finite number, or its training failed.
COMPLETE, DIVERGED, FAILED = 'complete', 'diverged', 'failed'
# Versions that can change a figure.
_PACKAGES = ('laser_pax', 'jax', 'jaxlib', 'paxml', 'praxis', 'numpy')
# The training loss of a run is the mean of so many last steps.
_LAST_STEPS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """One line of results.jsonl.

  Attributes:
    point: Number of the point.
    experiment: Name of the experiment.
    overrides: Attributes that differed from the experiment's own, and their values.
    seed: Seed of the sweep's seeds, or None.
    status: 'complete', 'diverged' or 'failed'.
    metric: Label of the experiment's METRIC.
    figure: The metric at the last step, on the whole evaluation split; None if there is none.
    train_loss: Mean training loss of the last 20 steps; None if one of them is no finite number.
    steps: Steps that were trained.
    units: Units (tokens, images) that were trained on.
    unit: What a unit is.
    seconds: Seconds of training and evaluations, without imports and the first compilation.
    versions: Versions of Python and of the packages.
    reason: Why the training failed, or None.
  """

  point: int
  experiment: str
  overrides: dict[str, Any]
  seed: int | None
  status: str
  metric: str
  figure: float | None
  train_loss: float | None
  steps: int
  units: int
  unit: str
  seconds: float
  versions: dict[str, str]
  reason: str | None = None

  def is_of(self, run: Run) -> bool:
    """Returns whether this is what came out of a run, wherever and as whatever point it ran."""
    return (self.experiment, self.overrides) == (run.experiment, run.overrides)


def outcome(run: Run, experiment: Experiment, folder: pathlib.Path, failure: str | None) -> Outcome:
  """Returns what came out of a run, by its job folder.

  Args:
    run: The run.
    experiment: Its experiment, with the run's overrides.
    folder: Its job folder.
    failure: Why its training failed, or None if it ended well.
  """
  metric = experiment.METRIC
  records = progress.read(folder, metric.label, metric.split)
  train, evaluations = (records.train, records.evaluations) if records else ({}, {})
  steps = max(train, default=0)
  figure = evaluations.get(experiment.NUM_TRAIN_STEPS)
  last = [train[step] for step in sorted(train)[-_LAST_STEPS:]]
  if failure is None and experiment.NUM_TRAIN_STEPS not in evaluations:
    failure = f'no {metric.label} of {metric.split or "the evaluation"} at the last step'
  has_number = figure is not None or failure is not None
  status = FAILED if failure else COMPLETE
  if train and not (has_number and train[steps] is not None):
    status = DIVERGED
  return Outcome(
    point=run.point,
    experiment=run.experiment,
    overrides=run.overrides,
    seed=run.seed,
    status=status,
    metric=metric.label,
    figure=figure,
    train_loss=None if not last or None in last else statistics.fmean(last),
    steps=steps,
    units=steps * experiment.units_per_step(),
    unit=experiment.UNIT,
    seconds=round(records.seconds, 1) if records else 0.0,
    versions=versions(),
    reason=failure,
  )


def is_trained(experiment: Experiment, folder: pathlib.Path) -> bool:
  """Returns whether a job folder holds the last step's checkpoint, whole, and its evaluation."""
  metric, last = experiment.METRIC, experiment.NUM_TRAIN_STEPS
  records = progress.read(folder, metric.label, metric.split)
  is_evaluated = records is not None and last in records.evaluations
  return is_evaluated and checkpoints.survey(folder).whole == last


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the packages that can change a figure."""
  return {'python': platform.python_version()} | {
    name: importlib.metadata.version(name) for name in _PACKAGES
  }


def read(file: pathlib.Path) -> list[Outcome]:
  """Reads the lines of a file of results; there are none where there is no file.

  A line that a machine did not get to end is left out.

  Raises:
    UserError: The file cannot be read, or a line is none of a sweep's.
  """
  outcomes = []
  try:
    lines = file.read_text().splitlines() if file.exists() else []
  except (OSError, UnicodeDecodeError) as e:
    raise UserError(f'{file} cannot be read as results ({e}): name another --results') from e
  for number, line in enumerate(lines, start=1):
    try:
      fields = json.loads(line)
    except ValueError:
      continue
    try:
      outcomes.append(Outcome(**fields))
    except TypeError as e:
      raise UserError(
        f'{file}, line {number} is no result of a sweep ({e}): name another --results'
      ) from e
  return outcomes


def append(file: pathlib.Path, new: Outcome) -> None:
  """Appends a line by one write, so that no reader sees half of it, and what is there stays.

  Raises:
    UserError: The file cannot be written.
  """
  line = json.dumps(dataclasses.asdict(new)) + '\n'
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open('ab+', buffering=0) as results:
      if results.tell():
        results.seek(-1, os.SEEK_END)
        line = line if results.read(1) == b'\n' else f'\n{line}'
      results.write(line.encode())
      os.fsync(results.fileno())
  except OSError as e:
    raise UserError(
      f'{file} cannot be written ({e.strerror}): mend that and give the same command again; the '
      'training itself is kept'
    ) from e


def of_runs(runs: Sequence[Run], outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
  """Returns the newest outcome of each run that has one, by the run's name."""
  return {run.name: one for run in runs for one in outcomes if one.is_of(run)}


def figures(
  sweep: Sweep, experiment: str, outcomes: Sequence[Outcome]
) -> dict[int, tuple[float, ...]]:
  """Returns the figures of each point whose runs are all complete, a figure for each seed.

  Args:
    sweep: The sweep.
    experiment: Name of the experiment.
    outcomes: The lines of the results.
  """
  result = {}
  for number in range(1, len(sweep.points) + 1):
    runs = plans.runs_of(sweep, experiment, [number])
    newest = of_runs(runs, outcomes)
    if all(run.name in newest and newest[run.name].status == COMPLETE for run in runs):
      result[number] = tuple(newest[run.name].figure for run in runs)
  return result


def best(sweep: Sweep, experiment: str, outcomes: Sequence[Outcome], better: str) -> int | None:
  """Returns the point whose mean figure over the seeds is best; None if no point is complete.

  Args:
    sweep: The sweep.
    experiment: Name of the experiment.
    outcomes: The lines of the results.
    better: 'lower' or 'higher', as in the experiment's METRIC.
  """
  means = {n: math.fsum(f) / len(f) for n, f in figures(sweep, experiment, outcomes).items()}
  choose: Callable = min if better == 'lower' else max
  return choose(means, key=means.__getitem__, default=None)


def best_points(sweep: Sweep, outcomes: Sequence[Outcome], better: str) -> dict[str, int]:
  """Returns the point that each experiment is best trained at, by the sweep's `tune`.

  Args:
    sweep: The sweep.
    outcomes: The lines of the results.
    better: 'lower' or 'higher', as in the experiments' METRIC.
  """
  if sweep.tune == spaces.NOTHING:
    return {}
  chosen = {
    name: best(sweep, name if sweep.tune == spaces.EACH else sweep.experiments[0], outcomes, better)
    for name in sweep.experiments
  }
  return {name: number for name, number in chosen.items() if number is not None}
