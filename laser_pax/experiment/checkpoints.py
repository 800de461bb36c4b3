"""Which checkpoints of a run are whole, and what becomes of those that are not.

PAX resumes from the newest checkpoint, whatever it holds. A machine that fails, or a disk that is
full, can leave one without files, or with files that are cut short or damaged. So each checkpoint
gets a list of its files, with sizes and checksums, before it appears under its name. At a start the
newest whole checkpoint is looked for. Newer ones are moved aside, and never deleted.

In a bucket a file appears whole or not at all, and PAX marks a finished checkpoint itself. There
only what every checkpoint has is looked for.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable
from concurrent import futures
from typing import TYPE_CHECKING, NamedTuple

from laser_pax import folders
from laser_pax.errors import UserError

if TYPE_CHECKING:
  from etils import epath

# The list of a checkpoint's files, in its folder.
LIST = 'files.json'
# What the evaluation of a checkpoint's step gave, in its folder, if there was one.
FIGURE = 'evaluation.json'
# The folder, beside `checkpoints`, of those that are not whole.
ASIDE = 'checkpoints_not_whole'

_THREADS = 8  # Files are read at once.
_BLOCK_BYTES = 2**22


class Survey(NamedTuple):
  """The checkpoints of a run.

  Attributes:
    whole: Step of the newest whole checkpoint, or None.
    faults: What is wrong with each checkpoint that must not be used, by step.
  """

  whole: int | None
  faults: dict[int, str]


# The figures of steps that were evaluated, until a checkpoint of that step is saved.
_figures: dict[int, float] = {}
# The text of each small file that each checkpoint gets.
_notes: dict[str, str] = {}


@functools.cache
def list_files_of_each() -> None:
  """Makes each checkpoint that is saved get its list, its notes, and the figure of its evaluation.

  Calls after the first do nothing.

  Orbax writes a checkpoint under another name, and renames it when all processes have written. Its
  handlers see single items and not the whole, so the list is written where it renames.
  """
  from orbax.checkpoint import utils

  commit = utils.on_commit_callback

  @functools.wraps(commit)
  def list_and_commit(temporary, final, *args, **kwargs):
    step = _step_of(final)
    if step in _figures:
      _write_figure(temporary, _figures.pop(step))
    for name, text in _notes.items():
      (temporary / name).write_text(text)
    if '://' not in os.fspath(temporary):
      write_list(temporary)
    return commit(temporary, final, *args, **kwargs)

  utils.on_commit_callback = list_and_commit


def add_note(name: str, text: str) -> None:
  """Makes each checkpoint that is saved from now on get a small file."""
  _notes[name] = text


def read_note(job_log_dir: os.PathLike | str, step: int, name: str) -> str | None:
  """Returns a small file of a checkpoint, or None where it has none."""
  file = _checkpoints(job_log_dir)[step] / name
  return file.read_text() if file.exists() else None


def remember_figure(job_log_dir: os.PathLike | str, step: int, value: float) -> None:
  """Keeps the figure that a step's evaluation gave, beside the step's checkpoint.

  Args:
    job_log_dir: The job's folder.
    step: The step. PAX evaluates it before it saves it; then the checkpoint gets the figure later.
    value: The figure that the run is judged by.
  """
  folder = _checkpoints(job_log_dir).get(step)
  if folder is None:
    _figures[step] = value
  else:
    _write_figure(folder, value)


def _write_figure(folder: os.PathLike | str, value: float) -> None:
  from etils import epath

  file = epath.Path(folder) / FIGURE
  new = file.with_name(f'{FIGURE}.new')
  new.write_text(json.dumps({'value': value}))
  new.replace(file)


def figures(job_log_dir: os.PathLike | str) -> dict[int, float]:
  """Returns the figure of each finished checkpoint that has one, by step."""
  values = {}
  for step, folder in _checkpoints(job_log_dir).items():
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
      values[step] = float(json.loads((folder / FIGURE).read_text())['value'])
  return values


def write_list(folder: os.PathLike | str) -> None:
  """Writes the list of a local checkpoint's files, when all others are written."""
  root = pathlib.Path(folder)
  listed = {name: n for name, n in sizes(root).items() if not _may_change(name)}
  sums = checksums(root, listed)
  files = {name: {'bytes': n, 'crc32': sums[name]} for name, n in listed.items()}
  (root / LIST).write_text(json.dumps(files, indent=0))


