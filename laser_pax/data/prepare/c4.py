"""Converts source files into a TFDS data set of the layout `c4/en/3.0.1`.

The work is cut into parts. A part is one large source file, or several small ones that follow each
other. A part's records are written to shards, and then their counts to a JSON file. This file
appears atomically, and marks the part as finished. After the last part comes the report: what was
taken and what was left out. Then the shards get their final names, and the work folder is renamed
to the version. If a run was killed, the same command resumes it after the last finished part.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rich.progress import Progress

from laser_pax import folders
from laser_pax.data.datasets import C4
from laser_pax.data.prepare import documents, files, reports
from laser_pax.errors import UserError

# Small files share a part, up to this size. Ten thousand files then do not become as many shards.
PART_BYTES = 2**24
# A shard is closed at this size, so that one large file still feeds many hosts.
SHARD_BYTES = 2**28


def prepare(
  source_paths: Sequence[str | Path],
  data_dir: str | Path,
  *,
  validation_fraction: float = 0.01,
  progress: Progress | None = None,
) -> Path:
  """Writes `data_dir/c4/en/3.0.1` with the splits train and validation. A document is a record.

  Files whose names contain `validation` make the validation split, and all others the train split.
  If there is no such file, every k-th document goes to the validation split, from the second on,
  where k = round(1 / fraction). Documents without text are left out.

  The result depends only on the sources' contents, on the order of their paths as bytes, and on the
  fraction. Interruptions do not change it. Its report.json says what became of each source
  (reports.py).

  Args:
    source_paths: Files and folders, see `files.find_sources`.
    data_dir: Local folder for data sets, made if missing.
    validation_fraction: Share of validation documents, in (0, 0.5]. It is used only if no file's
      name contains `validation`.
    progress: Progress bar, which counts bytes of the sources.

  Returns:
    The folder of the finished data set.

  Raises:
    UserError: The data set exists already, a source cannot be read or has no document, a split
      would be empty, or the folder cannot be written.
  """
  if not 0 < validation_fraction <= 0.5:
    raise UserError(f'validation fraction {validation_fraction}: expected more than 0, at most 0.5')
  sources = files.find_sources(source_paths, _dataset_folder(data_dir))
  final = check_new_dataset(data_dir)
  with _writing_to(final.parent), folders.locked(final.with_name(f'{C4.version}.lock')):
    check_new_dataset(data_dir)
    converter = _Converter(final, sources, validation_fraction, progress or Progress(disable=True))
    converter.run()
  return final


def check_new_dataset(data_dir: str | Path) -> Path:
  """Makes the parent folder of a new data set, and returns the data set's folder.

  Args:
    data_dir: Local folder for data sets.

  Raises:
    UserError: A finished data set exists, or the folder cannot be written.
  """
  final = _dataset_folder(data_dir)
  if final.exists():
    raise UserError(f'{final}: exists already and is never overwritten; name another --out')
  folders.make_folder(final.parent)
  return final


def _dataset_folder(data_dir: str | Path) -> Path:
  data_dir = folders.resolve(data_dir)
  if '://' in data_dir:
    raise UserError(
      f'{data_dir}: prepare writes to local folders; copy the result there afterwards'
    )
  return Path(data_dir) / C4.folder


@contextlib.contextmanager
def _writing_to(folder: Path):
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


class _Converter:
  """One conversion: its parts, and the work folder that their shards are written to."""

  def __init__(self, final: Path, sources: files.Sources, fraction: float, progress: Progress):
    self.final, self.sources = final, sources
    taken = sources.taken
    self.parts = _group(taken)
    self.named_validation = any(_is_validation(f) for f in taken)
    if all(_is_validation(f) for f in taken):
      raise UserError(
        f'all {len(taken)} files have "validation" in their names, so the train split would be '
        'empty: name training files too'
      )
    self.every = round(1 / fraction)
    self.progress = progress
    self.total_bytes = sum(f.stat().st_size for f in taken)
    # The folder is named by sources and share of validation, so that another request neither reuses
    # nor destroys unfinished work.
    names = b'\0'.join(os.fsencode(f) for f in taken)
    key = hashlib.sha256(names + str(self.every).encode()).hexdigest()[:8]
    self.work = final.with_name(f'{C4.version}.incomplete-{key}')

  def run(self) -> None:
    """Converts the parts that are not finished yet, then finishes the data set."""
    self.work.mkdir(exist_ok=True)
    report = _read_json(self.work / reports.FILE)
    if not report:
      parts = self._convert_all()
      _check_splits(parts, self.work)
      report = reports.report(C4, self.sources, parts)
      _write_json(self.work / reports.FILE, report)
    _finish(self.work, report['splits'])
    for part in self.work.glob('part-*.json'):  # The report has all but the files' times.
      part.unlink()
    self.work.rename(self.final)

  def _convert_all(self) -> list[reports.Part]:
    task = self.progress.add_task('preparing', total=self.total_bytes)
    parts: list[reports.Part] = []
    first = converted = 0
    for number, paths in enumerate(self.parts):
      file = self.work / f'part-{number:05d}.json'
      inputs = {'first_document': first, 'files': [_identity(f) for f in paths]}
      part = _read_json(file)
      if any(part.get(key) != value for key, value in inputs.items()):
        part = inputs | self._convert(number, paths, first, task)
        _write_json(file, part)
      parts.append(part)
      first += sum(shard['documents'] for shard in part['shards'])
      converted += sum(f.stat().st_size for f in paths)
      self.progress.update(task, completed=converted)
    return parts

  def _convert(self, number: int, paths: list[Path], first: int, task: Any) -> reports.Part:
    """Writes one part's shards, document by document."""
    counts = []
    with contextlib.ExitStack() as stack:
      writers = {
        split: stack.enter_context(_ShardWriter(self.work, number, split)) for split in C4.splits
      }

      def open_file(path: Path) -> BinaryIO:
        # The bar counts all files together: rich's own `open` would take one for the whole.
        data = stack.enter_context(path.open('rb'))
        return self.progress.wrap_file(data, total=self.total_bytes, task_id=task)

      document_number = first
      for path in paths:
        count = {'documents': 0, 'blank': 0}
        for document in documents.read_documents(path, open_file):
          count['documents'] += 1
          if document.is_blank:
            count['blank'] += 1
            continue
          writers[self._split(path, document_number)].write(document)
          document_number += 1
        if count['blank'] == count['documents']:
          raise UserError(
            f'{folders.shown(path)}: no document with text in this source; fetch it again, or '
            'remove it'
          )
        counts.append({'path': folders.shown(path)} | count)
    shards = [shard for writer in writers.values() for shard in writer.shards]
    return {'sources': counts, 'shards': shards}

  def _split(self, file: Path, document_number: int) -> str:
    if self.named_validation:
      return 'validation' if _is_validation(file) else 'train'
    return 'validation' if document_number % self.every == 1 else 'train'


