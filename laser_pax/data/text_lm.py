"""Text for language models: tokenised documents, packed into rows of one length.

A batch has B rows per host, of T tokens each, in these fields:

| field | dtype, shape | |
|---|---|---|
| ids | int32 [B, T] | the labels, moved right by one, with 0 first |
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

import numpy as np
import seqio
import tensorflow as tf
from paxml import seqio_input
from praxis import pax_fiddle, py_utils

from laser_pax import pax_fixes
from laser_pax.data import damage, inputs, streams
from laser_pax.data.datasets import C4, DatasetSpec

# The next row is drawn from a buffer of this many rows: 40 MB at 1,024 tokens.
SHUFFLE_ROWS = 10_000


class EpochTask(seqio.Task):
  """A task that shuffles within epochs.

  seqio first repeats the rows and then shuffles them, so its buffer mixes one epoch into the next.
  From a small data set it draws almost with replacement. Here every row comes once in each epoch.
  """

  def get_dataset(self, *args, num_epochs: int | None = 1, **kwargs) -> tf.data.Dataset:
    """Returns the data set of `seqio.Task.get_dataset`, but repeats after shuffling."""
    with pax_fixes.without_autograph():
      epoch = super().get_dataset(*args, num_epochs=1, **kwargs)
    return epoch if num_epochs == 1 else epoch.repeat(num_epochs)


def batch_specs(batch_size: int, seq_len: int) -> py_utils.NestedMap:
  """Returns the shapes and dtypes of a training batch, without opening the data.

  Args:
    batch_size: B, the rows.
    seq_len: T, the tokens per row.
  """
  integers, reals = ('ids', 'labels', 'segment_ids', 'segment_pos'), ('paddings', 'weights')
  return inputs.row_specs(batch_size, seq_len, integers=integers, reals=reals)


def random_batch(
  rng: np.random.Generator, batch_size: int, seq_len: int, vocab_size: int
) -> py_utils.NestedMap:
  """Returns a training batch of random tokens, without padding: to time steps without data.

  Args:
    rng: The source of the tokens.
    batch_size: B, the rows.
    seq_len: T, the tokens per row.
    vocab_size: V, from which tokens are drawn.
  """
  tokens = rng.integers(0, vocab_size, (batch_size, seq_len + 1), dtype=np.int32)
  ones = np.ones((batch_size, seq_len), np.float32)
  return py_utils.NestedMap(
    ids=tokens[:, :-1],
    labels=tokens[:, 1:],
    weights=ones,
    paddings=0 * ones,
    segment_ids=ones.astype(np.int32),
    segment_pos=np.tile(np.arange(seq_len, dtype=np.int32), (batch_size, 1)),
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
  """Returns the endless input of full rows of the train split (see `inputs.train_input`).

  Args:
    data_dir: Folder that contains the data set's folder.
    vocab: SentencePiece model of T5's layout.
    batch_size: B, the rows per host.
    seq_len: T, the tokens per row.
    seed: Seed of the order of files and rows.
    name: Name of the input in PAX's logs.
    dataset: Data set of texts.
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
  """Returns the input of the whole validation split, read once and in order at each evaluation.

  The weights over all batches and hosts sum to the number of tokens of the split. The padding of
  the last row has weight 0, and so have the rows that fill the last batch.

  Args:
    data_dir: Folder that contains the data set's folder.
    vocab: SentencePiece model of T5's layout.
    batch_size: B, the rows per host.
    seq_len: T, the tokens per row.
    name: Name of the input in PAX's logs.
    dataset: Data set of texts.
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


def prefix_input(
  *,
  data_dir: str,
  vocab: str,
  rows: int,
  prefix_len: int,
  name: str,
  dataset: DatasetSpec = C4,
) -> inputs.Input:
  """Returns the input of the first rows of the validation split, for a model to continue.

  A row of `ids` is 0 and the first P - 1 of P tokens in order, without a gap between rows.

  Args:
    data_dir: Folder that contains the data set's folder.
    vocab: SentencePiece model of T5's layout.
    rows: B, the rows per host, in one batch.
    prefix_len: P, the length of a row of `ids`.
    name: Name of the input in PAX's logs, and of the folder of what is decoded.
    dataset: Data set of texts.
  """
  task = text_task(
    dataset, 'validation', data_dir=data_dir, vocab=vocab, seq_len=prefix_len, rows=rows
  )
  return inputs.eval_input(
    task,
    split='validation',
    lengths={'targets': prefix_len},
    converter=_converter(),
    batch_size=rows,
    name=name,
  )


def check_files(data_dir: str, dataset: DatasetSpec) -> None:
  """Checks that all files of a data set of texts are there and whole.

  Args:
    data_dir: Folder that contains the data set's folder.
    dataset: Data set of texts.

  Raises:
    UserError: A file is missing, cut short, not as long as `prepare` made it, or of another layout.
  """
  text = {'text': tf.io.FixedLenFeature([], tf.string)}
  remedy = f'copy it again, or make it with: {dataset.prepare_command(data_dir)}'
  streams.check_files(f'{data_dir}/{dataset.folder}', dataset.splits, text, remedy)


class TextFeatures(seqio_input.LanguageModelFeatures):
  """PAX's converter of rows to a language model's batch, which starts faster."""

  def __call__(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]):
    """As the base's."""
    with pax_fixes.without_autograph():
      return super().__call__(ds, task_feature_lengths=task_feature_lengths)