def sizes(folder: pathlib.Path) -> dict[str, int]:
  """Returns the size of each file below a folder, by its path from there."""
  files = (pathlib.Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
  return {str(file.relative_to(folder)): file.stat().st_size for file in sorted(files)}


def _may_change(name: str) -> bool:
  """Returns whether a file is no part of what was saved: a figure, or what NFS leaves behind."""
  return name.startswith(FIGURE) or pathlib.Path(name).name.startswith('.nfs')


def checksums(folder: pathlib.Path, names: Iterable[str] | None = None) -> dict[str, str]:
  """Returns the CRC-32 of files below a folder, in hexadecimal, by their paths from there.

  A core reads two gigabytes a second. CRC-32 finds damage, and does not withstand an attacker.

  Args:
    folder: The folder.
    names: The files; None for all.
  """
  names = list(sizes(folder) if names is None else names)
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    return dict(zip(names, pool.map(lambda name: _crc32(folder / name), names), strict=True))


def _crc32(file: pathlib.Path) -> str:
  crc = 0
  with file.open('rb') as content:
    while block := content.read(_BLOCK_BYTES):
      crc = zlib.crc32(block, crc)
  return f'{crc:08x}'


def survey(
  job_log_dir: os.PathLike | str, wrong_files: Callable[[epath.Path], str | None] | None = None
) -> Survey:
  """Looks for the newest whole checkpoint. Older ones are only looked at for PAX's metadata.

  Args:
    job_log_dir: The job's folder.
    wrong_files: How files are compared with their list: by their sizes (the default, `cut_files`),
      or by their contents (`damaged_files`).
  """
  whole, faults = None, {}
  for step, folder in sorted(_checkpoints(job_log_dir).items(), reverse=True):
    found = _missing_parts(folder)
    if whole is None:
      found = found or (wrong_files or cut_files)(folder)
    if found:
      faults[step] = found
    elif whole is None:
      whole = step
  return Survey(whole, faults)


def steps(job_log_dir: os.PathLike | str) -> list[int]:
  """Returns the steps of the finished checkpoints, whole or not, in order."""
  return sorted(_checkpoints(job_log_dir))


def fault(
  job_log_dir: os.PathLike | str,
  step: int,
  wrong_files: Callable[[epath.Path], str | None] | None = None,
) -> str | None:
  """Returns what is wrong with a checkpoint, or None. The arguments are those of `survey`."""
  folder = _checkpoints(job_log_dir).get(step)
  if folder is None:
    return 'there is none of this step'
  return _missing_parts(folder) or (wrong_files or cut_files)(folder)


def set_aside(job_log_dir: os.PathLike | str) -> list[str]:
  """Moves checkpoints that are not whole out of PAX's way. Each process of a job calls this.

  The first process reads the files of the checkpoint to go on from, and compares their checksums.

  Returns:
    A line for each that was moved, and one that says where the run goes on.

  Raises:
    UserError: There are checkpoints after step 0, and none is whole. Then nothing is moved.
  """
  import jax
  from jax.experimental import multihost_utils

  found = survey(job_log_dir, damaged_files if jax.process_index() == 0 else cut_files)
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
  # Orbax marks a finished checkpoint in Google's buckets alone, and renames it elsewhere.
  is_marked = os.fspath(folder).startswith('gs://')
  return {
    step: path
    for path in _entries(folder)
    if (step := _step_of(path)) is not None
    and not (is_marked and not (path / 'commit_success.txt').exists())
  }


def _step_of(folder: os.PathLike | str) -> int | None:
  """Returns the step that a finished checkpoint's name has, or None."""
  match = re.fullmatch(r'checkpoint_(\d+)', os.path.basename(os.fspath(folder)))
  return int(match[1]) if match else None


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


def cut_files(folder: epath.Path) -> str | None:
  """Returns which file of a local checkpoint is missing, or has another size than its list says."""
  if '://' in os.fspath(folder):
    return None
  root = pathlib.Path(folder)
  actual = sizes(root)
  if LIST not in actual:  # It was saved without a list, by PAX alone.
    return next((f'{name} is empty' for name, size in actual.items() if not size), None)
  expected = _listed(root)
  if expected is None:
    return f'{LIST} is cut short'
  for name, (size, _) in expected.items():
    if name not in actual:
      return f'{name} is missing'
    if actual[name] != size:
      return f'{name} has {actual[name]:,} bytes, not {size:,}'
  return None


def damaged_files(folder: epath.Path) -> str | None:
  """Returns which file of a local checkpoint is missing, cut, or has other contents than listed."""
  fault = cut_files(folder)
  root = pathlib.Path(folder)
  if fault or '://' in os.fspath(folder) or not (root / LIST).exists():
    return fault
  listed = _listed(root) or {}
  try:
    actual = checksums(root, listed)
  except OSError as e:
    return f'{e.filename or "a file"} cannot be read ({e.strerror})'
  for name, (_, crc) in listed.items():
    if crc is not None and actual[name] != crc:
      return f'{name} is damaged: its checksum is {actual[name]}, not {crc}'
  return None


def has_checksums(folder: epath.Path) -> bool:
  """Returns whether a checkpoint's list has checksums, against which its files can be compared."""
  root = pathlib.Path(folder)
  listed = _listed(root) if '://' not in os.fspath(folder) and (root / LIST).exists() else None
  return bool(listed) and all(crc is not None for _, crc in listed.values())


def _listed(root: pathlib.Path) -> dict[str, tuple[int, str | None]] | None:
  """Returns size and checksum of each listed file; None if the list is cut short.

  Lists once had sizes alone.
  """
  try:
    files = json.loads((root / LIST).read_text())
    return {
      name: (entry, None) if isinstance(entry, int) else (entry['bytes'], entry['crc32'])
      for name, entry in files.items()
    }
  except (ValueError, TypeError, KeyError, AttributeError):
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
