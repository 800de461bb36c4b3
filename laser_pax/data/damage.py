"""Prepared data that are damaged: which file it is, in one line.

TensorFlow says at which byte a record is damaged, but not in which file. So after such an error the
files are read once more, one by one, until the damaged one is there.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath
from google.protobuf import message

from laser_pax.errors import UserError

_FILES_AT_ONCE = 16
_RECORDS_AT_ONCE = 1_024
# Every character of Unicode. A match of the whole text shows that its bytes are UTF-8.
_CHARACTERS = r'[\x00-\x{D7FF}\x{E000}-\x{10FFFF}]*'
_NOT_UTF8 = 'the text is not UTF-8'
_FOREIGN = 'is none of this data set'  # A record.
_REMEDY = (
  'bring the whole file back, or prepare the same sources again, and give the same command again'
)
_ERRORS = (
  tf.errors.NotFoundError,
  tf.errors.DataLossError,
  tf.errors.InvalidArgumentError,
  tf.errors.FailedPreconditionError,  # A data set has fewer records than its description says.
)


def open_builder(folder: str) -> tfds.core.DatasetBuilder:
  """Opens a data set by its description, and returns TFDS's builder.

  Args:
    folder: Folder of the data set, local or in a bucket.

  Raises:
    UserError: The description cannot be read.
  """
  try:
    builder = tfds.builder_from_directory(folder)
    builder.info.features.get_serialized_info()
    for split in builder.info.splits.values():
      split.filepaths  # noqa: B018
    return builder
  except Exception as e:  # TFDS raises errors of many kinds on what it does not expect.
    words = (str(e).strip() or 'no message').splitlines()[0]
    raise UserError(
      f'{folder}: cannot be read as a TFDS data set ({type(e).__name__}: {words}); its description '
      'is dataset_info.json and features.json: copy both again, or prepare the data again'
    ) from e


class NoDamageError(UserError):
  """Reading failed, and a second reading of all files shows none that is missing or damaged."""


@contextlib.contextmanager
def told(files: Callable[[], Iterable[epath.PathLike]]) -> Iterator[None]:
  """Names the missing or damaged file, where reading TFRecord files fails in the `with` block.

  Args:
    files: Function that lists the files. It is called after a failure alone.

  Raises:
    UserError: A file is missing or empty, a record is damaged, lost or of another data set.
    NoDamageError: All files are whole now.
  """
  try:
    yield
  except _ERRORS as e:
    paths = sorted(map(str, files()))
    fault = _first_fault(paths, _look(e))
    if fault is None:
      if isinstance(e, tf.errors.InvalidArgumentError):
        raise  # The reason lies elsewhere.
      folder = os.path.dirname(paths[0])
      raise NoDamageError(
        f'{folder}: {_words(e)}; a second reading shows no damaged file; {_REMEDY}'
      ) from e
    raise UserError(f'{fault}; {_REMEDY}') from e


def text(strings: tf.Tensor) -> tf.Tensor:
  """Returns strings of a record as they are, if they are UTF-8. It runs in a data set.

  SentencePiece would read other bytes as unknown pieces.

  Raises:
    tf.errors.InvalidArgumentError: They are not UTF-8. `told` names the file.
  """
  with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(is_text(strings)), [_NOT_UTF8])]):
    return tf.identity(strings)


def is_text(strings: tf.Tensor) -> tf.Tensor:
  """Returns whether each string is UTF-8. It is faster than to decode them."""
  return tf.strings.regex_full_match(strings, _CHARACTERS)


def check_tokens(
  fields: Sequence[np.ndarray],
  vocab_size: int,
  files: Callable[[], Iterable[epath.PathLike]],
  keys: Sequence[str],
) -> None:
  """Checks that all tokens of a batch are below V, the pieces that the model has, and not negative.

  Args:
    fields: Tokens, of any shape.
    vocab_size: V.
    files: Function that lists the TFRecord files of the tokens. It is called after a failure alone.
    keys: The features that hold them.

  Raises:
    UserError: A token is not; the message has the file and the number of the record.
  """
  least = min(int(x.min(initial=0)) for x in fields)
  greatest = max(int(x.max(initial=0)) for x in fields)
  if least >= 0 and greatest < vocab_size:
    return
  lacks = (
    f'but the model has VOCAB_SIZE = {vocab_size}: set it to that of the records, or make others'
  )
  for path in sorted(map(str, files())):
    for number, record in enumerate(tf.data.TFRecordDataset(path).as_numpy_iterator(), 1):
      features = tf.train.Example.FromString(record).features.feature
      tokens = (x for key in keys for x in features[key].int64_list.value)
      if outside := [x for x in tokens if not 0 <= x < vocab_size]:
        raise UserError(f'{path}, record {number}: the token {outside[0]}, {lacks}')
  raise UserError(f'a batch has tokens from {least} to {greatest}, {lacks}')


# Returns what is wrong with a record, or None.
_Look = Callable[[bytes], str | None]


def _first_fault(paths: list[str], look: _Look | None) -> str | None:
  """Returns the first damaged file, and what is wrong with it; None if none is."""
  pool = futures.ThreadPoolExecutor(_FILES_AT_ONCE)
  try:
    for path, fault in zip(paths, pool.map(lambda path: _fault(path, look), paths), strict=True):
      if fault:
        return f'{path}: {fault}'
    return None
  finally:
    pool.shutdown(cancel_futures=True)


def _fault(path: str, look: _Look | None) -> str | None:
  """Returns what is wrong with a file. It reads the whole of it."""
  number = 0
  try:
    if not epath.Path(path).stat().length:
      return 'empty (0 bytes)'
    records = tf.data.TFRecordDataset(path).batch(_RECORDS_AT_ONCE)
    for batch in records.as_numpy_iterator():
      for record in batch if look is not None else ():
        number += 1
        if fault := look(record):
          return f'its record {number} {fault}'
  except (tf.errors.NotFoundError, FileNotFoundError):
    return 'missing, though the data set lists it'
  except tf.errors.DataLossError as e:
    return f'damaged, {_words(e)}'
  return None


def _look(error: tf.errors.OpError) -> _Look | None:
  """Returns how to look at records after an error; None if it is of no record."""
  if _NOT_UTF8 in str(error):
    return _no_text
  lacking = re.search(r'(?:Feature|Key): (\w+)', str(error))
  key = '' if 'Could not parse example' in str(error) else lacking and lacking[1]
  if key is None:
    return None
  return lambda record: None if _has(record, key) else _FOREIGN


def _no_text(record: bytes) -> str | None:
  """Returns what is wrong with a record whose strings are all texts, or None."""
  try:
    for feature in tf.train.Example.FromString(record).features.feature.values():
      for text in feature.bytes_list.value:
        text.decode()
  except UnicodeDecodeError as e:
    return f'has a text that is not UTF-8 ({e.reason} at byte {e.start})'
  except message.DecodeError:
    return _FOREIGN
  return None


def _has(record: bytes, key: str) -> bool:
  """Returns whether a record is a `tf.train.Example` with a feature; any will do if `key` is ''."""
  try:
    features = tf.train.Example.FromString(record).features.feature
  except message.DecodeError:
    return False
  return bool(features[key].WhichOneof('kind')) if key else bool(features)


def _words(error: tf.errors.OpError) -> str:
  """Returns TensorFlow's words on a damaged record, such as 'corrupted record at 1234'."""
  words = re.search(r'\w+ record at \d+|expected to contain \d.*elements', str(error))
  return words[0] if words else type(error).__name__
