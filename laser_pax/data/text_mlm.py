"""Text for masked language models: MLPerf's records for BERT, packed into rows of one length.

A batch has B rows per host, of T tokens each, in these fields:

| field | dtype, shape | |
|---|---|---|
| labels | int32 [B, T] | the tokens, as they were |
| masked_ids | int32 [B, T] | the tokens, some masked: what the model reads |
| masked_pos | float32 [B, T] | 1 for a token that is to be predicted, else 0 |
| paddings | float32 [B, T] | 1 for padding |
| segment_ids | int32 [B, T] | 1, 2, ... for the documents of a row, 0 for padding |
| segment_pos | int32 [B, T] | place in the document; 0 at padding |
| eval_sample_weights | float32 [B] | 0 for a row that only fills the last batch; not in training |

As PAX does with these records: the first [SEP] is taken out, so that A and B are one document. In
training the stored masks are dropped and new ones drawn each time, and documents share rows. In
evaluation the stored masks stay, and each document has its row. Where rows are shorter than
records, a document becomes several.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import random
from collections.abc import Mapping

import numpy as np
import seqio
import tensorflow as tf
from etils import epath
from praxis import base_hyperparams, pax_fiddle, py_utils

from laser_pax.data import damage, inputs, text_lm, tfrecords, wordpiece
from laser_pax.data.prepare import mlperf
from laser_pax.data.prepare.wikipedia import EVAL_FILE, PREDICTIONS, TOKENS
from laser_pax.errors import UserError

# Shares of tokens that become [MASK], become random, and stay, each to be predicted. As in PAX.
MASKED, RANDOM, KEPT = 0.12, 0.015, 0.015

_FEATURES = ('labels', 'masked_ids', 'masked_pos')
# A tenth of the masked tokens are random, so that these have nearly the greatest token.
_CHECKED_RECORDS = 100
# A token that no vocabulary has.
_OUTSIDE = 2**30
_RECORD = {
  'input_ids': tf.io.FixedLenFeature([TOKENS], tf.int64),
  'input_mask': tf.io.FixedLenFeature([TOKENS], tf.int64),
  'masked_lm_positions': tf.io.FixedLenFeature([PREDICTIONS], tf.int64),
  'masked_lm_ids': tf.io.FixedLenFeature([PREDICTIONS], tf.int64),
  'masked_lm_weights': tf.io.FixedLenFeature([PREDICTIONS], tf.float32),
}


def batch_specs(batch_size: int, seq_len: int) -> py_utils.NestedMap:
  """Returns the shapes and dtypes of a training batch, without opening the data.

  Args:
    batch_size: B, the rows.
    seq_len: T, the tokens per row.
  """
  integers, reals = (
    ('labels', 'masked_ids', 'segment_ids', 'segment_pos'),
    ('masked_pos', 'paddings'),
  )
  return inputs.row_specs(batch_size, seq_len, integers=integers, reals=reals)


def random_batch(
  rng: np.random.Generator, batch_size: int, seq_len: int, vocab_size: int
) -> py_utils.NestedMap:
  """Returns a training batch of random tokens, without padding: to time steps without data.

  Args:
    rng: The source of the tokens, and of the share MASKED of them that is to be predicted.
    batch_size: B, the rows.
    seq_len: T, the tokens per row.
    vocab_size: V, from which tokens are drawn.
  """
  plain = text_lm.random_batch(rng, batch_size, seq_len, vocab_size)
  is_masked = rng.random(plain.labels.shape) < MASKED
  return py_utils.NestedMap(
    labels=plain.labels,
    masked_ids=np.where(is_masked, np.int32(wordpiece.MASK), plain.labels),
    masked_pos=is_masked.astype(np.float32),
    **{name: plain[name] for name in ('paddings', 'segment_ids', 'segment_pos')},
  )


def train_input(
  folder: str, *, batch_size: int, seq_len: int, vocab_size: int, seed: int
) -> pax_fiddle.Config[inputs.GlobalStreamInput]:
  """Returns the endless input of packed rows of the train split (see `inputs.train_input`).

  Args:
    folder: Folder of the records.
    batch_size: B, the rows per host.
    seq_len: T, the tokens per row, at most 512. A longer document becomes several.
    vocab_size: V, from which random tokens are drawn.
    seed: Seed of the order of files and records, and of the masks.
  """
  converter = pax_fiddle.Config(MaskedRows, pack=True, vocab_size=vocab_size, seed=seed)
  return inputs.train_input(
    masked_task(folder),
    lengths=dict.fromkeys(_FEATURES, seq_len),
    converter=converter,
    batch_size=batch_size,
    seed=seed,
    name='train',
    cls=MaskedTrainInput,
  ).set(vocab_size=vocab_size)


def eval_input(folder: str, *, batch_size: int, seq_len: int, vocab_size: int) -> inputs.Input:
  """Returns the input of the whole evaluation split, with the stored masks.

  Args:
    folder: Folder of the records.
    batch_size: B, the rows per host.
    seq_len: T, the tokens per row, at most 512. A longer document becomes several.
    vocab_size: V, the number of pieces that the model has.
  """
  return inputs.eval_input(
    masked_task(folder),
    cls=MaskedEvalInput,
    split='eval',
    lengths=dict.fromkeys(_FEATURES, seq_len),
    converter=pax_fiddle.Config(MaskedRows, pack=False),
    batch_size=batch_size,
    name='eval',
  ).set(vocab_size=vocab_size)


class _Records(seqio.TFExampleDataSource):
  """MLPerf's records, from files in an order that is the same in each epoch.

  seqio draws a new order of files for each epoch, and an iterator's saved state has no such order.
  """

  def list_shards(self, split: str) -> list[str]:
    files = sorted(super().list_shards(split))
    random.Random(0).shuffle(files)
    return files

  def get_dataset(self, split: str, shuffle: bool = True, *args, **kwargs) -> tf.data.Dataset:
    return super().get_dataset(split, False, *args, **kwargs)


class _MaskedInput(inputs.SeqIOInput):
  """An input whose tokens the model must have.

  Attributes:
    vocab_size: V, the number of pieces that the model has.
  """

  vocab_size: int = 0

  def get_next(self) -> py_utils.NestedMap:
    """Returns the next batch.

    Raises:
      UserError: A file is missing or damaged, or has a token that the model lacks.
    """
    batch = super().get_next()
    tokens, keys = (batch.labels, batch.masked_ids), ('input_ids', 'masked_lm_ids')
    damage.check_tokens(tokens, self.vocab_size, self.files, keys)
    return batch


class MaskedTrainInput(_MaskedInput, inputs.GlobalStreamInput):
  """The stream of a training."""


class MaskedEvalInput(_MaskedInput):
  """PAX's input, in which the rows that fill the last batch have nothing to predict."""

  def _pad_to_batch_size(self, ds: tf.data.Dataset) -> tf.data.Dataset:
    def weigh(row: py_utils.NestedMap) -> py_utils.NestedMap:
      row.masked_pos *= row.eval_sample_weights
      return row

    return super()._pad_to_batch_size(ds).map(weigh)


