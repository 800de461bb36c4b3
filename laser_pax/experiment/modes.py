"""What a process does with its job's folder, in each of PAX's modes.

A training claims the folder. In the other modes a process of its own evaluates or decodes the job's
checkpoints. It waits for each new one, and may run beside the training that writes them. So it only
reads: it takes the overrides of that run from the job's mark, and moves no checkpoint aside.
"""

from __future__ import annotations

import atexit
import contextlib
import math
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax
from absl import flags

from laser_pax import folders
from laser_pax.errors import UserError
from laser_pax.experiment import checkpoints, jobs, kept_layout, retention

_Programs = TypeVar('_Programs')

TRAIN = 'train'
_DECODING = ('decode', 'decode_once')


class Experiment(kept_layout.Experiment, Protocol):
  """What is asked here of an experiment, which base.py defines.

  Attributes:
    METRIC: The figure that a run is judged by.
  """

  METRIC: Any

  def job_mark(self) -> str:
    """Returns the text that marks a job's folder as this run's."""

  def vocabulary(self) -> str | None:
    """Returns the file of the vocabulary, or None."""

  def decode_datasets(self) -> list[Any]:
    """Returns the inputs to decode."""

  def tell(self, line: str) -> None:
    """Tells a person a line."""

  def retention(self) -> retention.Policy:
    """Returns which old checkpoints stay."""


def mode() -> str:
  """Returns the mode of this process: paxml's flag --mode. Without paxml.main it is 'train'."""
  return flags.FLAGS['mode'].value if 'mode' in flags.FLAGS else TRAIN


def job_folder() -> str | None:
  """Returns the folder of paxml's --job_log_dir, or None."""
  if 'job_log_dir' not in flags.FLAGS or flags.FLAGS['job_log_dir'].value is None:
    return None
  return folders.resolve(flags.FLAGS['job_log_dir'].value)


def starts_anew() -> bool:
  """Returns whether this process trains, and its job's folder has no whole checkpoint yet."""
  folder = job_folder()
  return mode() == TRAIN and (folder is None or checkpoints.survey(folder).whole is None)


def follow_run(experiment: Experiment) -> None:
  """Gives an experiment the overrides of the run in its job's folder; those of its own stay.

  Without them PAX waits for the steps of the class, which the run may never reach. In a training
  nothing is done.

  Args:
    experiment: The experiment.

  Raises:
    UserError: Another experiment's run is in the folder.
  """
  folder = job_folder()
  if mode() == TRAIN or folder is None:
    return
  jobs.check_experiment(folder, experiment.job_mark())
  run = jobs.read_mark(folder)
  for name, value in (run.overrides if run else {}).items():
    if name not in vars(experiment):
      setattr(experiment, name, value)


def closed_at_exit(programs: _Programs) -> _Programs:
  """Returns PAX's programs, which are closed when this process ends, or by `close_programs`.

  PAX closes them only after a training that has come to its end. Else their last summaries may be
  lost. Python would close them after jax's own end, show a traceback, or wait forever.

  Args:
    programs: List of evaluation or decoding programs.
  """
  for program in programs:
    close_at_exit(program.shutdown)
  return programs


def close_at_exit(close: Callable[[], None]) -> None:
  """Calls a function when this process ends, or by `close_programs`."""
  atexit.register(close_programs)  # Once is enough, but this must come after jax's own.
  _closings.callback(close)


def close_programs() -> None:
  """Closes the programs of `closed_at_exit`. The end of this process does so too."""
  _closings.close()


_closings = contextlib.ExitStack()


def figures_remembered(programs: _Programs, metric: Any) -> _Programs:
  """Returns PAX's programs; a training keeps their figure beside the checkpoint of its step.

  Args:
    programs: List of evaluation programs.
    metric: The `Metric` that the run is judged by.
  """
  for program in programs if mode() == TRAIN and job_folder() else ():
    _remember(program, metric)
  return programs


def _remember(program: Any, metric: Any) -> None:
  evaluate = program.run

  def run(state, step):
    output = evaluate(state, step)
    value = (output.eval_metrics or {}).get(metric.name)
    is_judged = metric.split in (None, program.eval_input.name)
    if value is not None and is_judged and math.isfinite(value) and jax.process_index() == 0:
      checkpoints.remember_figure(job_folder(), step, float(value))
    return output

  program.run = run


def check_decodes(experiment: Experiment) -> None:
  """Checks, in a mode that decodes, that an experiment has something to decode.

  Raises:
    UserError: It has not.
  """
  if mode() in _DECODING and not experiment.decode_datasets():
    raise UserError(
      f'--mode={mode()}: {type(experiment).__name__} has nothing to decode; its answers are judged '
      f'by {experiment.METRIC.name}, so give --mode=eval'
    )


def claim_job_folder(experiment: Experiment) -> None:
  """Marks the folder of paxml's --job_log_dir as an experiment's. PAX itself does not.

  Checkpoints that are not whole are moved aside, so that PAX resumes from one that is. A process
  that does not train does neither.

  Args:
    experiment: The experiment.

  Raises:
    UserError: The folder holds checkpoints of another experiment, vocabulary or layout, or none
      that is whole.
  """
  from etils import epath

  folder = job_folder()
  if folder is None:
    return
  # PAX's modes disagree about relative names, and none expands `~`. All read this flag later.
  flags.FLAGS['job_log_dir'].value = epath.Path(folder)
  mark, vocabulary = experiment.job_mark(), experiment.vocabulary()
  jobs.check_experiment(folder, mark)
  if vocabulary:
    jobs.check_vocabulary(folder, vocabulary)
  if mode() != TRAIN:
    return
  kept_layout.check(folder, experiment)
  jobs.hold(folder)
  jobs.write_mark(folder, mark)
  if vocabulary:
    jobs.keep_vocabulary(folder, vocabulary)
  kept_layout.keep(experiment)
  checkpoints.list_files_of_each()
  retention.follow(folder, experiment.retention())
  for line in checkpoints.set_aside(folder):
    experiment.tell(line)
