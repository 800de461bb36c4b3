"""The work of preparing a data set, in parts that are finished one by one.

A part is one large source file, or several small ones that follow each other. A part's shards are
written, and then their counts to a JSON file. This file appears atomically, and marks the part as
finished. After the last part comes the report: what was taken and what was left out. Then the data
set is finished, and the work folder gets its name. If a run was killed, the same command resumes it
after the last finished part.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from rich.progress import Progress

from laser_pax import folders
from laser_pax.data.datasets import DatasetSpec
from laser_pax.data.prepare import documents, files, reports
from laser_pax.errors import UserError

# Small files share a part, up to this size. Ten thousand files then do not become as many shards.
PART_BYTES = 2**24
# What the sources were when the report was written.
_INPUTS = 'inputs.json'


def dataset_folder(dataset: DatasetSpec, data_dir: str | Path) -> Path:
  """Returns the folder of a data set that is to be written.

  Raises:
    UserError: It would lie in a bucket.
  """
  data_dir = folders.resolve(data_dir)
  if '://' in data_dir:
    raise UserError(
      f'{data_dir}: prepare writes to local folders; copy the result there afterwards'
    )
  return Path(data_dir) / dataset.folder


def check_new(final: Path) -> None:
  """Makes the parent folder of a new data set.

  Raises:
    UserError: A finished data set exists, or the folder cannot be written.
  """
  if final.exists():
    raise UserError(f'{final}: exists already and is never overwritten; name another --out')
  folders.make_folder(final.parent)


def is_validation(file: Path) -> bool:
  """Whether a file's name has `validation` in it."""
  return 'validation' in file.name.lower()


class PartWriter(Protocol):
  """What writes the documents of one part.

  Attributes:
    shards: A row for each shard, as `reports.Part` has them.
  """

  shards: list[dict[str, Any]]

  def write(self, split: str, document: documents.Document) -> None:
    """Takes the next document."""

  def close(self) -> None:
    """Writes what is left."""


class Conversion(abc.ABC):
  """One conversion: its parts, and the work folder that their shards are written to.

  Args:
    dataset: The data set. Its first split is the one to train on, its second the other.
    final: Folder of the finished data set.
    sources: What was found.
    fraction: Share of documents of the second split, in (0, 0.5], where no file is named for it.
    progress: Progress bar, which counts bytes of the sources.
    settings: All that decides what is written, beside the sources.
  """

  def __init__(
    self,
    dataset: DatasetSpec,
    final: Path,
    sources: files.Sources,
    fraction: float,
    progress: Progress,
    settings: str = '',
  ):
    if not 1e-9 <= fraction <= 0.5:
      raise UserError(f'validation fraction {fraction}: expected more than 0, at most 0.5')
    self.named_validation = any(self.is_validation(f) for f in sources.taken)
    if self.named_validation:
      sources = files.without_leaks(sources, self.is_validation)
    self.dataset, self.final, self.sources = dataset, final, sources
    taken = sources.taken
    self.parts = _group(taken)
    if all(self.is_validation(f) for f in taken):
      raise UserError(
        f'all {len(taken)} files are to validate on by their names, so the train split would be '
        'empty: name training files too'
      )
    self.every = round(1 / fraction)
    self.progress = progress
    self.total_bytes = sum(f.stat().st_size for f in taken)
    # The folder is named by sources and settings, so that another request neither reuses nor
    # destroys unfinished work.
    names = b'\0'.join(os.fsencode(f) for f in taken)
    key = hashlib.sha256(names + f'{self.every}{settings}'.encode()).hexdigest()[:8]
    self.work = final.with_name(f'{final.name}.incomplete-{key}')

  @abc.abstractmethod
  def open_part(self, number: int) -> PartWriter:
    """Returns what writes the documents of a part into `work`."""

  @abc.abstractmethod
  def finish(self, splits: dict[str, list[dict[str, Any]]]) -> None:
    """Gives the shards in `work` their final names. It can be repeated after an interruption."""

  def is_validation(self, file: Path) -> bool:
    """Whether a file's name says that it is of the second split."""
    return is_validation(file)

  def read(self, path: Path, open_file: Any) -> Iterator[documents.Document]:
    """Yields the documents of a file."""
    return documents.read_documents(path, open_file)

  def run(self) -> None:
    """Converts what is not converted yet, alone, and then finishes the data set."""
    with (
      writing_to(self.final.parent),
      folders.locked(self.final.with_name(f'{self.final.name}.lock')),
    ):
      check_new(self.final)
      self._run()

  def _run(self) -> None:
    self.work.mkdir(exist_ok=True)
    inputs = [[_identity(f) for f in paths] for paths in self.parts]
    report = read_json(self.work / reports.FILE)
    if not report or read_json(self.work / _INPUTS).get('parts') != inputs:
      parts = self._convert_all()
      _check_splits(self.dataset, parts, self.work)
      report = reports.report(self.dataset, self.sources, parts)
      write_json(self.work / _INPUTS, {'parts': inputs})
      write_json(self.work / reports.FILE, report)
    self.finish(report['splits'])
    for pattern in ('*.tfrecord', 'part-*.json', _INPUTS, '*.partial'):  # The report has all.
      for left_over in self.work.glob(pattern):
        left_over.unlink()
    self.work.rename(self.final)

  def _convert_all(self) -> list[reports.Part]:
    task = self.progress.add_task('preparing', total=self.total_bytes)
    parts: list[reports.Part] = []
    first = converted = 0
    for number, paths in enumerate(self.parts):
      file = self.work / f'part-{number:05d}.json'
      inputs = {'first_document': first, 'files': [_identity(f) for f in paths]}
      part = read_json(file)
      is_same = all(part.get(key) == value for key, value in inputs.items())
      if not is_same or not all(self._is_whole(shard) for shard in part['shards']):
        part = inputs | self._convert(number, paths, first, task)
        write_json(file, part)
      parts.append(part)
      first += sum(shard['documents'] for shard in part['shards'])
      converted += sum(f.stat().st_size for f in paths)
      self.progress.update(task, completed=converted)
    return parts

  def _convert(self, number: int, paths: list[Path], first: int, task: Any) -> reports.Part:
    """Writes one part's shards, document by document."""
    counts = []
    with contextlib.ExitStack() as stack:
      writer = stack.enter_context(contextlib.closing(self.open_part(number)))

      def open_file(path: Path) -> BinaryIO:
        # The bar counts all files together: rich's own `open` would take one for the whole.
        data = stack.enter_context(path.open('rb'))
        return self.progress.wrap_file(data, total=self.total_bytes, task_id=task)

      document_number = first
      for path in paths:
        count = {'documents': 0, 'blank': 0}
        for document in self.read(path, open_file):
          count['documents'] += 1
          if document.is_blank:
            count['blank'] += 1
            continue
          writer.write(self._split(path, document_number), document)
          document_number += 1
        if count['blank'] == count['documents']:
          raise UserError(
            f'{folders.shown(path)}: no document with text in this source; fetch it again, or '
            'remove it'
          )
        counts.append({'path': folders.shown(path)} | count)
    for shard in writer.shards:
      shard['file_bytes'] = sync(self.work / shard['file'])
    return {'sources': counts, 'shards': writer.shards}

  def _is_whole(self, shard: dict[str, Any]) -> bool:
    file = self.work / shard['file']
    return file.exists() and file.stat().st_size == shard['file_bytes']

  def _split(self, file: Path, document_number: int) -> str:
    train, validation = self.dataset.splits
    if self.named_validation:
      return validation if self.is_validation(file) else train
    return validation if document_number % self.every == 1 else train


