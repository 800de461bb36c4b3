"""`python -m laser_pax analyse`: what the attention of trained jobs does."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from laser_pax import folders
from laser_pax.cli.checkpoint import open_run, use_data_of_run
from laser_pax.errors import UserError

if TYPE_CHECKING:
  from laser_pax.analysis.lines import Line
  from laser_pax.experiment.base import Experiment
  from laser_pax.experiment.saved_models import Saved

FOLDER = 'analysis'
_OWNER = 'job.txt'  # In such a folder: the job that it is of.
_WIDTH = 160
_PICTURES = ('probabilities', 'gradients', 'values')


def analyse(
  jobs: Annotated[
    list[str], typer.Argument(metavar='JOB_DIR [JOB_DIR]', help='Jobs, or single checkpoints.')
  ],
  rows: Annotated[int, typer.Option(min=1, help='Held-out rows to look at.')] = 64,
  out: Annotated[
    str | None, typer.Option(help='Folder of the results [default: JOB_DIR/analysis].')
  ] = None,
) -> None:
  """Measures what attention does: small probabilities, gradients of both twins, spread of values.

  All checkpoints of a job are measured, on the same held-out rows. A checkpoint that was measured
  before is not measured again. The curves of two jobs are compared too.
  """
  from rich.console import Console

  from laser_pax.analysis import plots
  from laser_pax.experiment.laser import LaserMixin

  if len(jobs) > 2:
    raise UserError(f'expected one job or two, got {len(jobs)}')
  opened = [open_run(None, job, named_by='JOB_DIR') for job in jobs]
  places = [folder_of(saved.job, out) for _, saved in opened]
  names = job_names([saved.job for _, saved in opened])
  lines = {}
  console = Console()
  console.width = max(console.width, _WIDTH)
  for job, (experiment, saved), place, name in zip(jobs, opened, places, names, strict=True):
    lines[name] = _lines(experiment, _checkpoints(job, saved), rows, place, console)
  if not any(lines.values()):
    raise UserError('no checkpoint could be measured: name a job whose loss is a finite number')
  pictures = places[0] if out is None else folders.resolve_local(out)
  for kind in _PICTURES:
    getattr(plots, f'plot_{kind}')(lines, pictures / f'{kind}.png')
  console.print(_table(lines))
  console.print("ratio: norm of LASER's gradient over standard attention's, on the same weights")
  console.print(f'lines: {", ".join(str(place) for place in places)}', markup=False)
  console.print(f'pictures: {pictures}', markup=False)
  if len(jobs) == 2:
    opened.sort(key=lambda pair: isinstance(pair[0], LaserMixin))
    experiments, saved = zip(*opened, strict=True)
    folders_of_jobs = [one.job for one in saved]
    if told := _compare(experiments, folders_of_jobs, job_names(folders_of_jobs), pictures):
      console.print(told, markup=False, soft_wrap=True)


def folder_of(job: str, out: str | None) -> pathlib.Path:
  """Returns the local folder of a job's analysis: JOB/analysis, or OUT and the job's name.

  Raises:
    UserError: The job is in a bucket, and no folder is named.
  """
  if out is not None:
    return folders.resolve_local(out) / pathlib.PurePath(job).name
  if '://' in job:
    raise UserError(f'{job} is in a bucket: name a local folder of results with --out=DIR')
  return folders.resolve_local(job) / FOLDER


def _is_within(place: pathlib.Path, job: str) -> bool:
  return '://' not in job and place.parent == folders.resolve_local(job)


def is_of(place: pathlib.Path, job: str) -> bool:
  """Returns whether a folder of analyses outside a job has none of another job's."""
  owner = place / _OWNER
  return not owner.exists() or owner.read_text().strip() == job


def _claim(place: pathlib.Path, job: str) -> None:
  """Marks a folder outside a job as the job's: other jobs may have the same name.

  Raises:
    UserError: It is another job's.
  """
  if not is_of(place, job):
    owner = (place / _OWNER).read_text().strip()
    raise UserError(f'{place} has the analysis of {owner}, not of {job}: name another --out')
  (place / _OWNER).write_text(f'{job}\n')


