"""Text for language models: documents, tokenised and packed to rows of one length.

A batch holds, with B rows per host of T tokens:

| field | dtype, shape | |
|---|---|---|
| ids | int32 [B, T] | the labels moved right by one, 0 first |
| labels | int32 [B, T] | the tokens |
| weights | float32 [B, T] | 1 for a token, 0 for padding |
| paddings | float32 [B, T] | 1 - weights |
| segment_ids | int32 [B, T] | 1 for a token, 0 for padding |
| segment_pos | int32 [B, T] | 0, 1, ..., T - 1; 0 at padding |
| eval_sample_weights | float32 [B] | 0 for a row that only fills the last batch |
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import seqio
import tensorflow as tf
from paxml import seqio_input
from praxis import pax_fiddle, py_utils

from laser_pax import pax_fixes
from laser_pax.data import inputs
from laser_pax.data.datasets import C4, DatasetSpec

# Rows among which the next one is drawn: 40 MB at 1,024 tokens.
SHUFFLE_ROWS = 10_000


class EpochTask(seqio.Task):
  """A task that shuffles within epochs.

  seqio repeats first and shuffles then: its buffer of rows mixes one epoch into the next, and a
  small data set is drawn from almost with replacement. Here no row comes again before all came.
  """

  def get_dataset(self, *args, num_epochs: int | None = 1, **kwargs) -> tf.data.Dataset:
    """As `seqio.Task.get_dataset`, with the repetition last."""
    with pax_fixes.without_autograph():
      epoch = super().get_dataset(*args, num_epochs=1, **kwargs)
    return epoch if num_epochs == 1 else epoch.repeat(num_epochs)


def batch_specs(batch_size: int, seq_len: int) -> py_utils.NestedMap:
  """Returns the shapes and dtypes of a training batch, without opening the data."""
  shape = (batch_size, seq_len)
  integer, real = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, jnp.float32))
  return py_utils.NestedMap(
    ids=integer,
    labels=integer,
    paddings=real,
    segment_ids=integer,
    segment_pos=integer,
    weights=real,
  )


def train_input(
  *,
  data_dir: str,
  vocab: str,
  batch_size: int,
  seq_len: int,
  seed: int,
  name: str = 'train',
  dataset: DatasetSpec = C4,
) -> pax_fiddle.Config[inputs.GlobalStreamInput]:
  """Endless full rows of the train split, as `inputs.train_input`.

  Args:
    data_dir: Folder that holds the data set's own.
    vocab: SentencePiece model of T5's layout.
    batch_size: B, rows per host.
    seq_len: T, tokens a row.
    seed: Of the order of files and rows.
    name: Of the input, in PAX's logs.
    dataset: Of text.
  """
  task = text_task(dataset, 'train', data_dir=data_dir, vocab=vocab, seq_len=seq_len)
  return inputs.train_input(
    task,
    lengths={'targets': seq_len},
    converter=_converter(),
    batch_size=batch_size,
    seed=seed,
    name=name,
  )


def validation_input(
  *,
  data_dir: str,
  vocab: str,
  batch_size: int,
  seq_len: int,
  name: str = 'validation',
  dataset: DatasetSpec = C4,
) -> inputs.Input:
  """The whole validation split, once at each evaluation, in order.

  The weights over all batches and hosts sum to the number of tokens of the split: the padding of
  the last row, and the rows that fill the last batch, have weight 0.

  Args:
    data_dir: Folder that holds the data set's own.
    vocab: SentencePiece model of T5's layout.
    batch_size: B, rows per host.
    seq_len: T, tokens a row.
    name: Of the input, in PAX's logs.
    dataset: Of text.
  """
  task = text_task(dataset, 'validation', data_dir=data_dir, vocab=vocab, seq_len=seq_len)
  return inputs.eval_input(
    task,
    split='validation',
    lengths={'targets': seq_len},
    converter=_converter(),
    batch_size=batch_size,
    name=name,
  )


class TextFeatures(seqio_input.LanguageModelFeatures):
  """PAX's converter of rows to a language model's batch, which starts faster."""

  def __call__(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]):
    """As the base's."""
    with pax_fixes.without_autograph():
      return super().__call__(ds, task_feature_lengths=task_feature_lengths)


def _converter() -> pax_fiddle.Config[TextFeatures]:
  return pax_fiddle.Config(TextFeatures, pack=False, bos_id=0)


def text_task(dataset: DatasetSpec, split: str, *, data_dir: str, vocab: str, seq_len: int) -> str:
  """Registers the task for a split of `data_dir`, once, and returns its name.

  The documents are tokenised, an EOS is appended to each, and their concatenation, in order, is
  cut into rows of `seq_len` tokens, as T5 and PAX do for language models on C4. A row's positions
  and attention run across documents. For training the last, shorter row of an epoch is left out
  (of each host's, where several share the work); for validation it is kept, and padded.

  Args:
    dataset: Of text, in the field `text`.
    split: Of the data set.
    data_dir: Folder that holds the data set's own.
    vocab: SentencePiece model of T5's layout.
    seq_len: T, tokens a row.

  Returns:
    The name under which seqio knows the task; it differs wherever an argument differs. Its one
    feature is `targets`, int32 of shape [T].
  """
  key = hashlib.sha256(repr((data_dir, vocab)).encode()).hexdigest()[:8]
  name = f'laser_pax_{dataset.name}_{split}_{seq_len}_{key}'
  if name in seqio.TaskRegistry.names():
    return name
  seqio.TaskRegistry.add(
    name,
    task_cls=EpochTask,
    # read_only: never look for the data set in a bucket, and never build it.
    source=seqio.TfdsDataSource(
      dataset.tfds_name, tfds_data_dir=data_dir, splits=[split], read_only=True
    ),
    preprocessors=[
      functools.partial(seqio.preprocessors.rekey, key_map={'targets': 'text'}),
      functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
      seqio.preprocessors.append_eos,
      functools.partial(concatenate_and_cut, drop_remainder=split == 'train'),
    ],
    output_features={
      'targets': seqio.Feature(seqio.SentencePieceVocabulary(vocab, extra_ids=0), add_eos=True)
    },
    shuffle_buffer_size=SHUFFLE_ROWS,
  )
  return name


def concatenate_and_cut(
  dataset: tf.data.Dataset, sequence_length: Mapping[str, int], *, drop_remainder: bool
) -> tf.data.Dataset:
  """Cuts the concatenation of all documents, in order, into rows of T tokens.

  T5's own pair of preprocessors does so for 128 documents at a time, each with a shorter last row.

  Args:
    dataset: elements `{'targets': int32 [tokens of a document]}`.
    sequence_length: `{'targets': T}`.
    drop_remainder: whether to leave out the last row where it is shorter than T.
  """
  return dataset.rebatch(sequence_length['targets'], drop_remainder=drop_remainder)
