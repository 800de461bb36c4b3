"""Converts source files into a TFDS data set of the layout `c4/en/3.0.1`.

The work is cut into parts. A part is one large source file, or several small ones that follow each
other. A part's records are written to shards, and then their counts to a JSON file. This file
appears atomically, and marks the part as finished. After the last part the shards get their final
names, and the work folder is renamed to the version. If a run was killed, the same command resumes
it after the last finished part.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from laser_pax import folders
from laser_pax.data.datasets import C4
from laser_pax.data.prepare import documents
from laser_pax.errors import UserError

# Small files share a part, up to this size. Ten thousand files then do not become as many shards.
PART_BYTES = 2**24
# A shard is closed at this size, so that one large file still feeds many hosts.
SHARD_BYTES = 2**28

_PLAN = 'plan.json'


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
  where k = round(1 / fraction). The result depends only on the sources' contents, on the order of
  their paths, and on the fraction. Interruptions do not change it.

  Args:
    source_paths: Files and folders, see `documents.find_sources`.
    data_dir: Local folder for data sets, made if missing.
    validation_fraction: Share of validation documents, in (0, 0.5]. It is used only if no file's
      name contains `validation`.
    progress: Progress bar, which counts bytes of the sources.

  Returns:
    The folder of the finished data set.

  Raises:
    UserError: The data set exists already, a source cannot be read, a split would be empty, or the
      folder cannot be written.
  """
  if not 0 < validation_fraction <= 0.5:
    raise UserError(f'validation fraction {validation_fraction}: expected more than 0, at most 0.5')
  files = documents.find_sources(source_paths)
  final = check_new_dataset(data_dir)
  with folders.locked(final.with_name(f'{C4.version}.lock')):
    check_new_dataset(data_dir)
    converter = _Converter(final, files, validation_fraction, progress or Progress(disable=True))
    converter.run()
  return final


def check_new_dataset(data_dir: str | Path) -> Path:
  """Makes the parent folder of a new data set, and returns the data set's folder.

  Args:
    data_dir: Local folder for data sets.

  Raises:
    UserError: A finished data set exists, or the folder cannot be written.
  """
  if '://' in str(data_dir):
    raise UserError(
      f'{data_dir}: prepare writes to local folders; copy the result there afterwards'
    )
  final = Path(data_dir).expanduser().absolute() / C4.folder
  if final.exists():
    raise UserError(f'{final}: exists already and is never overwritten; name another --out')
  folders.make_folder(final.parent)
  return final


class _Converter:
  """One conversion: its parts, and the work folder that their shards are written to."""

  def __init__(self, final: Path, files: list[Path], fraction: float, progress: Progress):
    self.final = final
    self.parts = _group(files)
    self.named_validation = any(_is_validation(f) for f in files)
    if all(_is_validation(f) for f in files):
      raise UserError(
        f'all {len(files)} files have "validation" in their names, so the train split would be '
        'empty: name training files too'
      )
    self.every = round(1 / fraction)
    self.progress = progress
    # The folder is named by sources and share of validation, so that another request neither reuses
    # nor destroys unfinished work.
    key = hashlib.sha256(repr((files, self.every)).encode()).hexdigest()[:8]
    self.work = final.with_name(f'{C4.version}.incomplete-{key}')

  def run(self) -> None:
    """Converts the parts that are not finished yet, then finishes the data set."""
    self.work.mkdir(exist_ok=True)
    plan_file = self.work / _PLAN
    if not plan_file.exists():
      shards = self._convert_all()
      _check_splits(shards, self.work)
      _write_json(plan_file, _plan(shards))
    _finish(self.work, json.loads(plan_file.read_text()))
    self.work.rename(self.final)

  def _convert_all(self) -> list[dict[str, Any]]:
    total = sum(f.stat().st_size for part in self.parts for f in part)
    task = self.progress.add_task('preparing', total=total)
    shards: list[dict[str, Any]] = []
    first = 0
    for number, files in enumerate(self.parts):
      inputs = {'first_document': first, 'sources': [_identity(f) for f in files]}
      record = _read_json(self.work / f'part-{number:05d}.json')
      if any(record.get(key) != value for key, value in inputs.items()):
        record = inputs | {'shards': self._convert(number, files, first, task)}
        _write_json(self.work / f'part-{number:05d}.json', record)
      shards.extend(record['shards'])
      first += sum(shard['documents'] for shard in record['shards'])
      converted = sum(f.stat().st_size for part in self.parts[: number + 1] for f in part)
      self.progress.update(task, completed=converted)
    return shards

  def _convert(self, number: int, files: list[Path], first: int, task: Any) -> list[dict[str, Any]]:
    """Writes one part's shards, document by document."""
    with contextlib.ExitStack() as stack:
      writers = {
        split: stack.enter_context(_ShardWriter(self.work, number, split)) for split in C4.splits
      }
      open_file = functools.partial(self.progress.open, mode='rb', task_id=task)
      document_number = first
      for file in files:
        for document in documents.read_documents(file, open_file):
          writers[self._split(file, document_number)].write(document)
          document_number += 1
    return [shard for writer in writers.values() for shard in writer.shards]

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


def _group(files: list[Path]) -> list[list[Path]]:
  """Returns the files in groups of neighbours whose sizes sum to at most PART_BYTES."""
  parts: list[list[Path]] = []
  room = -1
  for file in files:
    size = file.stat().st_size
    if size > room:
      parts.append([])
      room = PART_BYTES
    parts[-1].append(file)
    room -= size
  return parts


def _is_validation(file: Path) -> bool:
  return 'validation' in file.name


def _identity(file: Path) -> list[Any]:
  """Returns path, size and time of a file: a file that was replaced is converted again."""
  stat = file.stat()
  return [str(file), stat.st_size, stat.st_mtime_ns]


def _check_splits(shards: list[dict[str, Any]], work: Path) -> None:
  counts = {s: sum(h['documents'] for h in shards if h['split'] == s) for s in C4.splits}
  if not all(counts.values()):
    shutil.rmtree(work)
    raise UserError(
      f'the sources give {counts["train"]} train and {counts["validation"]} validation documents, '
      'and neither may be 0: give at least two documents, or files with and files without '
      '"validation" in their names'
    )


def _plan(shards: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
  """Returns the shards of each split, with their final names."""
  plan: dict[str, list[dict[str, Any]]] = {}
  for split in C4.splits:
    split_shards = [s for s in shards if s['split'] == split]
    plan[split] = [
      s | {'name': f'{C4.name}-{split}.tfrecord-{i:05d}-of-{len(split_shards):05d}'}
      for i, s in enumerate(split_shards)
    ]
  return plan


def _finish(work: Path, plan: dict[str, list[dict[str, Any]]]) -> None:
  """Renames the shards and writes the metadata. It can be repeated after an interruption."""
  import tensorflow_datasets as tfds

  for shard in (shard for shards in plan.values() for shard in shards):
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
      for split, shards in plan.items()
    ],
    version=C4.version,
    check_data=False,
  )


def _read_json(path: Path) -> dict[str, Any]:
  return json.loads(path.read_text()) if path.exists() else {}


def _write_json(path: Path, value: Any) -> None:
  partial = path.with_suffix('.partial')
  partial.write_text(json.dumps(value, indent=1))
  partial.replace(path)
