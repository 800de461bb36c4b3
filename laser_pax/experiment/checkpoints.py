"""Which checkpoints of a run are whole, and what becomes of those that are not.

PAX resumes from the newest checkpoint, whatever it holds. A machine that fails, or a disk that is
full, can leave one without files or with files cut short. So each checkpoint gets a list of its
files and their sizes, before it appears under its name. At a start the newest whole checkpoint is
looked for. Newer ones are moved aside, and never deleted.

In a bucket a file appears whole or not at all, and PAX marks a finished checkpoint itself. There
only what every checkpoint has is looked for.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
from typing import TYPE_CHECKING, NamedTuple

from laser_pax import folders
from laser_pax.errors import UserError

if TYPE_CHECKING:
  from etils import epath

# The list of a checkpoint's files, in its folder.
LIST = 'files.json'
# The folder, beside `checkpoints`, of those that are not whole.
ASIDE = 'checkpoints_not_whole'


class Survey(NamedTuple):
  """The checkpoints of a run.

  Attributes:
    whole: Step of the newest whole checkpoint, or None.
    faults: What is wrong with each checkpoint that must not be used, by step.
  """

  whole: int | None
  faults: dict[int, str]


@functools.cache
def list_files_of_each() -> None:
  """Makes each checkpoint that is saved get its list. Calls after the first do nothing.

  Orbax writes a checkpoint under another name, and renames it when all processes have written. Its
  handlers see single items and not the whole, so the list is written where it renames.
  """
  from orbax.checkpoint import utils

  commit = utils.on_commit_callback

  @functools.wraps(commit)
  def list_and_commit(temporary, *args, **kwargs):
    if '://' not in os.fspath(temporary):
      write_list(temporary)
    return commit(temporary, *args, **kwargs)

  utils.on_commit_callback = list_and_commit


def write_list(folder: os.PathLike | str) -> None:
  """Writes the list of a local checkpoint's files, when all others are written."""
  text = json.dumps(_sizes(pathlib.Path(folder)), indent=0)
  (pathlib.Path(folder) / LIST).write_text(text)


def _sizes(folder: pathlib.Path) -> dict[str, int]:
  """Returns the size of each file below a folder, by its path from there."""
  files = (pathlib.Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
  return {str(file.relative_to(folder)): file.stat().st_size for file in sorted(files)}


def survey(job_log_dir: os.PathLike | str) -> Survey:
  """Looks for the newest whole checkpoint. Older ones are only looked at for PAX's metadata."""
  whole, faults = None, {}
  for step, folder in sorted(_checkpoints(job_log_dir).items(), reverse=True):
    found = _missing_parts(folder) or (_wrong_files(folder) if whole is None else None)
    if found:
      faults[step] = found
    elif whole is None:
      whole = step
  return Survey(whole, faults)


def steps(job_log_dir: os.PathLike | str) -> list[int]:
  """Returns the steps of the finished checkpoints, whole or not, in order."""
  return sorted(_checkpoints(job_log_dir))


def fault(job_log_dir: os.PathLike | str, step: int) -> str | None:
  """Returns what is wrong with a checkpoint, or None."""
  folder = _checkpoints(job_log_dir).get(step)
  if folder is None:
    return 'there is none of this step'
  return _missing_parts(folder) or _wrong_files(folder)


def set_aside(job_log_dir: os.PathLike | str) -> list[str]:
  """Moves checkpoints that are not whole out of PAX's way. Each process of a job calls this.

  Returns:
    A line for each that was moved, and one that says where the run goes on.

  Raises:
    UserError: There are checkpoints after step 0, and none is whole. Then nothing is moved.
  """
  import jax
  from jax.experimental import multihost_utils

  found = survey(job_log_dir)
  reasons = [f'checkpoint {step} is not whole: {fault}' for step, fault in found.faults.items()]
  if found.whole is None and any(found.faults):
    raise UserError(
      f'{job_log_dir}: {"; ".join(reasons)}. No other is there: bring one back, or name another '
      '--job_log_dir to start from the beginning'
    )
  if jax.process_index() == 0:
    for step in found.faults:
      _move_aside(job_log_dir, step)
  if jax.process_count() > 1:  # None may look for checkpoints before they are moved.
    multihost_utils.sync_global_devices('laser_pax: checkpoints that are not whole')
  if not found.faults:
    return []
  where = f'goes on from {found.whole}' if found.whole is not None else 'starts from the beginning'
  return [*reasons, f'they are in {ASIDE} now; the run {where}']


def newest_whole(job_log_dir: os.PathLike | str) -> str:
  """Returns which checkpoint a run would go on from, in words."""
  try:
    whole = survey(job_log_dir).whole
  except OSError as e:
    return f'checkpoints cannot be read ({e.strerror})'
  return 'no checkpoint is whole' if whole is None else f'the newest whole checkpoint is {whole}'


def _checkpoints(job_log_dir: os.PathLike | str) -> dict[int, epath.Path]:
  """Returns the folders of finished checkpoints, by step."""
  from etils import epath

  folder = epath.Path(folders.resolve(job_log_dir)) / 'checkpoints'
  names = [(re.fullmatch(r'checkpoint_(\d+)', p.name), p) for p in _entries(folder)]
  in_bucket = '://' in os.fspath(folder)
  return {
    int(match[1]): path
    for match, path in names
    if match and not (in_bucket and not (path / 'commit_success.txt').exists())
  }


def _entries(folder: epath.Path) -> list[epath.Path]:
  return list(folder.iterdir()) if folder.exists() else []


def _missing_parts(folder: epath.Path) -> str | None:
  """Returns which part is missing that every checkpoint of PAX has."""
  if not folder.is_dir():
    return 'it is no folder'
  if not _entries(folder):
    return 'its folder is empty'
  if not _entries(folder / 'state'):
    return 'it has no state'
  try:
    json.loads((folder / 'metadata' / 'metadata').read_text())
  except FileNotFoundError:
    return 'it has no metadata'
  except ValueError:
    return 'its metadata are cut short'
  return None


def _wrong_files(folder: epath.Path) -> str | None:
  """Returns which file of a local checkpoint is missing or cut."""
  if '://' in os.fspath(folder):
    return None
  root = pathlib.Path(folder)
  actual = _sizes(root)
  if LIST not in actual:  # It was saved without a list, by PAX alone.
    return next((f'{name} is empty' for name, size in actual.items() if not size), None)
  try:
    expected = json.loads((root / LIST).read_text())
  except ValueError:
    return f'{LIST} is cut short'
  for name, size in expected.items():
    if name not in actual:
      return f'{name} is missing'
    if actual[name] != size:
      return f'{name} has {actual[name]:,} bytes, not {size:,}'
  return None


def _move_aside(job_log_dir: os.PathLike | str, step: int) -> None:
  source = _checkpoints(job_log_dir)[step]
  target = source.parent.parent / ASIDE / source.name
  target.parent.mkdir(parents=True, exist_ok=True)
  number = 1
  while target.exists():
    number += 1
    target = target.with_name(f'{source.name}-{number}')
  source.rename(target)
