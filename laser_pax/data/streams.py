"""Records of TFDS as streams: shuffled epoch after epoch, or once and in order."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from praxis import base_input, py_utils

from laser_pax import pax_fixes
from laser_pax.data import damage, tfrecords
from laser_pax.data.prepare import reports

# So many files are read in turn.
_FILES_AT_ONCE = 16
# What stands for a record in the rows that fill the last batch of an evaluation.
FILLER = b''


class Records(NamedTuple):
  """The files of some splits.

  Attributes:
    files: TFRecord files, in order.
    count: Number of their records.
  """

  files: list[str]
  count: int


class Share(NamedTuple):
  """A host's share of each global batch.

  Attributes:
    rows: B, its rows.
    host: Its number.
    hosts: Number of hosts.
  """

  rows: int
  host: int
  hosts: int

  @property
  def whole(self) -> int:
    """Rows of the global batch."""
    return self.rows * self.hosts

  @property
  def first(self) -> int:
    """Place of its first row in a global batch."""
    return self.rows * self.host

  def owns(self, row):
    """Returns whether a row, counted from the begin of a global batch, is this host's."""
    place = row % self.whole
    return (place >= self.first) & (place < self.first + self.rows)


class RecordInput(base_input.BaseInput):
  """A PAX input over records of TFDS. A subclass says what a host's batches are.

  Attributes:
    folder: Folder of the data set.
    splits: Its splits to read.
  """

  folder: str = ''
  splits: Sequence[str] = ()
  _iterator: Iterator[Mapping[str, Any]] | None = dataclasses.field(
    init=False, repr=False, default=None
  )

  def get_next(self) -> py_utils.NestedMap:
    """Returns this host's rows of the next global batch.

    Raises:
      UserError: A file is missing or damaged.
    """
    if self._iterator is None:
      with pax_fixes.without_autograph():  # The functions need none, and start faster.
        self._iterator = self._dataset().as_numpy_iterator()
    with damage.told(lambda: self._records().files):
      return py_utils.NestedMap(next(self._iterator))

  def reset(self) -> None:
    """Goes back to the first batch."""
    super().reset()
    self._iterator = None

  def _dataset(self) -> tf.data.Dataset:
    """Returns the batches from the current position on."""
    raise NotImplementedError

  def _share(self) -> Share:
    return Share(self.batch_size, self.infeed_host_index, self.num_infeed_hosts)

  def _records(self) -> Records:
    return find_records(self.folder, self.splits)


def find_records(folder: str, splits: Sequence[str]) -> Records:
  """Returns the files of splits, by TFDS's own description of the data set.

  Args:
    folder: Folder of the data set.
    splits: Names of splits.
  """
  infos = [damage.open_builder(folder).info.splits[split] for split in splits]
  files = [str(path) for info in infos for path in info.filepaths]
  return Records(files, sum(info.num_examples for info in infos))


def check_files(
  folder: str, splits: Sequence[str], features: Mapping[str, tf.io.FixedLenFeature], remedy: str
) -> None:
  """Checks that all files of some splits are there and whole, and each split's first record.

  Args:
    folder: Folder of the data set.
    splits: Names of splits.
    features: What is read, by key.
    remedy: What to do about a broken file.

  Raises:
    UserError: A file is missing, cut short, not as long as `prepare` made it, or of another layout.
  """
  sizes = _sizes(folder, splits)
  for split in splits:
    paths = [path for path in find_records(folder, [split]).files if '.tfrecord' in path]
    tfrecords.check_whole(paths, remedy, sizes)
    for record in tfrecords.first_records(paths[0], 1) if paths else ():
      tfrecords.check_layout(paths[0], record, features, remedy)


def _sizes(folder: str, splits: Sequence[str]) -> dict[str, range]:
  """Returns the bytes that each file may have: what `prepare` wrote, else at least its records'."""
  infos = damage.open_builder(folder).info.splits
  sizes = {
    path.name: range(tfrecords.least_bytes(count), sys.maxsize)
    for split in splits
    for path, count in zip(infos[split].filepaths, infos[split].shard_lengths, strict=True)
  }
  return sizes | {
    name: range(size, size + 1) for name, size in reports.written_bytes(folder).items()
  }


def in_order(records: Records, share: Share, limit: int | None = None) -> tf.data.Dataset:
  """Returns a host's share of all records, read once and in order, with fillers at the end.

  Args:
    records: Files and number of their records.
    share: The share.
    limit: Most records to read, the first ones; None for all.
  """
  count = min(records.count, limit or records.count)
  rows = tf.data.TFRecordDataset(records.files).take(count)
  fillers = tf.data.Dataset.from_tensors(FILLER).repeat(-count % share.whole)
  rows = rows.concatenate(fillers).enumerate()
  return rows.filter(lambda row, _: share.owns(row)).map(lambda _, record: record)


def shuffled(records: Records, seed: int, buffer: int, start: int) -> tf.data.Dataset:
  """Returns the records of all epochs from a row on, in an order that the seed decides.

  Each epoch has its own order of files, and its own draws from the buffer. To begin inside of an
  epoch, its earlier records are read and dropped.

  Args:
    records: Files and number of their records.
    seed: The seed.
    buffer: Size of the buffer from which the next record is drawn.
    start: Number of the first row, counted over all epochs.
  """
  files = tf.constant(records.files)

  def epoch(number: tf.Tensor) -> tf.data.Dataset:
    seeds = tf.stack([tf.constant(seed, tf.int64), number])
    order = tf.random.experimental.stateless_shuffle(files, seeds)
    rows = tf.data.Dataset.from_tensor_slices(order).interleave(
      tf.data.TFRecordDataset,
      cycle_length=min(_FILES_AT_ONCE, len(records.files)),
      num_parallel_calls=tf.data.AUTOTUNE,
      deterministic=True,
    )
    draw = tf.random.stateless_uniform([], seeds, 0, 2**62, tf.int64)
    return rows.shuffle(buffer, seed=draw, reshuffle_each_iteration=False)

  first, skipped = divmod(start, records.count)
  return tf.data.Dataset.counter(tf.cast(first, tf.int64)).flat_map(epoch).skip(skipped)
