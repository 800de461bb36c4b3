"""Converts SuperGLUE's downloads into TFDS data sets of the layout super_glue/TASK/1.0.2.

Sources are SuperGLUE's archives, a .zip for each task or for all, and folders that have what is in
them: TASK/train.jsonl, TASK/val.jsonl, and TASK/test.jsonl, which may be missing. TASK is one of
BoolQ, CB, COPA, MultiRC, ReCoRD, RTE, WiC and WSC. superglue_rows.py has the fields of a line.

| what is found | what becomes of it |
|---|---|
| a blank line | passed over |
| a line that is no JSON, lacks a field, or has one of another type | refused, with file and line |
| a label that is no class of the task, or is missing (but in test) | refused, likewise |
| an `idx` that comes twice in a split | refused, likewise |
| another folder's .jsonl files | refused |
| AX-b and AX-g, which have no labels | left out, with this reason |
| an archive that is damaged, or has another number of rows than SuperGLUE's | refused |
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from rich.progress import Progress

from laser_pax import folders
from laser_pax.data.datasets import SUPER_GLUE
from laser_pax.data.prepare import archives, files, parts, shards, superglue_rows
from laser_pax.data.superglue_tasks import TASKS
from laser_pax.errors import UserError

ARCHIVE = '.zip'
SPLITS = {'train.jsonl': 'train', 'val.jsonl': 'validation', 'test.jsonl': 'test'}
# SuperGLUE's archive of all tasks. The others are named as the tasks' folders.
ALL_TASKS = 'combined.zip'

DIAGNOSTICS = ('AX-b', 'AX-g')
NO_LABELS = 'a diagnostic set, whose labels are not public'

_BY_FOLDER = {task.folder: name for name, task in TASKS.items()}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Row:
  """An example of a line.

  Attributes:
    split: Its split.
    name: What names it in the split, as in TFDS.
    file: The file of the line.
    offset: Where the line begins there.
    size: Bytes of the line; 0 for all examples of a line but the first.
    length: Bytes of the line.
    number: Which of the line's examples it is.
  """

  split: str
  name: str
  file: Path
  offset: int
  size: int
  length: int
  number: int


@dataclasses.dataclass(frozen=True, slots=True)
class _File:
  """A file of lines: its task and split, where it is, and the archive that it came from."""

  task: str
  split: str
  path: Path
  archive: Path | None

  @property
  def shown(self) -> str:
    own = f'{TASKS[self.task].folder}/{self.path.name}'
    return f'{folders.shown(self.archive)}: {own}' if self.archive else folders.shown(self.path)


def prepare(
  source_paths: Sequence[str | Path], data_dir: str | Path, *, progress: Progress | None = None
) -> list[Path]:
  """Writes `data_dir/super_glue/TASK/1.0.2` for each task that there is.

  The result depends on the sources alone. A run that was stopped goes on after its last shard.
  Tasks that are finished already stay as they are, if another one is to be written.

  Args:
    source_paths: Files and folders, see this module.
    data_dir: Local folder for data sets, made if missing.
    progress: Progress bar, which counts bytes of lines.

  Returns:
    The folders of the data sets that were written.

  Raises:
    UserError: All tasks are there already, or a folder cannot be written. A source is none, or is
      damaged. A task lacks a split, or comes twice. Or a line is broken.
  """
  finals = {name: parts.dataset_folder(spec, data_dir) for name, spec in SUPER_GLUE.items()}
  root = Path(folders.resolve(data_dir)) / 'super_glue'
  sources = files.find_sources(source_paths, root, is_source, (ARCHIVE, *SPLITS))
  folders.make_folder(root)
  with (
    parts.writing_to(root),
    folders.locked(root / 'prepare.lock'),
    archives.unpacking_beside(root / 'prepare') as unpacked,
  ):
    task_files, left_out = _find_files(sources, unpacked)
    new = [name for name in task_files if not finals[name].exists()]
    if not new:
      parts.check_new(finals[next(iter(task_files))])
    rows = {name: [row for file in task_files[name] for row in read_rows(file)] for name in new}
    for name in new:
      _check_counts(task_files[name], collections.Counter(row.split for row in rows[name]))
    progress = progress or Progress(disable=True)
    bar = progress.add_task('preparing', total=sum(r.size for own in rows.values() for r in own))
    for name in new:
      conversion = _Conversion(name, finals[name], rows[name])
      conversion.run(sources, left_out, lambda size: progress.advance(bar, size))
  return [finals[name] for name in new]


def is_source(path: Path) -> bool:
  """Whether a file's name is that of a source."""
  return path.name in SPLITS or path.name.lower().endswith(ARCHIVE)


def _find_files(
  sources: files.Sources, unpacked: Path
) -> tuple[dict[str, list[_File]], list[tuple[str, str]]]:
  """Returns the files of each task, and what is left out, with the reasons."""
  task_files: dict[str, list[_File]] = {}
  left_out = []
  for path in sources.taken:
    is_archive = path.suffix.lower() == ARCHIVE
    for own in _unzipped(path, unpacked) if is_archive else [path]:
      folder = own.parent.name
      if folder in DIAGNOSTICS:
        left_out.append((f'{folder}/{own.name}', NO_LABELS))
        continue
      if folder not in _BY_FOLDER:
        raise UserError(
          f'{folders.shown(path)}: {folder} is no task of SuperGLUE: expected {own.name} in a '
          f'folder named {", ".join(_BY_FOLDER)}; name it so'
        )
      name = _BY_FOLDER[folder]
      file = _File(name, SPLITS[own.name], own, path if is_archive else None)
      task_files.setdefault(name, []).append(file)
  if not task_files:
    raise UserError(f'the sources have no task of SuperGLUE; expected {", ".join(_BY_FOLDER)}')
  for own in task_files.values():
    _check_splits(own)
  return {name: task_files[name] for name in TASKS if name in task_files}, left_out


