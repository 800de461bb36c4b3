"""`python -m laser_pax checkpoints`: what is in a job's folder, and whether it is whole."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from laser_pax.errors import UserError
from laser_pax.experiment import checkpoints

if TYPE_CHECKING:
  from etils import epath

  from laser_pax.experiment.saved_models import Saved


def list_checkpoints(
  folder: Annotated[str, typer.Argument(metavar='JOB_LOG_DIR', help='Folder of a training.')],
  verify: Annotated[
    str | None, typer.Option(help='Step to compare with its checksums, or `all`.')
  ] = None,
) -> None:
  """Lists the checkpoints of a training: step, size, weights, whether each is whole.

  A checkpoint is whole if it has all files of its list, in full size. --verify also reads each file
  and compares its checksum. The exit code is 1 if a checkpoint is not whole.
  """
  from laser_pax import folders

  job = folders.resolve(folder)
  steps = checkpoints.steps(job)
  if not steps:
    raise UserError(
      f'{job}: no finished checkpoint is in {job}/checkpoints; expected the --job_log_dir of a '
      'training that has saved one'
    )
  verified = _steps_to_verify(verify, steps)
  _show_job(job)
  faults = {step: fault for step in steps if (fault := _fault(job, step, step in verified))}
  _show_checkpoints(job, steps, faults, verified)
  for step, fault in faults.items():
    print(f'checkpoint {step} is not whole: {fault}')
  aside = pathlib.Path(job) / checkpoints.ASIDE
  if '://' not in job and aside.exists():
    print(f'not whole, moved aside: {", ".join(sorted(p.name for p in aside.iterdir()))}')
  print(f'a run goes on here: {checkpoints.newest_whole(job)}')
  if faults:
    raise SystemExit(1)


def _steps_to_verify(verify: str | None, steps: list[int]) -> set[int]:
  if verify in (None, 'all'):
    return set(steps if verify else ())
  if not verify.isdecimal() or int(verify) not in steps:
    raise UserError(f'--verify={verify}: expected `all` or one of {", ".join(map(str, steps))}')
  return {int(verify)}


def _show_job(job: str) -> None:
  """Prints what the checkpoints belong to."""
  from laser_pax.experiment import jobs

  run = jobs.read_mark(job)
  if run is None:
    print(f'{job}: no {jobs.MARK} says of which experiment')
    return
  changed = ''.join(f' {name}={value}' for name, value in run.overrides.items())
  print(f'{job}: {run.experiment}{changed}')


def _fault(job: str, step: int, is_verified: bool) -> str | None:
  compare = checkpoints.damaged_files if is_verified else checkpoints.cut_files
  return checkpoints.fault(job, step, compare)


def _show_checkpoints(
  job: str, steps: list[int], faults: Mapping[int, str], verified: set[int]
) -> None:
  """Prints a table."""
  from rich import box
  from rich.console import Console
  from rich.table import Table

  from laser_pax.experiment.saved_models import Saved

  table = Table(box=box.SIMPLE_HEAD)
  for name in ('step', 'bytes', 'weights', 'evaluation'):
    table.add_column(name, justify='right', no_wrap=True)
  table.add_column('state', no_wrap=True)
  figures = checkpoints.figures(job)
  for step in steps:
    saved = Saved(job, step, None)
    state = 'not whole' if step in faults else _wholeness(saved.folder, step in verified)
    figure = f'{figures[step]:.4f}' if step in figures else ''
    table.add_row(f'{step:,}', _bytes(saved.folder), _weights(saved), figure, state)
  Console(soft_wrap=True).print(table)


def _wholeness(folder: epath.Path, is_verified: bool) -> str:
  if not is_verified:
    return 'whole'
  if checkpoints.has_checksums(folder):
    return 'whole, verified'
  return 'whole, no checksums'


def _bytes(folder: epath.Path) -> str:
  """Returns the size of a checkpoint; nothing for one in a bucket."""
  if '://' in os.fspath(folder):
    return ''
  return f'{sum(checkpoints.sizes(pathlib.Path(folder)).values()):,}'


def _weights(saved: Saved) -> str:
  """Returns how many numbers the model of a checkpoint has; nothing where it cannot be read."""
  import math

  from laser_pax.experiment import saved_models

  try:
    return f'{sum(map(math.prod, saved_models.shapes(saved).values())):,}'
  except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError):
    return ''
