"""The source files of a data set: those of the user's folders, and what was left out, with why."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from laser_pax import folders
from laser_pax.errors import UserError

JSON_SUFFIXES = ('.json', '.jsonl', '.json.gz', '.jsonl.gz')
SUFFIXES = (*JSON_SUFFIXES, '.txt', '.txt.gz')

HIDDEN = 'its name begins with a dot'
OTHER_SUFFIX = 'no suffix of a source'
NOT_REGULAR = 'no regular file'
PREPARED = 'what `prepare` wrote'
SAME_FILE = 'the same file as one that is taken'
LEAK = 'a copy of a file to evaluate on'

# A download from a Git repository may be a small text that stands for the file.
_LFS_POINTER = b'version https://git-lfs'
# A finished data set has one of these files: TFDS's own, and the report of `prepare`.
_MARKS_OF_DATA = ('dataset_info.json', 'report.json')


class LeftOut(NamedTuple):
  """A file or folder that was found and not taken.

  Attributes:
    path: Absolute path.
    reason: One of the reasons above.
  """

  path: Path
  reason: str


class Sources(NamedTuple):
  """What a search found.

  Attributes:
    taken: The files to read, absolute paths, sorted by their bytes, without repetition.
    left_out: The others, sorted likewise. A folder that was left out stands for its files.
    copies: For each of `taken` whose content an earlier one has, that earlier one.
  """

  taken: list[Path]
  left_out: list[LeftOut]
  copies: dict[Path, Path]


def suffix_of(path: Path) -> str | None:
  """Returns the suffix of a source file in lower case, or None if it has none of `SUFFIXES`."""
  name = path.name.lower()
  return next((s for s in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(s)), None)


def _has_suffix(path: Path) -> bool:
  return suffix_of(path) is not None


def find_sources(
  paths: Sequence[str | Path],
  own: Path | None = None,
  is_source: Callable[[Path], bool] = _has_suffix,
  known: Sequence[str] = SUFFIXES,
) -> Sources:
  """Finds the source files among `paths` and, recursively, in the folders among them.

  A source file is a regular file with one of `SUFFIXES`, in upper or lower case. Links are
  followed, and a file that is reached twice is taken once. In folders, what begins with a dot is
  left out, and so is what `prepare` wrote.

  Args:
    paths: Source files, and folders that contain such files.
    own: Folder that is being written. Files and folders beside it whose names begin with its name
      are passed over.
    is_source: Whether a file's name is that of a source.
    known: Suffixes to name to the user.

  Raises:
    UserError: A path does not exist, is a file of another kind, is empty or cannot be read, or is a
      folder without sources. Or a link leads nowhere.
  """
  if not paths:
    raise UserError(f'no source given: name files ({", ".join(known)}) or folders of them')
  search = _Search(own, is_source, ', '.join(known))
  named = sorted(set(map(folders.resolve_local, paths)), key=os.fsencode)
  for path in named:  # In this order, so that the order of the words decides nothing.
    search.add(path)
  return search.result()


class _Search:
  """The files that were found so far."""

  def __init__(self, own: Path | None, is_source: Callable[[Path], bool], known: str):
    self.own, self.is_source, self.known = own, is_source, known
    self.found: list[Path] = []
    self.left_out: list[LeftOut] = []
    self._folders: set[tuple[int, int]] = set()

  def add(self, path: Path) -> None:
    """Adds a file or folder that the user named."""
    status = _status(path)
    if stat.S_ISDIR(status.st_mode):
      found_before = len(self.found)
      self._add_folder(path)
      if len(self.found) == found_before and not self._is_all_known(path):
        raise UserError(
          f'{folders.shown(path)}: no source file in this folder; expected files named '
          f'*{{{self.known}}}'
        )
    elif not stat.S_ISREG(status.st_mode) or not self.is_source(path):
      raise UserError(f'{folders.shown(path)}: not a source file; expected one of {self.known}')
    else:
      self.found.append(path)

  def _is_all_known(self, path: Path) -> bool:
    """Whether the folder, or something below it, was found before under another name."""
    known = [x.path for x in self.left_out if x.reason == SAME_FILE]
    return any(path == x or path in x.parents for x in known)

  def _add_folder(self, folder: Path) -> None:
    status = _status(folder)
    if (status.st_dev, status.st_ino) in self._folders:
      self.left_out.append(LeftOut(folder, SAME_FILE))
      return
    self._folders.add((status.st_dev, status.st_ino))
    try:
      entries = sorted(folder.iterdir(), key=os.fsencode)
    except OSError as e:
      raise _unreadable(folder, e) from e
    for entry in entries:
      self._add_entry(entry)

  def _is_own(self, path: Path) -> bool:
    """Whether a path is part of what is being written."""
    return (
      self.own is not None
      and path.name.startswith(self.own.name)
      and path.parent.resolve() == self.own.parent.resolve()
    )

  def _add_entry(self, path: Path) -> None:
    if self._is_own(path):
      return
    if path.name.startswith('.'):
      self.left_out.append(LeftOut(path, HIDDEN))
      return
    if not self.is_source(path) and not path.exists():  # A link of no interest that leads nowhere.
      self.left_out.append(LeftOut(path, OTHER_SUFFIX))
      return
    mode = _status(path).st_mode
    if stat.S_ISDIR(mode):
      if _is_prepared(path):
        self.left_out.append(LeftOut(path, PREPARED))
      else:
        self._add_folder(path)
    elif not self.is_source(path):
      self.left_out.append(LeftOut(path, OTHER_SUFFIX))
    elif not stat.S_ISREG(mode):
      self.left_out.append(LeftOut(path, NOT_REGULAR))
    else:
      self.found.append(path)

  def result(self) -> Sources:
    """Returns the files without repetitions, after a first look into each."""
    taken: list[Path] = []
    inodes: set[tuple[int, int]] = set()
    for path in sorted(set(self.found), key=os.fsencode):
      status = _status(path)
      if (status.st_dev, status.st_ino) in inodes:
        self.left_out.append(LeftOut(path, SAME_FILE))
        continue
      inodes.add((status.st_dev, status.st_ino))
      _check(path)
      taken.append(path)
    left_out = sorted(set(self.left_out), key=lambda x: os.fsencode(x.path))
    return Sources(taken, left_out, _copies(taken))


def _is_prepared(folder: Path) -> bool:
  """Whether a folder is a finished data set, or unfinished work of `prepare`."""
  is_unfinished = re.search(r'\.incomplete-[0-9a-f]{8}$', folder.name) is not None
  return is_unfinished or any((folder / name).exists() for name in _MARKS_OF_DATA)


def _status(path: Path) -> os.stat_result:
  """Returns the state of what a path or link leads to."""
  try:
    return path.stat()
  except FileNotFoundError as e:
    if path.is_symlink():
      raise UserError(f'{folders.shown(path)}: this link leads nowhere; mend or remove it') from e
    raise UserError(f'{folders.shown(path)}: no such file or folder; name an existing one') from e
  except OSError as e:
    raise _unreadable(path, e) from e


def _unreadable(path: Path, error: OSError) -> UserError:
  return UserError(
    f'{folders.shown(path)}: cannot be read ({error.strerror}); check it and its permissions'
  )


def _check(path: Path) -> None:
  """Looks at the first bytes of a file.

  Raises:
    UserError: It is empty, cannot be read, or stands for another file.
  """
  try:
    with path.open('rb') as file:
      start = file.read(len(_LFS_POINTER))
  except OSError as e:
    raise _unreadable(path, e) from e
  if not start:
    raise UserError(
      f'{folders.shown(path)}: this source is empty (0 bytes); fetch it again, or remove it'
    )
  if start == _LFS_POINTER:
    raise UserError(
      f'{folders.shown(path)}: a pointer of git-lfs, not the file itself; run: git lfs pull'
    )


def _copies(paths: Iterable[Path]) -> dict[Path, Path]:
  """Returns the files whose content an earlier file has, and that. Files of one size are read."""
  by_size: dict[int, list[Path]] = {}
  for path in paths:
    by_size.setdefault(path.stat().st_size, []).append(path)
  copies: dict[Path, Path] = {}
  contents: dict[bytes, Path] = {}
  for same_size in by_size.values():
    for path in same_size if len(same_size) > 1 else ():
      with path.open('rb') as file:
        content = hashlib.file_digest(file, 'sha256').digest()
      if content in contents:
        copies[path] = contents[content]
      contents.setdefault(content, path)
  return copies


def without_leaks(sources: Sources, is_validation: Callable[[Path], bool]) -> Sources:
  """Leaves out each training file that is a copy of a validation file.

  Args:
    sources: What was found.
    is_validation: Whether a file is to evaluate on.
  """
  groups: dict[Path, list[Path]] = {}
  for copy, first in sources.copies.items():
    groups.setdefault(first, [first]).append(copy)
  leaks = {
    path
    for group in groups.values()
    if any(map(is_validation, group))
    for path in group
    if not is_validation(path)
  }
  return without(sources, leaks, LEAK)


def without(sources: Sources, paths: Set[Path], reason: str) -> Sources:
  """Leaves out some files.

  Args:
    sources: What was found.
    paths: The files of `taken` to leave out.
    reason: Why.
  """
  left_out = [*sources.left_out, *(LeftOut(path, reason) for path in paths)]
  return Sources(
    [path for path in sources.taken if path not in paths],
    sorted(left_out, key=lambda x: os.fsencode(x.path)),
    {copy: first for copy, first in sources.copies.items() if not {copy, first} & paths},
  )