def _check_splits(own: Sequence[_File]) -> None:
  by_split = collections.defaultdict(list)
  for file in own:
    by_split[file.split].append(file)
  folder = TASKS[own[0].task].folder
  for name, split in SPLITS.items():
    if len(by_split[split]) > 1:
      first, second = (file.shown for file in by_split[split][:2])
      raise UserError(f'{folder}/{name} comes twice, as {first} and as {second}: name one of them')
    if not by_split[split] and split != 'test':
      raise UserError(f'{own[0].shown}: expected {folder}/{name} too, and it is not there; add it')


def _unzipped(path: Path, folder: Path) -> list[Path]:
  """Unpacks the lines of an archive, and returns the files, each in its task's folder."""
  # Another archive of the same name, and one that was fetched again, has another folder.
  status = path.stat()
  key = f'{path} {status.st_size} {status.st_mtime_ns}'.encode()
  target = folder / hashlib.sha256(key).hexdigest()[:8]
  own = []
  try:
    with zipfile.ZipFile(path) as archive:
      for member in archive.infolist():
        place = PurePosixPath(member.filename)
        inner = place.parent.name or path.stem
        is_lines = place.name in SPLITS or inner in DIAGNOSTICS and place.suffix == '.jsonl'
        if is_lines and '__MACOSX' not in place.parts:
          file = target / inner / place.name
          own.append(file)
          if not file.exists():  # A file that was unpacked before keeps its time, so work goes on.
            _unpack(archive, member, file)
  except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as e:
    raise UserError(
      f'{folders.shown(path)}: a damaged archive, or not whole ({e}); fetch it again'
    ) from e
  return own


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: Path) -> None:
  """Unpacks a file, which appears whole."""
  file.parent.mkdir(parents=True, exist_ok=True)
  partial = file.with_suffix('.partial')
  with archive.open(member) as lines, partial.open('wb') as copy:
    shutil.copyfileobj(lines, copy, 2**20)
  partial.replace(file)


def read_rows(file: _File) -> Iterator[Row]:
  """Yields the examples of a file, after checking each line.

  Raises:
    UserError: A line is broken, or names an example that an earlier one names.
  """
  names: dict[str, int] = {}
  offset = 0
  with file.path.open('rb') as lines:
    for number, line in enumerate(lines, 1):
      if line.strip():
        for place, name in enumerate(_names(file, number, line)):
          if name in names:
            raise UserError(
              f'{file.shown}, line {number}: idx {name} was in line {names[name]} already; remove '
              'one of them'
            )
          names[name] = number
          yield Row(
            split=file.split,
            name=name,
            file=file.path,
            offset=offset,
            size=0 if place else len(line),
            length=len(line),
            number=place,
          )
      offset += len(line)


def _names(file: _File, number: int, line: bytes) -> list[str]:
  try:
    row = json.loads(line)
    needs_label = file.split != 'test'
    return [name for name, _ in superglue_rows.examples(file.task, row, needs_label=needs_label)]
  except UnicodeDecodeError as e:
    reason = f'not UTF-8 text ({e.reason})'
  except ValueError as e:
    reason = f'no JSON ({e})' if isinstance(e, json.JSONDecodeError) else str(e)
  raise UserError(f'{file.shown}, line {number}: {reason}; mend it, or fetch the file again')


def _check_counts(own: Sequence[_File], counts: Mapping[str, int]) -> None:
  """Checks the rows of SuperGLUE's own archives, which are known by their names."""
  task = TASKS[own[0].task]
  for file in own:
    is_official = file.archive and file.archive.name in (ALL_TASKS, f'{task.folder}{ARCHIVE}')
    expected = task.records[file.split]
    if is_official and counts[file.split] != expected:
      raise UserError(
        f'{file.shown}: expected {expected:,} rows, got {counts[file.split]:,}: fetch it again, or '
        'give its folder in place of the archive'
      )


class _Conversion(shards.Conversion):
  """An example is a record."""

  UNIT = 'rows'
  SHARD_BYTES = 2**27

  def __init__(self, task: str, final: Path, rows: Sequence[Row]):
    self.task = task
    self._features = superglue_rows.features(task)
    final.parent.mkdir(parents=True, exist_ok=True)
    spec = dataclasses.replace(SUPER_GLUE[task], splits=tuple(SPLITS.values()))
    super().__init__(spec, final, rows)

  def convert(self, item: Row) -> shards.Converted:
    import tensorflow as tf

    line = archives.read_at(item.file, item.offset, item.length)
    examples = superglue_rows.examples(self.task, json.loads(line), needs_label=False)
    _, example = list(examples)[item.number]
    record = tf.train.Example.FromString(self._features.serialize_example(example))
    return shards.Converted(record.SerializeToString(deterministic=True))  # TFDS's order varies.

  def features(self) -> Any:
    return self._features