def _converter() -> pax_fiddle.Config[TextFeatures]:
  return pax_fiddle.Config(TextFeatures, pack=False, bos_id=0)


def text_task(
  dataset: DatasetSpec,
  split: str,
  *,
  data_dir: str,
  vocab: str,
  seq_len: int,
  rows: int | None = None,
) -> str:
  """Registers the task for a split of `data_dir`, once, and returns its name.

  The documents are tokenised, and each gets an EOS. Then they are concatenated in order and cut
  into rows of `seq_len` tokens, as T5 and PAX do for language models on C4. A row's positions and
  attention run across documents. The last row of an epoch may be shorter: training leaves it out,
  and validation pads it.

  Args:
    dataset: Data set of texts, in the field `text`.
    split: Split of the data set.
    data_dir: Folder that contains the data set's folder.
    vocab: SentencePiece model of T5's layout.
    seq_len: T, the tokens per row.
    rows: Number of rows that each host reads, the first ones; None for all.

  Returns:
    The name of the task in seqio. Tasks of other arguments have other names. The task has one
    feature, `targets`, int32 of shape [T].
  """
  key = hashlib.sha256(repr((data_dir, vocab)).encode()).hexdigest()[:8]
  name = f'laser_pax_{dataset.name}_{split}_{seq_len}_{key}'
  name += '' if rows is None else f'_{rows}'
  if name in seqio.TaskRegistry.names():
    return name
  seqio.TaskRegistry.add(
    name,
    task_cls=EpochTask,
    # read_only: seqio must not look for the data set in a bucket, and must not build it.
    source=seqio.TfdsDataSource(
      dataset.tfds_name, tfds_data_dir=data_dir, splits=[split], read_only=True
    ),
    preprocessors=[
      text_as_targets,
      functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
      seqio.preprocessors.append_eos,
      functools.partial(concatenate_and_cut, drop_remainder=split == 'train'),
      *([] if rows is None else [functools.partial(_first_rows, rows=rows)]),
    ],
    output_features={
      'targets': seqio.Feature(seqio.SentencePieceVocabulary(vocab, extra_ids=0), add_eos=True)
    },
    shuffle_buffer_size=SHUFFLE_ROWS,
  )
  return name


@seqio.map_over_dataset
def text_as_targets(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  """Names the text `targets`."""
  return {'targets': damage.text(example['text'])}


def concatenate_and_cut(
  dataset: tf.data.Dataset, sequence_length: Mapping[str, int], *, drop_remainder: bool
) -> tf.data.Dataset:
  """Concatenates all documents in order and cuts the result into rows of T tokens.

  T5's own pair of preprocessors cuts 128 documents at a time, and each time gives a shorter last
  row.

  Args:
    dataset: Elements `{'targets': int32 [tokens of a document]}`.
    sequence_length: `{'targets': T}`.
    drop_remainder: Whether to leave out a last row that is shorter than T.
  """
  return dataset.rebatch(sequence_length['targets'], drop_remainder=drop_remainder)


def _first_rows(dataset: tf.data.Dataset, *, rows: int) -> tf.data.Dataset:
  return dataset.take(rows)