class _ShardWriter:
  """Writes documents of one part and split to shards of at most about SHARD_BYTES."""

  def __init__(self, folder: Path, part: int, split: str):
    self._folder = folder
    self._stem = f'part-{part:05d}-{split}'
    self._split = split
    self._file: Any = None
    self.shards: list[dict[str, Any]] = []

  def __enter__(self) -> _ShardWriter:
    return self

  def __exit__(self, *_: object) -> None:
    if self._file is not None:
      self._file.close()

  def write(self, document: documents.Document) -> None:
    import tensorflow as tf

    if self._file is None or self.shards[-1]['bytes'] >= SHARD_BYTES:
      self._open_next()
    feature = {
      name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()]))
      for name, value in document._asdict().items()
    }
    record = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(
      deterministic=True
    )
    self._file.write(record)
    self.shards[-1]['documents'] += 1
    self.shards[-1]['bytes'] += len(record)

  def _open_next(self) -> None:
    import tensorflow as tf

    self.__exit__()
    name = f'{self._stem}-{len(self.shards):05d}.tfrecord'
    self._file = tf.io.TFRecordWriter(str(self._folder / name))
    self.shards.append({'file': name, 'split': self._split, 'documents': 0, 'bytes': 0})


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


def _is_validation(file: Path) -> bool:
  return 'validation' in file.name.lower()


def _identity(file: Path) -> list[Any]:
  """Returns path, size and time of a file: a file that was replaced is converted again."""
  stat = file.stat()
  return [folders.shown(file), stat.st_size, stat.st_mtime_ns]


def _check_splits(parts: list[reports.Part], work: Path) -> None:
  counts = reports.documents_by_split(C4, parts)
  if not all(counts.values()):
    shutil.rmtree(work)
    raise UserError(
      f'the sources give {counts["train"]} train and {counts["validation"]} validation documents, '
      'and neither may be 0: give at least two documents, or files with and files without '
      '"validation" in their names'
    )


def _finish(work: Path, splits: dict[str, list[dict[str, Any]]]) -> None:
  """Renames the shards and writes the metadata. It can be repeated after an interruption."""
  import tensorflow_datasets as tfds

  for shard in (shard for shards in splits.values() for shard in shards):
    if (work / shard['file']).exists():
      (work / shard['file']).replace(work / shard['name'])
  tfds.folder_dataset.write_metadata(
    data_dir=work,
    features={name: tfds.features.Text() for name in C4.features},
    filename_template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
    split_infos=[
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[shard['documents'] for shard in shards],
        num_bytes=sum(shard['bytes'] for shard in shards),
      )
      for split, shards in splits.items()
    ],
    version=C4.version,
    check_data=False,
  )


def _read_json(path: Path) -> dict[str, Any]:
  return json.loads(path.read_text('utf-8')) if path.exists() else {}


def _write_json(path: Path, value: Any) -> None:
  partial = path.with_suffix('.partial')
  partial.write_text(json.dumps(value, indent=1) + '\n', 'utf-8')
  partial.replace(path)
