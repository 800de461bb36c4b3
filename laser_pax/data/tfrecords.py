"""TFRecord files, checked before a training: whether they are whole, and what is in a record.

A record is its length (8 bytes), a checksum of that (4), the data, and a checksum of the data (4).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from concurrent import futures
from typing import TYPE_CHECKING

import numpy as np
from etils import epath

from laser_pax.errors import UserError

if TYPE_CHECKING:
  import tensorflow as tf

_HEADER, _FOOTER = 12, 4
# The last record is looked for in so many bytes at the end, then in four times as many, and so on.
_TAIL_BYTES = 2**16
_THREADS = 16  # Files in a bucket are asked at once.


def is_whole(path: epath.PathLike) -> bool:
  """Returns whether a file ends with a whole record. It reads the file's end alone.

  Somewhere before the end a length must stand that leads to the end exactly.

  Args:
    path: A TFRecord file without compression, local or in a bucket. An empty one is whole.
  """
  path = epath.Path(path)
  size = path.stat().length
  tail_bytes = min(size, _TAIL_BYTES)
  while tail_bytes:
    with path.open('rb') as file:
      file.seek(size - tail_bytes)
      tail = file.read(tail_bytes)
    if _has_last_record(tail):
      return True
    if tail_bytes == size:
      return False
    tail_bytes = min(size, 4 * tail_bytes)
  return True


def _has_last_record(tail: bytes) -> bool:
  """Returns whether some place in `tail` holds the length of the data between it and the end."""
  places = np.arange(len(tail) - _HEADER - _FOOTER + 1)
  if not len(places):
    return False
  low = np.ndarray(places.shape, '<u4', tail, strides=(1,))  # At each byte, a number of 4 bytes.
  high = np.ndarray(places.shape, '<u4', tail, offset=4, strides=(1,))
  lengths = len(tail) - places - _HEADER - _FOOTER
  # Data may hold that number by chance, so its checksum must follow.
  likely = np.flatnonzero((low == lengths) & (high == 0))
  return any(_masked_crc(tail[i : i + 8]) == tail[i + 8 : i + _HEADER] for i in likely)


def _masked_crc(data: bytes) -> bytes:
  """Returns TFRecord's checksum: CRC-32C, turned by 15 bits, plus a constant."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
  crc ^= 0xFFFFFFFF
  return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def check_whole(
  paths: Iterable[epath.PathLike], remedy: str, sizes: Mapping[str, range] | None = None
) -> None:
  """Checks that each file is there, ends with a whole record, and is as long as it should be.

  Args:
    paths: TFRecord files.
    remedy: What to do about a broken file.
    sizes: The bytes that a file may have, by its name. Others may have any number.

  Raises:
    UserError: One is not.
  """
  paths, sizes = [epath.Path(path) for path in paths], sizes or {}
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    faults = pool.map(lambda path: _fault(path, sizes.get(path.name)), paths)
    for path, fault in zip(paths, faults, strict=True):
      if fault:
        raise UserError(f'{path}: {fault}; {remedy}')


def _fault(path: epath.Path, sizes: range | None) -> str:
  """Returns what is wrong with a file; nothing if it is whole."""
  try:
    if not is_whole(path):
      return 'cut short, its last record is not whole'
    if sizes is not None and (size := path.stat().length) not in sizes:
      more = '' if len(sizes) == 1 else ' or more'
      return f'has {size:,} bytes, and {sizes.start:,}{more} were written: its records changed'
  except FileNotFoundError:
    return 'missing, though the data set lists it'
  return ''


def least_bytes(records: int) -> int:
  """Returns the least bytes of a file with so many records."""
  return records * (_HEADER + _FOOTER)


def first_records(path: epath.PathLike, count: int) -> list[bytes]:
  """Returns the data of the first records, at most `count`, without TensorFlow.

  Args:
    path: A TFRecord file without compression, local or in a bucket.
    count: Greatest number of records.
  """
  records = []
  with epath.Path(path).open('rb') as file:
    while len(records) < count and len(header := file.read(_HEADER)) == _HEADER:
      (length,) = struct.unpack('<Q', header[:8])
      records.append(file.read(length))
      file.read(_FOOTER)
  return records


def check_layout(
  path: epath.PathLike, record: bytes, features: Mapping[str, tf.io.FixedLenFeature], remedy: str
) -> tf.train.Example:
  """Checks that a record has the features that are read, and returns the record.

  Args:
    path: File of the record.
    record: Its data.
    features: What is read, by key.
    remedy: What to do about another layout.

  Raises:
    UserError: It is no `tf.train.Example`, or a feature is missing, of another type or length.
  """
  import tensorflow as tf
  from google.protobuf import message

  try:
    example = tf.train.Example.FromString(record)
  except message.DecodeError as e:
    raise UserError(f'{path}: its records are no tf.train.Example; {remedy}') from e
  kinds = {tf.int64: 'int64_list', tf.float32: 'float_list', tf.string: 'bytes_list'}
  for key, expected in features.items():
    feature = example.features.feature.get(key)
    kind = feature.WhichOneof('kind') if feature is not None else None
    length = len(getattr(feature, kind).value) if kind else 0
    if kind != kinds[expected.dtype] or length != np.prod(expected.shape, dtype=int):
      got = f'a {kind} of {length}' if kind else 'none'
      raise UserError(
        f'{path}: its records are of another layout: expected {key}, a {kinds[expected.dtype]} of '
        f'{np.prod(expected.shape, dtype=int)}, got {got}; {remedy}'
      )
  return example
