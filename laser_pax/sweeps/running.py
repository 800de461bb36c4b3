"""Trains the points of a sweep that are not trained yet, one after another, and records each."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence

from laser_pax import folders
from laser_pax.errors import UserError
from laser_pax.experiment import jobs
from laser_pax.sweeps import outcomes, plans
from laser_pax.sweeps.outcomes import Outcome
from laser_pax.sweeps.plans import Run
from laser_pax.sweeps.spaces import Sweep

# What a sweep's folder was begun with.
STATE = 'sweep.json'
# Held by the sweep that runs in a folder, and by the training that runs in a job folder.
_LOCK, _TRAINING_LOCK = 'sweep.lock', 'training.lock'
# What the newest training of a job folder printed to its standard error.
_ERRORS = 'errors.txt'
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INTERRUPTED = 128 + signal.SIGINT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
  """Where a sweep runs.

  Attributes:
    folder: The sweep's folder, in which each run has a job folder.
    results: The file of the results.
    flags: More flags of each `train`, such as --data.
    say: Prints a line.
    announce: Tells that a run begins.
  """

  folder: pathlib.Path
  results: pathlib.Path
  flags: Sequence[str] = ()
  say: Callable[[str], None] = print
  announce: Callable[[Run], None] = lambda run: None


def known(sweep: Sweep, folder: pathlib.Path) -> Sweep:
  """Returns a sweep with the numbers that its points have in a folder. Nothing is written.

  Raises:
    UserError: The folder was begun with another sweep; the message names the first difference.
  """
  state = folder / STATE
  if not state.exists():
    return sweep
  old = json.loads(state.read_text())
  if difference := plans.differences(old, sweep):
    raise UserError(
      f'{folder} was begun with another sweep: {difference}. Points may be added, nothing else may '
      'change: take the change back, or name another folder with --out'
    )
  return plans.numbered_as(sweep, old['points'])


@contextlib.contextmanager
def claimed(sweep: Sweep, folder: pathlib.Path) -> Iterator[Sweep]:
  """Claims a folder for a sweep in the `with` block, and yields the sweep, numbered as there.

  Raises:
    UserError: Another sweep runs there, or it was begun with another one.
  """
  folders.make_folder(folder)
  refusal = f'another sweep runs in {folder}: wait for its end, or name another folder with --out'
  with folders.locked(folder / _LOCK, refusal):
    sweep = known(sweep, folder)
    new = folder / f'{STATE}.new'
    new.write_text(json.dumps(plans.fields_of(sweep), indent=1) + '\n')
    new.replace(folder / STATE)
    yield sweep


def run_all(sweep: Sweep, classes: Mapping[str, type], place: Place) -> list[Outcome]:
  """Trains each run that has no result yet, or that failed. Returns all results.

  Args:
    sweep: The sweep, whose folder is claimed.
    classes: The experiments' classes, by the names that the sweep gives them.
    place: Where it runs.

  Raises:
    UserError: The results cannot be read or written.
    KeyboardInterrupt: Ctrl-C ended a training.
    SystemExit: Another signal ended it, or it saved a checkpoint because it was told to.
  """
  tried: set[str] = set()
  while run := _next(sweep, classes, outcomes.read(place.results), tried):
    tried.add(run.name)
    place.announce(run)
    outcomes.append(place.results, _trained(run, classes[run.experiment], place))
  return outcomes.read(place.results)


def _next(
  sweep: Sweep, classes: Mapping[str, type], results: Sequence[Outcome], tried: set[str]
) -> Run | None:
  """Returns the first run that has no result, or that failed and was not tried again yet."""
  better = plans.metric(sweep, classes).better
  best = outcomes.best(sweep, sweep.experiments[0], results, better)
  if missing := _missing(plans.planned(sweep, None), results, tried):
    return missing[0]
  return next(iter(_missing(plans.planned(sweep, best), results, tried)), None)


def _missing(runs: Sequence[Run], results: Sequence[Outcome], tried: set[str]) -> list[Run]:
  newest = outcomes.of_runs(runs, results)
  is_over = {name for name, one in newest.items() if one.status != outcomes.FAILED}
  return [run for run in runs if run.name not in is_over | tried]


def _trained(run: Run, experiment_cls: type, place: Place) -> Outcome:
  """Trains a run, unless its folder holds the whole of it, and returns what came out."""
  folder, experiment = place.folder / run.name, plans.resolved(run, experiment_cls)
  folders.make_folder(folder)
  failure = None
  with _training_lock(folder, place.say) as lock:
    if not outcomes.is_trained(experiment, folder):
      failure = _train(run.command(str(folder), place.flags), folder / _ERRORS, lock.fileno())
  return outcomes.outcome(run, experiment, folder, failure)


@contextlib.contextmanager
def _training_lock(folder: pathlib.Path, say: Callable[[str], None]) -> Iterator:
  """Holds the lock of a job folder, which its training inherits.

  A training outlives a sweep that was killed. Then this waits for the training's end.
  """
  with contextlib.ExitStack() as stack:
    try:
      lock = stack.enter_context(folders.locked(folder / _TRAINING_LOCK, 'it is held'))
    except UserError:
      say(f'{folder.name} is still trained, by an earlier sweep that was killed: waiting for it')
      lock = stack.enter_context(folders.locked(folder / _TRAINING_LOCK))
    yield lock


def _train(command: Sequence[str], errors: pathlib.Path, lock: int) -> str | None:
  """Runs a training to its end, and returns why it failed, or None.

  The training is a process group of its own. So Ctrl-C on a terminal reaches it once, from here.

  Args:
    command: The command.
    errors: File of its standard error.
    lock: Descriptor of the lock that it inherits.
  """
  signals: list[int] = []
  processes: list[subprocess.Popen] = []

  def pass_on(number, frame):
    signals.append(number)
    for process in processes:
      process.send_signal(number)

  previous = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
  try:
    with errors.open('wb') as file:
      process = subprocess.Popen(command, stderr=file, pass_fds=[lock], process_group=0)
    processes.append(process)
    for number in [*signals]:  # They came while it was started.
      process.send_signal(number)
    code = process.wait()
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
  if signal.SIGINT in signals or code == _INTERRUPTED:
    raise KeyboardInterrupt
  if signals:
    raise SystemExit(jobs.SAVED_ON_DEMAND if code == jobs.SAVED_ON_DEMAND else 128 + signals[0])
  if code == jobs.SAVED_ON_DEMAND:
    raise SystemExit(code)
  return _failure(code, errors) if code else None


def _failure(code: int, errors: pathlib.Path) -> str:
  """Returns why a training failed, in one line: the last that it printed, or its signal."""
  if code < 0:
    return f'ended by {signal.Signals(-code).name}'
  lines = errors.read_text(errors='replace').split('\n')
  last = next((line.strip() for line in reversed(lines) if line.strip()), '')
  return last.removeprefix('error: ') or f'ended with code {code}'