def job_names(jobs: Sequence[str]) -> list[str]:
  """Returns the shortest ends of folders that tell jobs from each other.

  Raises:
    UserError: Two are one.
  """
  parts = [pathlib.PurePath(job).parts for job in jobs]
  for length in range(1, max(map(len, parts)) + 1):
    names = ['/'.join(part[-length:]) for part in parts]
    if len(set(names)) == len(names):
      return names
  raise UserError(f'{jobs[0]} is named twice: name each job once')


def _checkpoints(job: str, saved: 'Saved') -> 'list[Saved]':
  """Returns the checkpoints to measure: the one that is named, or all whole ones of a job."""
  from laser_pax.experiment import checkpoints

  if folders.resolve(job) != saved.job:
    return [saved]
  steps = checkpoints.steps(saved.job)
  return [saved._replace(step=s) for s in steps if checkpoints.fault(saved.job, s) is None]


def _lines(
  experiment: 'Experiment', saved: 'Sequence[Saved]', rows: int, place: pathlib.Path, console
) -> 'list[Line]':
  """Returns the lines of a job, after measuring the checkpoints that have none yet."""
  from laser_pax.analysis import attention, held_out, lines
  from laser_pax.evaluation.restored import Restored

  folders.make_folder(place)
  if saved and not _is_within(place, saved[0].job):
    _claim(place, saved[0].job)
  form = attention.own_form(experiment)
  other = lines.LASER if form == lines.STANDARD else lines.STANDARD
  missing = [one for one in saved if not lines.file_of(place, one.step, rows).exists()]
  model = None
  for one in missing:
    if model is None:
      twins = [attention.Twin(experiment, f) for f in (form, other)]
      model = Restored(experiment, one)
      use_data_of_run(experiment, one)
      shared = model.data_parallel()
      at_once = attention.ROWS_PER_DEVICE * shared
      batches = held_out.batches(experiment, rows, shared, at_once)
    else:
      model.take(one)
    common = {'experiment': type(experiment).__name__, 'step': one.step}
    try:
      measured = attention.measure(model, twins, batches)
    except UserError as e:
      console.print(f'{one.folder}: left out: {e}', markup=False, soft_wrap=True)
      continue
    lines.write(lines.file_of(place, one.step, rows), [common | line for line in measured])
    console.print(f'{one.folder}: measured', markup=False, soft_wrap=True)
  files = [lines.file_of(place, one.step, rows) for one in saved]
  return [line for file in files if file.exists() for line in lines.read_file(file)]


def _table(lines: 'Mapping[str, Sequence[Line]]'):
  """Returns a row for each job and step: small probabilities, values, and ratios of gradients."""
  from rich.table import Table

  from laser_pax.analysis import summary

  table = Table(box=None)
  rows = summary.rows(lines)
  for column in rows[0]:
    table.add_column(column, justify='left' if column == 'job' else 'right')
  for row in rows:
    table.add_row(*row.values())
  return table


def _compare(
  experiments: 'Sequence[Experiment]',
  jobs: Sequence[str],
  names: Sequence[str],
  pictures: pathlib.Path,
) -> str | None:
  """Draws the curves of two jobs, and keeps and returns when one reaches the other's best figure.

  The figures stay in pair.json. Jobs in buckets have no records here, and jobs of two metrics have
  nothing to compare.
  """
  from laser_pax.analysis import runs, summary

  metric = experiments[0].METRIC
  if experiments[1].METRIC.label != metric.label or any('://' in job for job in jobs):
    return None
  both = [
    runs.read_run(name, pathlib.Path(job), metric.label, metric.split)
    for name, job in zip(names, jobs, strict=True)
  ]
  runs.plot_runs(both, metric.label, None, pictures / 'curves.png')
  race = summary.race(*both, metric.better)
  if race is None:
    return f'{names[0]} and {names[1]} have no race: one has no finite {metric.label}'
  record = {k: v._asdict() if isinstance(v, tuple) else v for k, v in race._asdict().items()}
  (pictures / 'pair.json').write_text(json.dumps(record, indent=1) + '\n')
  return summary.told(race, metric.label)
