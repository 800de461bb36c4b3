"""Speech with its transcripts: TFDS's records of LibriSpeech, as batches to train and evaluate on.

A batch has B rows per host, in these fields:

| field | dtype, shape | |
|---|---|---|
| speech | int16 [B, S] | samples at 16 kHz; 0 where the utterance has ended |
| num_samples | int32 [B] | length of the utterance |
| labels | int32 [B, L] | pieces of the transcript, and an EOS; 0 is padding |
| label_paddings | float32 [B, L] | 1 for padding |
| weight | float32 [B] | 0 for a row that does not count; not in training |

An utterance is left out if it has more than S samples, or a transcript of more than L characters.
In an evaluation its row stays, with weight 0. Source: AlgoPerf's LibriSpeech workload.

In training, the order depends on a seed alone. So the position in the stream is the number of the
next record, counted over all epochs.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece
import tensorflow as tf
from etils import epath
from praxis import pax_fiddle, py_utils

from laser_pax.data import damage, inputs, streams, tfrecords, vocabulary
from laser_pax.data.prepare.librispeech import RATE
from laser_pax.errors import UserError

# The next record is drawn from a buffer of this many batches.
SHUFFLED_BATCHES = 2

# So many records of a split are looked at before a training.
_CHECKED = 100

_RECORD = {
  'speech': tf.io.VarLenFeature(tf.int64),
  'text': tf.io.FixedLenFeature([], tf.string),
}


def batch_specs(batch_size: int, samples: int, labels: int) -> py_utils.NestedMap:
  """Returns the shapes and dtypes of a training batch, without opening the data.

  Args:
    batch_size: B, the rows.
    samples: S, the samples of a row.
    labels: L, the labels of a row.
  """
  return py_utils.NestedMap(
    speech=jax.ShapeDtypeStruct((batch_size, samples), jnp.int16),
    num_samples=jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    labels=jax.ShapeDtypeStruct((batch_size, labels), jnp.int32),
    label_paddings=jax.ShapeDtypeStruct((batch_size, labels), jnp.float32),
  )


def random_batch(
  rng: np.random.Generator, batch_size: int, samples: int, labels: int, vocab_size: int
) -> py_utils.NestedMap:
  """Returns a training batch of noise and random transcripts: to time steps without data.

  All rows have S samples. A quarter of the labels are no padding.

  Args:
    rng: The source of samples and labels.
    batch_size: B, the rows.
    samples: S, the samples of a row.
    labels: L, the labels of a row.
    vocab_size: V, from which labels are drawn.
  """
  is_padding = np.broadcast_to(np.arange(labels) >= max(1, labels // 4), (batch_size, labels))
  drawn = rng.integers(vocabulary.EOS_ID, vocab_size, (batch_size, labels), dtype=np.int32)
  return py_utils.NestedMap(
    speech=rng.integers(-1_000, 1_000, (batch_size, samples), dtype=np.int16),
    num_samples=np.full(batch_size, samples, np.int32),
    labels=np.where(is_padding, np.int32(0), drawn),
    label_paddings=is_padding.astype(np.float32),
  )


class _SpeechInput(streams.RecordInput):
  """What both inputs share.

  Attributes:
    vocab: SentencePiece model of T5's layout.
    samples: S, the samples of a row.
    labels: L, the labels of a row.
  """

  vocab: str = ''
  samples: int = 0
  labels: int = 0

  def ids_to_strings(
    self, ids: np.ndarray, lengths: np.ndarray, key: str | None = None
  ) -> list[str]:
    """Returns the text of each row of pieces. An EOS has none."""
    del key
    processor = _processor(self.vocab)
    rows = (row[:length].tolist() for row, length in zip(ids, lengths, strict=True))
    return [processor.decode([i for i in row if i != vocabulary.EOS_ID]) for row in rows]

  def _utterance(self, record: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the padded fields of a record, and whether it counts: `is_kept`."""
    fields = tf.io.parse_single_example(record, _RECORD)
    speech, text = tf.sparse.to_dense(fields['speech']), damage.text(fields['text'])
    labels = _tokenizer(self.vocab).tokenize(text)
    count, length = tf.size(labels), tf.size(speech)
    characters = tf.strings.length(text, 'UTF8_CHAR')
    is_kept = (length <= self.samples) & (length > 0) & (characters <= self.labels)
    is_kept &= count <= self.labels
    return {
      'speech': _padded(tf.cast(speech, tf.int16), self.samples),
      'num_samples': tf.minimum(length, self.samples),
      'labels': _padded(labels, self.labels),
      'label_paddings': tf.cast(tf.range(self.labels) >= count, tf.float32),
      'is_kept': is_kept,
    }


