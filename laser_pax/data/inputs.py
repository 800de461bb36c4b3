"""PAX inputs over a prepared data set: training, and the whole validation split.

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

import tensorflow_datasets as tfds
from paxml import seqio_input
from praxis import pax_fiddle

from laser_pax.data import c4


def train_input(
  *, data_dir: str, vocab: str, batch_size: int, seq_len: int, seed: int, name: str = 'train'
) -> pax_fiddle.Config[seqio_input.SeqIOInput]:
  """Endless full rows of the train split, epoch after epoch, in an order given by the seed.

  Its state can be saved and restored by PAX's input checkpoints (`enable_input_checkpointing`): the
  next batch is then the one that would have come.

  Args:
    data_dir: folder that holds `c4/en/3.0.1`.
    vocab: SentencePiece model of T5's layout.
    batch_size: B, rows per host.
    seq_len: T, tokens a row.
    seed: of the order of files and rows.
    name: of the input, in PAX's logs.
  """
  return _input(
    'train',
    data_dir=data_dir,
    vocab=vocab,
    batch_size=batch_size,
    seq_len=seq_len,
    name=name,
    is_training=True,
    input_random_seed=seed,
    # Symbolic checkpoints, PAX's default, do not know rebatch, and with what could replace it a run
    # of 8 s was not done after ten minutes. An explicit one holds the shuffle's rows (40 MB).
    enable_symbolic_checkpointing=False,
  )


def validation_input(
  *, data_dir: str, vocab: str, batch_size: int, seq_len: int, name: str = 'validation'
) -> pax_fiddle.Config[seqio_input.SeqIOInput]:
  """The whole validation split, once at each evaluation, in order.

  The weights over all batches and hosts sum to the number of tokens of the split: the padding of
  the last row, and the rows that fill the last batch, have weight 0.

  Args:
    data_dir: folder that holds `c4/en/3.0.1`.
    vocab: SentencePiece model of T5's layout.
    batch_size: B, rows per host.
    seq_len: T, tokens a row.
    name: of the input, in PAX's logs.
  """
  return _input(
    'validation',
    data_dir=data_dir,
    vocab=vocab,
    batch_size=batch_size,
    seq_len=seq_len,
    name=name,
    is_training=False,
    reset_for_eval=True,
    eval_loop_num_batches=None,
    annotate_padding_fields=True,
  )


def _input(
  split: str, *, data_dir: str, vocab: str, seq_len: int, **kwargs
) -> pax_fiddle.Config[seqio_input.SeqIOInput]:
  return pax_fiddle.Config(
    seqio_input.SeqIOInput,
    mixture_name=c4.c4_task(split, data_dir=data_dir, vocab=vocab, seq_len=seq_len),
    split_name=split,
    task_feature_lengths={'targets': seq_len},
    feature_converter=pax_fiddle.Config(seqio_input.LanguageModelFeatures, pack=False, bos_id=0),
    # All for exact resumption: a cache is no part of an iterator's saved state, and neither is the
    # order of files in the epochs to come, so it stays that of the first (rows are shuffled anew).
    read_config=pax_fiddle.Config(
      tfds.ReadConfig, try_autocache=False, shuffle_reshuffle_each_iteration=False
    ),
    try_in_mem_cache=False,
    **kwargs,
  )
