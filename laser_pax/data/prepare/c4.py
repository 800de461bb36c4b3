"""Converts source files into a TFDS data set of the layout `c4/en/3.0.1`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from laser_pax.data.datasets import C4
from laser_pax.data.prepare import documents, files, parts

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
  final = parts.dataset_folder(C4, data_dir)
  sources = files.find_sources(source_paths, final)
  parts.check_new(final)
  progress = progress or Progress(disable=True)
  _C4Conversion(C4, final, sources, validation_fraction, progress).run()
  return final


class _C4Conversion(parts.Conversion):
  """A document is a record. TFDS's metadata make the data set."""

  def open_part(self, number: int) -> _Shards:
    return _Shards(self.work, number)

  def finish(self, splits: dict[str, list[dict[str, Any]]]) -> None:
    import tensorflow_datasets as tfds

    for shard in (shard for shards in splits.values() for shard in shards):
      if (self.work / shard['file']).exists():
        (self.work / shard['file']).replace(self.work / shard['name'])
    tfds.folder_dataset.write_metadata(
      data_dir=self.work,
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


class _Shards:
  """Writes documents of one part to shards of at most about SHARD_BYTES, of one split each."""

  def __init__(self, folder: Path, part: int):
    self._stem = folder / f'part-{part:05d}'
    self._files: dict[str, Any] = {}
    self._newest: dict[str, dict[str, Any]] = {}
    self.shards: list[dict[str, Any]] = []

  def close(self) -> None:
    for file in self._files.values():
      file.close()

  def write(self, split: str, document: documents.Document) -> None:
    import tensorflow as tf

    if split not in self._files or self._newest[split]['bytes'] >= SHARD_BYTES:
      self._open_next(split)
    feature = {
      name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()]))
      for name, value in document._asdict().items()
    }
    record = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(
      deterministic=True
    )
    self._files[split].write(record)
    self._newest[split]['documents'] += 1
    self._newest[split]['bytes'] += len(record)

  def _open_next(self, split: str) -> None:
    import tensorflow as tf

    if split in self._files:
      self._files[split].close()
    number = sum(shard['split'] == split for shard in self.shards)
    path = f'{self._stem}-{split}-{number:05d}.tfrecord'
    self._files[split] = tf.io.TFRecordWriter(path)
    self._newest[split] = {'file': Path(path).name, 'split': split, 'documents': 0, 'bytes': 0}
    self.shards.append(self._newest[split])