@contextlib.contextmanager
def writing_to(folder: Path):
  """Says in one line which folder failed."""
  try:
    yield
  except UserError:
    raise
  except Exception as e:
    if reason := folders.storage_failure(e):
      raise UserError(
        f'{folder}: cannot write the data set ({reason}); mend that, then give the same command '
        'again: it goes on from there'
      ) from e
    raise


def _group(paths: list[Path]) -> list[list[Path]]:
  """Returns the files in groups of neighbours whose sizes sum to at most PART_BYTES."""
  parts: list[list[Path]] = []
  room = -1
  for file in paths:
    size = file.stat().st_size
    if size > room:
      parts.append([])
      room = PART_BYTES
    parts[-1].append(file)
    room -= size
  return parts


def _identity(file: Path) -> list[Any]:
  """Returns path, size and time of a file: a file that was replaced is converted again."""
  stat = file.stat()
  return [folders.shown(file), stat.st_size, stat.st_mtime_ns]


def _check_splits(dataset: DatasetSpec, parts: list[reports.Part], work: Path) -> None:
  counts = reports.documents_by_split(dataset, parts)
  if not all(counts.values()):
    shutil.rmtree(work)
    raise UserError(
      f'the sources give {" and ".join(f"{n} {split}" for split, n in counts.items())} documents, '
      'and neither may be 0: give at least two documents, or files with and files without '
      '"validation" in their names'
    )


def sync(path: Path) -> int:
  """Waits until a file is on the disk, and returns its size."""
  with path.open('rb') as file:
    os.fsync(file.fileno())
    return os.fstat(file.fileno()).st_size


def read_json(path: Path) -> dict[str, Any]:
  """Returns what a file of our own holds; nothing if it is missing or was cut."""
  try:
    return json.loads(path.read_text('utf-8'))
  except (FileNotFoundError, ValueError):
    return {}


def write_json(path: Path, value: Any) -> None:
  """Writes a file of our own, which appears whole."""
  partial = path.with_suffix('.partial')
  partial.write_text(json.dumps(value, indent=1) + '\n', 'utf-8')
  sync(partial)
  partial.replace(path)