def masked_task(folder: str) -> str:
  """Registers the task for the records of a folder, once, and returns its name."""
  name = f'laser_pax_masked_{hashlib.sha256(folder.encode()).hexdigest()[:8]}'
  if name not in seqio.TaskRegistry.names():
    vocabulary = seqio.PassThroughVocabulary(0)
    feature = seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32)
    seqio.TaskRegistry.add(
      name,
      task_cls=text_lm.EpochTask,
      source=_Records({'train': f'{folder}/part-*-of-*', 'eval': f'{folder}/{EVAL_FILE}'}, _RECORD),
      preprocessors=[
        lambda ds: ds.map(restore_tokens, num_parallel_calls=tf.data.AUTOTUNE),
        split_documents,
      ],
      output_features=dict.fromkeys(_FEATURES, feature),
      shuffle_buffer_size=text_lm.SHUFFLE_ROWS,
    )
  return name


def restore_tokens(record: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  """Returns a record's tokens as they were, and masked, without the first [SEP] and padding.

  Args:
    record: A record of MLPerf's layout.

  Returns:
    `labels`, `masked_ids` and `masked_pos`, int32, of the document's own length.
  """
  count = tf.cast(tf.reduce_sum(record['masked_lm_weights']), tf.int32)
  places = record['masked_lm_positions'][:count, None]
  masked = tf.cast(record['input_ids'], tf.int32)
  originals = tf.cast(record['masked_lm_ids'][:count], tf.int32)
  labels = tf.tensor_scatter_nd_update(masked, places, originals)
  is_masked = tf.tensor_scatter_nd_update(tf.zeros_like(masked), places, tf.ones_like(originals))
  is_first_end = tf.math.cumsum(tf.cast(labels == wordpiece.SEP, tf.int32)) == 1
  is_kept = (record['input_mask'] > 0) & ~(is_first_end & (labels == wordpiece.SEP))
  kept = {'labels': labels, 'masked_ids': masked, 'masked_pos': is_masked}
  return {name: tf.boolean_mask(x, is_kept) for name, x in kept.items()}


def split_documents(ds: tf.data.Dataset, sequence_length: Mapping[str, int]) -> tf.data.Dataset:
  """Cuts documents that are longer than a row into several, each as long as a row.

  Args:
    ds: What `restore_tokens` returns.
    sequence_length: T by feature, as seqio gives it. Rows of 512 hold every document.
  """
  length = sequence_length['labels']
  if length >= TOKENS:
    return ds

  def cut(tokens: Mapping[str, tf.Tensor]) -> tf.data.Dataset:
    starts = tf.data.Dataset.range(0, tf.size(tokens['labels'], tf.int64), length)
    return starts.map(lambda i: {name: x[i : i + length] for name, x in tokens.items()})

  return ds.flat_map(cut)


def remask(
  tokens: Mapping[str, tf.Tensor], seed: tf.Tensor, vocab_size: int
) -> dict[str, tf.Tensor]:
  """Draws new masks, for each token alone: 12% [MASK], 1.5% a random token, 1.5% as it was.

  Args:
    tokens: What `restore_tokens` returns.
    seed: Seed, int64.
    vocab_size: V, from which random tokens are drawn.

  Source: PAX's MaskedLmDataAugmenter.
  """
  labels = tokens['labels']
  chance = tf.random.stateless_uniform(tf.shape(labels), [seed, 0])
  drawn = tf.random.stateless_uniform(
    tf.shape(labels), [seed, 1], maxval=vocab_size, dtype=tf.int32
  )
  masked = tf.where(chance < MASKED + RANDOM, drawn, labels)
  masked = tf.where(chance < MASKED, wordpiece.MASK, masked)
  is_masked = tf.cast(chance < MASKED + RANDOM + KEPT, tf.int32)
  return {'labels': labels, 'masked_ids': masked, 'masked_pos': is_masked}


class MaskedRows(seqio.FeatureConverter, base_hyperparams.StrOverride):
  """Makes rows of documents: packed, with new masks, or a document in each."""

  TASK_FEATURES = dict.fromkeys(_FEATURES, seqio.FeatureConverter.FeatureSpec(dtype=tf.int32))
  MODEL_FEATURES = {
    name: seqio.FeatureConverter.FeatureSpec(dtype=tf.as_dtype(spec.dtype))
    for name, spec in batch_specs(1, 1).items()
  }
  PACKING_FEATURE_DTYPES: Mapping[str, tf.DType] = {}

  def __init__(self, pack: bool, vocab_size: int = 0, seed: int = 0):
    """Takes seqio's `pack`; and, for new masks, the size of the vocabulary and a seed."""
    super().__init__(pack=pack)
    self._vocab_size, self._seed = vocab_size, seed

  def __str__(self) -> str:
    """Returns the text that PAX writes into its description of the input."""
    return f'{type(self).__name__}(pack={self.pack}, seed={self._seed})'

  def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
    """Returns the length of a row for each field."""
    return dict.fromkeys(self.MODEL_FEATURES, task_feature_lengths['labels'])

  def _convert_features(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    if self.pack:
      seeds = tf.data.Dataset.random(self._seed)
      ds = tf.data.Dataset.zip(ds, seeds).map(
        functools.partial(remask, vocab_size=self._vocab_size),
        num_parallel_calls=tf.data.AUTOTUNE,
      )
    # seqio takes every 0 for padding, also those of masked_pos: one more keeps them. A negative
    # token must not become padding that way.
    ds = ds.map(
      lambda x: {name: 1 + tf.where(x[name] < 0, _OUTSIDE, x[name]) for name in _FEATURES},
      num_parallel_calls=tf.data.AUTOTUNE,
    )
    ds = self._pack_or_pad(ds, task_feature_lengths)
    return ds.map(self._row, num_parallel_calls=tf.data.AUTOTUNE)

  def _row(self, row: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    is_real = tf.cast(row['labels'] > 0, tf.int32)
    if self.pack:
      segment_ids, positions = row['labels_segment_ids'], row['labels_positions']
    else:
      segment_ids, positions = is_real, tf.range(tf.size(is_real)) * is_real
    return {
      'labels': row['labels'] - is_real,
      'masked_ids': row['masked_ids'] - is_real,
      'masked_pos': tf.cast(row['masked_pos'] - is_real, tf.float32),
      'paddings': tf.cast(segment_ids == 0, tf.float32),
      'segment_ids': segment_ids,
      'segment_pos': positions,
    }


def vocab_size(path: str) -> int | None:
  """Returns the number of pieces of a WordPiece vocabulary, or None if the file is not there.

  Raises:
    UserError: The file is not such a vocabulary.
  """
  return len(wordpiece.read_vocab(path)) if epath.Path(path).exists() else None


def check_records(folder: str, vocab_size: int, command: str) -> None:
  """Checks the files and their ends, and the layout and tokens of the first records.

  Args:
    folder: Folder of the records.
    vocab_size: V, the number of pieces that the model has.
    command: The command that makes records.

  Raises:
    UserError: A file is missing, cut short, of another layout, or has tokens that the model lacks.
  """
  evaluation = epath.Path(folder) / EVAL_FILE
  parts = sorted(epath.Path(folder).glob('part-*-of-*'))
  remedy = f'copy it again, or remove the folder and make it with: {command}'
  if missing := mlperf.missing_parts(path.name for path in parts):
    raise UserError(f'{folder}: missing: {mlperf.listed(missing)}; {remedy}')
  tfrecords.check_whole([*parts, evaluation], remedy)
  tokens = 0
  for path, count in ((parts[0], 1), (evaluation, _CHECKED_RECORDS)):
    for record in tfrecords.first_records(path, count):
      example = tfrecords.check_layout(path, record, _RECORD, remedy)
      features = example.features.feature
      for key in ('input_ids', 'masked_lm_ids'):
        tokens = max(tokens, *features[key].int64_list.value)
  if tokens >= vocab_size:
    raise UserError(
      f'{evaluation} has the token {tokens}, but the model has VOCAB_SIZE = {vocab_size}: set '
      f'VOCAB_SIZE to that of the records, or make others with: {command}'
    )


def accuracy_by_frequency(folder: str) -> float:
  """Returns the accuracy of repeating what is read, and for [MASK] the commonest token.

  A tenth of the tokens to predict stay as they were, so that repeating is right there.

  Args:
    folder: Folder of the records.
  """
  records = tf.data.TFRecordDataset(f'{folder}/{EVAL_FILE}')
  parse = functools.partial(tf.io.parse_single_example, features=_RECORD)
  repeated, total, hidden = 0, 0, collections.Counter()
  for row in records.map(parse).map(restore_tokens).as_numpy_iterator():
    chosen = row['masked_pos'] == 1
    labels, read = row['labels'][chosen], row['masked_ids'][chosen]
    total += len(labels)
    repeated += (labels == read).sum()
    hidden.update(labels[read == wordpiece.MASK].tolist())
  return float(repeated + max(hidden.values())) / total
