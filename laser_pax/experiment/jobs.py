"""Job folders: the mark that names the run of a folder, and the exit code of a saved run.

The mark is the file experiment.txt. Its first line is the experiment's full name; each line after
it is an override.

jax and epath are imported where they are used, so that a program that needs only the exit code
starts fast.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from laser_pax import folders
from laser_pax.errors import UserError
from laser_pax.experiment import overrides

if TYPE_CHECKING:
  from etils import epath

MARK = 'experiment.txt'
# A training holds this file, so that no second one starts in the folder.
LOCK = 'running.lock'
# The copy of the vocabulary that a run trains with, in its folder.
VOCABULARY = 'vocab.model'

# A run ends with this exit code when SIGTERM stopped it and it saved a checkpoint. The same command
# then continues it. The name of the code in sysexits.h is EX_TEMPFAIL.
SAVED_ON_DEMAND = 75

# These overrides say where and how a step is computed. A run may continue with other values of
# them, on other chips.
_LAYOUT = ('POD', 'ICI_MESH_SHAPE', 'DCN_MESH_SHAPE', 'CHECKPOINT_POLICY', 'MICRO_BATCHES')


class Run(NamedTuple):
  """The run that a mark names.

  Attributes:
    experiment: Full name of the experiment.
    overrides: Values of the attributes that were overridden, by name.
  """

  experiment: str
  overrides: dict[str, Any]


def mark_text(experiment: str, changed: Iterable[str]) -> str:
  """Returns the mark of a run, without the overrides that only lay it out on chips.

  Args:
    experiment: Full name of the experiment.
    changed: One `NAME=VALUE` for each override.
  """
  kept = sorted(f'fdl.{o}' for o in changed if o.partition('=')[0] not in _LAYOUT)
  return '\n'.join([experiment, *kept])


def check_run(folder: os.PathLike | str, mark: str) -> None:
  """Checks that a folder holds no checkpoints of another run.

  Args:
    folder: Folder of the job.
    mark: Mark of the run that is to use the folder, from `mark_text`.

  Raises:
    UserError: The folder holds checkpoints of another run.
  """
  owner = _owner(folder, mark)
  if _run(owner) != _run(mark):
    raise UserError(
      f'{folder} holds a run of {" ".join(owner.split())}, not of {" ".join(mark.split())}: name '
      f'another --job_log_dir; to continue from its checkpoints nevertheless, edit {_file(folder)}'
    )


def check_experiment(folder: os.PathLike | str, mark: str) -> None:
  """Checks that a folder holds no checkpoints of another experiment. Overrides may differ.

  Args:
    folder: Folder of the job.
    mark: Mark of the run that is to use the folder, from `mark_text`.

  Raises:
    UserError: The folder holds checkpoints of another experiment.
  """
  owner, name = (text.split()[0] for text in (_owner(folder, mark), mark))
  if owner != name:
    raise UserError(f'{folder} holds a run of {owner}, not of {name}: name another folder')


def write_mark(folder: os.PathLike | str, mark: str) -> None:
  """Marks a folder as this run's. Only the first of several processes writes the mark.

  A folder without checkpoints belongs to no run, so its mark is replaced. A mark beside checkpoints
  stays as it is: other processes may be reading it.

  Args:
    folder: Folder of the job, made if missing.
    mark: Mark of this run, from `mark_text`.
  """
  import jax

  if jax.process_index() > 0:
    return
  file = _file(folder)
  if file.exists() and (_has_checkpoints(folder) or file.read_text().strip() == mark):
    return
  file.parent.mkdir(parents=True, exist_ok=True)
  new = file.with_name(f'{MARK}.new')
  new.write_text(mark + '\n')
  new.replace(file)


@functools.cache
def hold(folder: str) -> None:
  """Holds a local folder as long as this process lives, so that no second training starts there.

  Only the first of several processes holds it. Calls after the first do nothing.

  Raises:
    UserError: Another training holds it.
  """
  import jax

  if jax.process_index() > 0 or '://' in folder:
    return
  lock = pathlib.Path(folder) / LOCK
  lock.parent.mkdir(parents=True, exist_ok=True)
  lock.touch()
  owner = lock.read_text().strip() or 'another process'
  refusal = (
    f'{folder} is held by a training that runs, {owner}: wait for its end, stop it, or name '
    'another --job_log_dir'
  )
  file = _held.enter_context(folders.locked(lock, refusal))
  file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
  file.flush()


_held = contextlib.ExitStack()  # What this process holds until it ends.


def read_mark(folder: os.PathLike | str) -> Run | None:
  """Returns the run that a folder's mark names, or None where there is no mark."""
  file = _file(folder)
  text = file.read_text().strip() if file.exists() else ''
  return _run(text) if text else None


def check_vocabulary(folder: os.PathLike | str, vocabulary: os.PathLike | str) -> None:
  """Checks that the checkpoints of a folder were not trained with another vocabulary.

  Args:
    folder: Folder of the job.
    vocabulary: File of the vocabulary.

  Raises:
    UserError: They were.
  """
  from etils import epath

  kept = _file(folder).with_name(VOCABULARY)
  if not kept.exists() or not _has_checkpoints(folder):
    return
  if kept.read_bytes() != epath.Path(vocabulary).read_bytes():
    raise UserError(
      f'{kept} is the vocabulary of the checkpoints in {folder}, and {vocabulary} is another: name '
      'that vocabulary, or another --job_log_dir'
    )


def keep_vocabulary(folder: os.PathLike | str, vocabulary: os.PathLike | str) -> None:
  """Copies the vocabulary of a run into its folder. Only the first of several processes does.

  Args:
    folder: Folder of the job.
    vocabulary: File of the vocabulary.

  Raises:
    UserError: The folder holds checkpoints that were trained with another vocabulary.
  """
  import jax
  from etils import epath

  if jax.process_index() > 0:
    return
  check_vocabulary(folder, vocabulary)
  kept, contents = _file(folder).with_name(VOCABULARY), epath.Path(vocabulary).read_bytes()
  if kept.exists() and kept.read_bytes() == contents:
    return
  new = kept.with_name(f'{VOCABULARY}.new')
  new.write_bytes(contents)
  new.replace(kept)


def kept_vocabulary(folder: os.PathLike | str) -> epath.Path | None:
  """Returns the vocabulary that a folder keeps beside its checkpoints, or None."""
  kept = _file(folder).with_name(VOCABULARY)
  return kept if kept.exists() else None


def _run(mark: str) -> Run:
  """Returns the run of a mark's text. `1e-3` and `0.001` are one value."""
  experiment, *changed = mark.splitlines()
  parts = (line.removeprefix('fdl.').partition('=') for line in changed)
  return Run(experiment, {name: overrides.read(value) for name, _, value in parts})


def _file(folder: os.PathLike | str) -> epath.Path:
  from etils import epath

  return epath.Path(folders.resolve(folder)) / MARK


def _has_checkpoints(folder: os.PathLike | str) -> bool:
  return (_file(folder).parent / 'checkpoints').exists()


def _owner(folder: os.PathLike | str, mark: str) -> str:
  """Returns the mark of the run whose checkpoints are in the folder, else `mark`."""
  file = _file(folder)
  if not _has_checkpoints(folder):
    return mark
  if file.exists() and (owner := file.read_text().strip()):
    return owner
  if any(file.parent.joinpath('checkpoints').iterdir()):
    raise UserError(
      f'{file.parent} holds checkpoints, but no {MARK} says of which run: name another folder; or, '
      f'to continue from them, write the name of their experiment into {file}'
    )
  return mark
