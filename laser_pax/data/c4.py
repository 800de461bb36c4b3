"""seqio tasks that read a prepared data set, tokenise it and pack it to one length."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping

import seqio
import tensorflow as tf

from laser_pax.data import paths

# Rows among which the next one is drawn: 40 MB at 1,024 tokens.
SHUFFLE_ROWS = 10_000


class EpochTask(seqio.Task):
  """A task that shuffles within epochs.

  seqio repeats first and shuffles then: its buffer of rows mixes one epoch into the next, and a
  small data set is drawn from almost with replacement. Here no row comes again before all came.
  """

  def get_dataset(self, *args, num_epochs: int | None = 1, **kwargs) -> tf.data.Dataset:
    """As `seqio.Task.get_dataset`, with the repetition last."""
    epoch = super().get_dataset(*args, num_epochs=1, **kwargs)
    return epoch if num_epochs == 1 else epoch.repeat(num_epochs)


def c4_task(split: str, *, data_dir: str, vocab: str, seq_len: int) -> str:
  """Registers the task for a split of `data_dir`, once, and returns its name.

  The documents are tokenised, an EOS is appended to each, and their concatenation, in order, is
  cut into rows of `seq_len` tokens, as T5 and PAX do for language models on C4. A row's positions
  and attention run across documents. For training the last, shorter row of an epoch is left out
  (of each host's, where several share the work); for validation it is kept, and padded.

  Args:
    split: 'train' or 'validation'.
    data_dir: folder that holds `c4/en/3.0.1`.
    vocab: SentencePiece model of T5's layout.
    seq_len: T, tokens a row.

  Returns:
    The name under which seqio knows the task; it differs wherever an argument differs. Its one
    feature is `targets`, int32 of shape [T].
  """
  key = hashlib.sha256(repr((data_dir, vocab)).encode()).hexdigest()[:8]
  name = f'laser_pax_c4_{split}_{seq_len}_{key}'
  if name in seqio.TaskRegistry.names():
    return name
  seqio.TaskRegistry.add(
    name,
    task_cls=EpochTask,
    # read_only: never look for the data set in a bucket, and never build it.
    source=seqio.TfdsDataSource(
      paths.DATASET, tfds_data_dir=data_dir, splits=[split], read_only=True
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
