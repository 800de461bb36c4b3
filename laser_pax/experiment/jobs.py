"""Job folders: the mark that says whose run a folder holds, and how a run ends.

The mark is the file experiment.txt: the experiment's full name, then its overrides, one a line.
"""

import os
from collections.abc import Iterable

from etils import epath

from laser_pax.errors import UserError

MARK = 'experiment.txt'

# The exit code of a run that SIGTERM ended after it had saved a checkpoint: run it again. The name
# in sysexits.h is EX_TEMPFAIL.
SAVED_ON_DEMAND = 75

# Overrides of where and how a step is computed. A run may go on under others, on other chips.
_LAYOUT = ('POD', 'ICI_MESH_SHAPE', 'DCN_MESH_SHAPE', 'CHECKPOINT_POLICY', 'MICRO_BATCHES')


def mark_text(experiment: str, overrides: Iterable[str]) -> str:
  """Returns the mark of a run, without the overrides that only lay it out on chips.

  Args:
    experiment: The full name.
    overrides: `NAME=VALUE` of each.
  """
  kept = sorted(f'fdl.{o}' for o in overrides if o.partition('=')[0] not in _LAYOUT)
  return '\n'.join([experiment, *kept])


def check_run(folder: os.PathLike | str, mark: str) -> None:
  """Checks that a folder holds checkpoints of no other run.

  Args:
    folder: The job's folder.
    mark: Of the run that is to use it, by `mark_text`.

  Raises:
    UserError: it holds another run.
  """
  owner = _owner(folder, mark)
  if owner != mark:
    raise UserError(
      f'{folder} holds a run of {" ".join(owner.split())}, not of {" ".join(mark.split())}: name '
      f'another --job_log_dir, or, to go on from there nevertheless, edit {_file(folder)}'
    )


def check_experiment(folder: os.PathLike | str, mark: str) -> None:
  """Checks that a folder holds checkpoints of no other experiment, whatever the overrides.

  Args:
    folder: The job's folder.
    mark: As in `check_run`.

  Raises:
    UserError: it holds another experiment.
  """
  owner, name = (text.split()[0] for text in (_owner(folder, mark), mark))
  if owner != name:
    raise UserError(f'{folder} holds a run of {owner}, not of {name}: name another folder')


def write_mark(folder: os.PathLike | str, mark: str) -> None:
  """Marks a folder as this run's; the first of several processes does so, once.

  A folder without checkpoints belongs to nobody. A mark beside checkpoints stays: other processes
  may be reading it.

  Args:
    folder: The job's folder, made if missing.
    mark: As in `check_run`.
  """
  import jax  # Here: who only asks for the exit code need not wait for it.

  if jax.process_index() > 0:
    return
  file = _file(folder)
  if file.exists() and (_has_checkpoints(folder) or file.read_text().strip() == mark):
    return
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(mark + '\n')


def _file(folder: os.PathLike | str) -> epath.Path:
  return epath.Path(folder).expanduser() / MARK


def _has_checkpoints(folder: os.PathLike | str) -> bool:
  return (_file(folder).parent / 'checkpoints').exists()


def _owner(folder: os.PathLike | str, mark: str) -> str:
  """Returns the mark of the run whose checkpoints the folder holds; `mark` if it has none."""
  file = _file(folder)
  return file.read_text().strip() if _has_checkpoints(folder) and file.exists() else mark
