"""Trains the points of a sweep that are not trained yet, and records each."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from laser_pax import folders
from laser_pax.errors import UserError
from laser_pax.sweeps import outcomes, plans, trainings
from laser_pax.sweeps.outcomes import Outcome
from laser_pax.sweeps.plans import Run
from laser_pax.sweeps.spaces import Sweep

# What a sweep's folder was begun with.
STATE = 'sweep.json'
_LOCK = 'sweep.lock'  # Held by the sweep that runs in the folder.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
  """Where a sweep runs.

  Attributes:
    folder: The sweep's folder, in which each run has a job folder.
    results: The file of the results.
    flags: More flags of each `train`, such as --data.
    say: Prints a line.
    begins: Tells that a run begins.
    ends: Tells what came out of a run.
  """

  folder: pathlib.Path
  results: pathlib.Path
  flags: Sequence[str] = ()
  say: Callable[[str], None] = print
  begins: Callable[[Run], None] = lambda run: None
  ends: Callable[[Run, Outcome], None] = lambda run, outcome: None


def known(sweep: Sweep, folder: pathlib.Path, flags: Sequence[str] = ()) -> Sweep:
  """Returns a sweep with the numbers that its points have in a folder. Nothing is written.

  Args:
    sweep: The sweep.
    folder: Its folder.
    flags: More flags of each training: the folder keeps them, so that all points have one data.

  Raises:
    UserError: The folder was begun with another sweep; the message names the first difference.
  """
  state = folder / STATE
  if not state.exists():
    return sweep
  old = json.loads(state.read_text())
  if difference := plans.differences(old, sweep, flags):
    raise UserError(
      f'{folder} was begun with another sweep: {difference}. Points may be added, nothing else may '
      'change: take the change back, or name another folder with --out'
    )
  return plans.numbered_as(sweep, old['points'])


@contextlib.contextmanager
def claimed(sweep: Sweep, folder: pathlib.Path, flags: Sequence[str] = ()) -> Iterator[Sweep]:
  """Claims a folder for a sweep in the `with` block, and yields the sweep, numbered as there.

  Raises:
    UserError: Another sweep runs there, or it was begun with another one.
  """
  folders.make_folder(folder)
  refusal = f'another sweep runs in {folder}: wait for its end, or name another folder with --out'
  with folders.locked(folder / _LOCK, refusal):
    sweep = known(sweep, folder, flags)
    new = folder / f'{STATE}.new'
    new.write_text(json.dumps(plans.fields_of(sweep, flags), indent=1) + '\n')
    new.replace(folder / STATE)
    yield sweep


def run_all(
  sweep: Sweep, classes: Mapping[str, type], place: Place, started: trainings.Trainings
) -> list[Outcome]:
  """Trains each run that has no result yet, or that failed. Returns all results.

  Args:
    sweep: The sweep, whose folder is claimed.
    classes: The experiments' classes, by the names that the sweep gives them.
    place: Where it runs.
    started: Starts the trainings.

  Raises:
    UserError: The results cannot be read or written.
    KeyboardInterrupt: Ctrl-C ended a training.
    SystemExit: Another signal ended it, or it saved a checkpoint because it was told to.
  """
  tried: set[str] = set()

  def train(run: Run) -> None:
    place.begins(run)
    new = _trained(run, classes[run.experiment], place, started)
    outcomes.append(place.results, new)
    place.ends(run, new)

  while runs := _next(sweep, classes, outcomes.read(place.results), tried):
    tried.update(run.name for run in runs)
    started.each(train, runs)
  return outcomes.read(place.results)


def _next(
  sweep: Sweep, classes: Mapping[str, type], results: Sequence[Outcome], tried: set[str]
) -> list[Run]:
  """Returns the runs that have no result, or that failed and were not tried again yet.

  Those at the best point come when no other is left, as only then it is known.
  """
  if missing := _missing(plans.planned(sweep, None), results, tried):
    return missing
  better = plans.metric(sweep, classes).better
  best = outcomes.best(sweep, sweep.experiments[0], results, better)
  return _missing(plans.planned(sweep, best), results, tried)


def _missing(runs: Sequence[Run], results: Sequence[Outcome], tried: set[str]) -> list[Run]:
  newest = outcomes.of_runs(runs, results)
  is_over = {name for name, one in newest.items() if one.status != outcomes.FAILED}
  return [run for run in runs if run.name not in is_over | tried]


def _trained(run: Run, experiment_cls: type, place: Place, started: trainings.Trainings) -> Outcome:
  """Trains a run, unless its folder holds the whole of it, and returns what came out."""
  folder, experiment = place.folder / run.name, plans.resolved(run, experiment_cls)
  folders.make_folder(folder)
  failure = None
  with trainings.locked(folder, place.say) as lock:
    if not outcomes.is_trained(experiment, folder):
      failure = started.train(run.command(str(folder), place.flags), folder, lock)
  return outcomes.outcome(run, experiment, folder, failure)
