"""`python -m laser_pax report`: one page about trained jobs."""

import contextlib
import math
import pathlib
import re
from typing import TYPE_CHECKING, Annotated

import typer

from laser_pax import folders
from laser_pax.cli import analyse
from laser_pax.cli.checkpoint import open_experiment
from laser_pax.errors import UserError

if TYPE_CHECKING:
  from laser_pax.analysis.lines import Line
  from laser_pax.analysis.report import Job
  from laser_pax.experiment.base import Experiment

_LOG = re.compile(r'train-(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)\d\d-(.+)-\d+\.log')
# The curves have a color for each.
_MOST_JOBS = 4


def report(
  jobs: Annotated[list[str], typer.Argument(metavar='JOB_DIR...', help='Folders of jobs.')],
  out: Annotated[
    str | None, typer.Option(help='Folder of the page [default: report, in the first job].')
  ] = None,
) -> None:
  """Writes a page of HTML about jobs: curves, tables, settings, and the paper's figures.

  The page has its pictures within it. What `analyse` and `eval` have measured is part of it.
  """
  if len(jobs) > _MOST_JOBS:
    raise UserError(f'expected at most {_MOST_JOBS} jobs, got {len(jobs)}')
  places = [folders.resolve_local(job) for job in jobs]
  names = analyse.job_names([str(place) for place in places])

  import jax
  from absl import logging

  from laser_pax import pax_fixes

  pax_fixes.read_lambdas_fast()
  logging.set_verbosity(logging.ERROR)
  jax.config.update('jax_platforms', 'cpu')  # A training may hold the accelerator.

  from laser_pax.analysis import report

  read = [_job(*pair, out) for pair in zip(places, names, strict=True)]
  read.sort(key=lambda job: job.attention != 'standard')
  folder = places[0] / 'report' if out is None else folders.resolve_local(out)
  folders.make_folder(folder)
  typer.echo(report.write(read, folder))


def _job(place: pathlib.Path, name: str, out: str | None) -> 'Job':
  """Reads a job.

  Raises:
    UserError: The folder is no job's, or its run has no evaluation.
  """
  from laser_pax.analysis import report, runs
  from laser_pax.experiment import jobs
  from laser_pax.experiment.laser import LaserMixin

  mark = jobs.read_mark(place)
  if mark is None:
    raise UserError(f'{place} has no {jobs.MARK}: expected the --job_log_dir of a training')
  kept = jobs.kept_vocabulary(place)
  experiment = open_experiment(mark.experiment, mark.overrides, None)
  metric = experiment.METRIC
  chance = None
  with contextlib.suppress(UserError):  # The data may be elsewhere.
    chance = experiment.chance()
  overrides = ', '.join(f'{k}={v}' for k, v in mark.overrides.items())
  return report.Job(
    run=runs.read_run(name, place, metric.label, metric.split),
    experiment=type(experiment).__name__,
    attention='LASER' if isinstance(experiment, LaserMixin) else 'standard',
    metric=metric,
    unit=experiment.UNIT,
    settings={
      'experiment': type(experiment).__name__,
      'parameters': f'{_parameters(place, experiment):,}',
      **experiment.describe(),
      'steps': f'{experiment.NUM_TRAIN_STEPS:,}',
      experiment.UNIT: f'{experiment.units():,}',
      'overrides': overrides or 'none',
      'vocabulary kept': 'yes' if kept else 'no',
    },
    overrides=mark.overrides,
    starts=_starts(place),
    lines=_lines(str(place), out),
    evaluations=report.read_evaluations(place),
    chance=chance,
    folder=str(place),
  )


def _lines(job: str, out: str | None) -> 'list[Line]':
  """Returns what `analyse` left of a job: in OUT, or in the job."""
  from laser_pax.analysis import lines

  folders_of_job = [analyse.folder_of(job, place) for place in (out, None)]
  read = (lines.read(place) for place in folders_of_job if analyse.is_of(place, job))
  return next(filter(None, read), [])


def _parameters(place: pathlib.Path, experiment: 'Experiment') -> int:
  """Returns the number of a model's parameters: those of a checkpoint, else those of its config."""
  from laser_pax.costs.facts import facts
  from laser_pax.experiment import saved_models

  with contextlib.suppress(UserError):
    shapes = saved_models.shapes(saved_models.find(str(place)))
    return sum(math.prod(shape) for shape in shapes.values())
  return facts(experiment.on()).parameters


def _starts(place: pathlib.Path) -> list[str]:
  """Returns when and where the job's training was started, by the names of its logs."""
  names = sorted(file.name for file in (place / 'logs').glob('train-*.log'))
  matches = [match for name in names if (match := _LOG.fullmatch(name))]
  return ['{}-{}-{} {}:{} on {}'.format(*match.groups()) for match in matches]
