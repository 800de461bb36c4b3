"""The work of writing a data set of many small items, such as images: shard by shard.

First all items are listed, and divided into shards by a hash of their names, so that each shard has
items of all kinds. Then the shards are written, one after another. A shard's counts are written
after it, and mark it as finished: a run that was killed goes on after it.
"""

from __future__ import annotations

import abc
import concurrent.futures
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from laser_pax.data.datasets import DatasetSpec
from laser_pax.data.prepare import files, parts, reports
from laser_pax.errors import UserError

# A split has at most so many shards, as in TFDS.
MOST_SHARDS = 1_024


class Item(Protocol):
  """An item of a source.

  Attributes:
    split: Its split.
    name: Its name.
    file: The file that holds it.
    size: Its bytes there.
  """

  split: str
  name: str
  file: Path
  size: int


class Converted(NamedTuple):
  """What became of an item.

  Attributes:
    record: Its record; None if it is left out.
    note: What was changed, or why it is left out; None if it is as it was.
  """

  record: bytes | None
  note: str | None = None


class Conversion(abc.ABC):
  """The shards of one data set.

  Args:
    spec: The data set.
    final: Its folder.
    items: Its items, with their splits.
    settings: All that decides what is written, beside the items.

  Attributes:
    UNIT: What an item is called, in the plural.
    SHARD_BYTES: About so many bytes of the sources make a shard.
  """

  UNIT: str
  SHARD_BYTES: int

  def __init__(self, spec: DatasetSpec, final: Path, items: Sequence[Item], settings: str = ''):
    self.spec, self.final = spec, final
    parts.check_new(final)
    self.splits = [s for s in spec.splits if any(item.split == s for item in items)]
    self.shards = [shard for split in self.splits for shard in self._divide(split, items)]
    self.work = final.with_name(f'{final.name}.incomplete-{self._key(settings)}')

  @abc.abstractmethod
  def convert(self, item: Item) -> Converted:
    """Returns the record of an item. Several threads call this."""

  @abc.abstractmethod
  def features(self) -> Any:
    """Returns TFDS's description of a record."""

  def run(
    self,
    sources: files.Sources,
    left_out: Sequence[tuple[str, str]],
    advance: Callable[[int], Any],
  ) -> None:
    """Writes what is not written yet, and then finishes the data set.

    Args:
      sources: What the search found.
      left_out: Names of items that were left out before, with the reasons.
      advance: Function that takes the bytes that were read.

    Raises:
      UserError: No item of a split can be read.
    """
    self.work.mkdir(exist_ok=True)
    counts = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      for number, (split, items) in enumerate(self.shards):
        file = self.work / f'part-{number:05d}.json'
        count = parts.read_json(file)
        if not count or not self._is_whole(count):
          count = self._write(number, split, items, pool)
          parts.write_json(file, count)
        counts.append(count)
        advance(sum(item.size for item in items))
    self._finish(counts, sources, left_out)

  def _divide(self, split: str, items: Iterable[Item]) -> list[tuple[str, list[Item]]]:
    """Returns a split's items in shards of about equal number, by a hash of their names."""
    own = [item for item in items if item.split == split]
    own.sort(key=lambda item: hashlib.sha256(os.fsencode(item.name)).digest())
    total = sum(item.size for item in own)
    count = max(1, min(MOST_SHARDS, -(-total // self.SHARD_BYTES), len(own)))
    cuts = [len(own) * number // count for number in range(count + 1)]
    return [(split, own[begin:end]) for begin, end in zip(cuts[:-1], cuts[1:], strict=True)]

  def _key(self, settings: str) -> str:
    """Returns what names the work folder: other sources never reuse this unfinished work."""
    key = hashlib.sha256(settings.encode())
    used = set()
    for split, items in self.shards:
      for item in items:
        key.update(repr((split, item)).encode())
        used.add(item.file)
    for file in sorted(used):
      key.update(repr(file.stat().st_mtime_ns).encode())
    return key.hexdigest()[:8]

  def _is_whole(self, count: dict[str, Any]) -> bool:
    file = self.work / count['file']
    return file.exists() and file.stat().st_size == count['file_bytes']

  def _write(
    self, number: int, split: str, items: Sequence[Item], pool: concurrent.futures.Executor
  ) -> dict[str, Any]:
    """Writes one shard, and returns its counts and what became of its items."""
    import tensorflow as tf

    count: dict[str, Any] = {'file': f'part-{number:05d}.tfrecord', 'split': split}
    changed, skipped, size, records = [], [], 0, 0
    with tf.io.TFRecordWriter(str(self.work / count['file'])) as writer:
      for item, (record, note) in zip(items, pool.map(self.convert, items), strict=True):
        if note:
          (skipped if record is None else changed).append([item.name, note])
        if record is not None:
          writer.write(record)
          size, records = size + len(record), records + 1
    file_bytes = parts.sync(self.work / count['file'])
    fields = {'items': records, 'bytes': size, 'file_bytes': file_bytes}
    return count | fields | {'changed': changed, 'skipped': skipped}

  def _finish(
    self,
    counts: list[dict[str, Any]],
    sources: files.Sources,
    left_out: Sequence[tuple[str, str]],
  ) -> None:
    """Names the shards, writes TFDS's description and the report, and names the folder."""
    import tensorflow_datasets as tfds

    splits = []
    for split in self.splits:
      own = [count for count in counts if count['split'] == split]
      for number, count in enumerate(own):
        count['name'] = f'{self.spec.name}-{split}.tfrecord-{number:05d}-of-{len(own):05d}'
        if (self.work / count['file']).exists():
          (self.work / count['file']).replace(self.work / count['name'])
      lengths = [count['items'] for count in own]
      if not sum(lengths):
        raise UserError(f'none of the {self.UNIT} of {split} can be read; fetch them again')
      size = sum(count['bytes'] for count in own)
      splits.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size))
    features = self.features()
    tfds.folder_dataset.write_metadata(
      data_dir=self.work,
      features=features,
      filename_template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
      split_infos=splits,
      version=self.spec.version,
      check_data=False,
    )
    features.save_metadata(str(self.work))
    report = reports.report_items(self.spec, self.UNIT, sources, counts, left_out)
    parts.write_json(self.work / reports.FILE, report)
    for left_over in self.work.glob('part-*.json'):
      left_over.unlink()
    self.work.rename(self.final)