class SpeechTrainInput(inputs.OnePosition, _SpeechInput):
  """One endless stream of utterances for all hosts; each takes its share of every batch."""

  _next_row: int = dataclasses.field(init=False, repr=False, default=0)

  def get_next(self) -> py_utils.NestedMap:
    """Returns this host's rows of the next global batch."""
    batch = super().get_next()
    self._next_row = int(batch.pop('next_row'))
    return batch

  def _get_state_internal(self) -> bytes:
    return json.dumps({'row': self._next_row}).encode()

  def _set_state_internal(self, state: bytes) -> None:
    self._next_row, self._iterator = json.loads(state)['row'], None

  def _dataset(self) -> tf.data.Dataset:
    share, start = self._share(), self._next_row
    buffer = SHUFFLED_BATCHES * share.whole
    records = streams.shuffled(self._records(), self.input_random_seed, buffer, start)
    rows = tf.data.Dataset.zip(tf.data.Dataset.counter(tf.cast(start, tf.int64)), records)
    # Each host looks at all rows, since the place of a row depends on what is left out before it.
    rows = rows.map(
      lambda row, record: {'row': row, **self._utterance(record)},
      num_parallel_calls=tf.data.AUTOTUNE,
    )
    rows = rows.filter(lambda row: row['is_kept']).enumerate()
    # A batch's last row tells where the next batch begins, so each host reads it too.
    last = share.whole - 1
    rows = rows.filter(lambda n, _: share.owns(n) | (n % share.whole == last))
    has_last = share.owns(last)
    batches = rows.map(lambda _, row: row).batch(self.batch_size + (not has_last), True)
    return batches.map(self._without_last).prefetch(2)

  def _without_last(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    fields = {
      name: tf.ensure_shape(x[: self.batch_size], [self.batch_size, *x.shape[1:]])
      for name, x in batch.items()
      if name not in ('row', 'is_kept')
    }
    return fields | {'next_row': batch['row'][-1] + 1}


class SpeechEvalInput(_SpeechInput):
  """Splits, once and in order. The rows that do not count have weight 0."""

  def _dataset(self) -> tf.data.Dataset:
    share, records = self._share(), self._records()
    own = streams.in_order(records, share)
    own = own.map(self._row, num_parallel_calls=tf.data.AUTOTUNE)
    return own.batch(self.batch_size, drop_remainder=True).prefetch(2)

  def _row(self, record: tf.Tensor) -> dict[str, tf.Tensor]:
    def filler() -> dict[str, tf.Tensor]:
      return {
        'speech': tf.zeros([self.samples], tf.int16),
        'num_samples': tf.zeros([], tf.int32),
        'labels': tf.zeros([self.labels], tf.int32),
        'label_paddings': tf.ones([self.labels]),
        'is_kept': tf.constant(False),
      }

    row = tf.cond(record == streams.FILLER, filler, lambda: self._utterance(record))
    return row | {'weight': tf.cast(row.pop('is_kept'), tf.float32)}


def train_input(**fields) -> pax_fiddle.Config[SpeechTrainInput]:
  """Returns the endless input of the splits to train on, epoch after epoch.

  The rows of a step's batch, over all hosts, do not depend on the number of hosts.

  Args:
    **fields: Attributes of `SpeechTrainInput`.
  """
  return pax_fiddle.Config(SpeechTrainInput, is_training=True, **fields)


def eval_input(**fields) -> pax_fiddle.Config[SpeechEvalInput]:
  """Returns the input of splits that are read once and in order at each evaluation.

  Args:
    **fields: Attributes of `SpeechEvalInput`.
  """
  return pax_fiddle.Config(
    SpeechEvalInput, reset_for_eval=True, eval_loop_num_batches=None, **fields
  )


def has_splits(folder: str, splits: Sequence[str]) -> bool:
  """Returns whether a data set has all of some splits.

  Args:
    folder: Folder of the data set.
    splits: Names of splits.
  """
  return set(splits) <= set(damage.open_builder(folder).info.splits)


def check_data(folder: str, splits: Sequence[str], samples: int, labels: int, command: str) -> None:
  """Checks that records are whole, and that a row has room for some of them.

  Args:
    folder: Folder of the data set.
    splits: Splits that are read.
    samples: S, the samples of a row.
    labels: L, the labels of a row.
    command: The command that makes the data.

  Raises:
    UserError: A file is cut short, or all of the first utterances are too long.
  """
  text = {'text': _RECORD['text']}
  streams.check_files(folder, splits, text, f'copy it again, or make it with: {command}')
  for split in splits:
    path = streams.find_records(folder, [split]).files[0]
    records = [tf.train.Example.FromString(x) for x in tfrecords.first_records(path, _CHECKED)]
    features = [record.features.feature for record in records]
    if not any(
      0 < len(f['speech'].int64_list.value) <= samples
      and len(f['text'].bytes_list.value[0].decode()) <= labels
      for f in features
    ):
      raise UserError(
        f'{path}: none of the first {len(records)} utterances has at most MAX_SECONDS = '
        f'{samples / RATE:g} and MAX_LABELS = {labels} characters: raise them'
      )


def _padded(x: tf.Tensor, length: int) -> tf.Tensor:
  """Returns the first `length` elements, after padding with zeros."""
  x = x[:length]
  return tf.ensure_shape(tf.pad(x, [[0, length - tf.size(x)]]), [length])


@functools.cache
def _processor(vocab: str) -> sentencepiece.SentencePieceProcessor:
  return sentencepiece.SentencePieceProcessor(model_proto=epath.Path(vocab).read_bytes())


@functools.cache
def _tokenizer(vocab: str) -> Any:
  """Returns TensorFlow's tokenizer, which appends an EOS."""
  import tensorflow_text

  model = epath.Path(vocab).read_bytes()
  with tf.init_scope():  # Its table must outlive the graph that first asks for it.
    return tensorflow_text.SentencepieceTokenizer(model, out_type=tf.int32, add_eos=True)
