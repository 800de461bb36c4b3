"""PAX inputs over seqio tasks: a training stream that resumes where it stopped, and evaluations.

What a batch holds is the business of a family's own file, such as text_lm.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from paxml import seqio_input
from praxis import pax_fiddle, py_utils

from laser_pax.errors import UserError

Input = pax_fiddle.Config[seqio_input.SeqIOInput]


class GlobalStreamInput(seqio_input.SeqIOInput):
  """One stream of rows for all hosts, of which each host takes its share of every batch.

  SeqIOInput deals files out to the hosts, so that another number of hosts trains on other batches.
  Here every host runs the whole pipeline: the batch of a step holds the same rows on any number of
  hosts, and all hosts' positions are one position, which the first host saves for all.
  """

  _restored: bool = dataclasses.field(init=False, repr=False, default=False)

  def _get_dataset(self) -> tf.data.Dataset:
    """Returns the global batches: [hosts x B, T]."""
    whole = seqio.ShardInfo(index=0, num_shards=1)
    rows = self._get_backing_ds(shuffle=self.should_shuffle, num_epochs=-1, shard_info=whole)
    # Not shared out before this point: what tf.data buffers is saved with its position.
    rows = self._pad_to_batch_size(rows)
    return rows.batch(self.batch_size * self.num_infeed_hosts, drop_remainder=True)

  def get_next(self) -> py_utils.NestedMap:
    """Returns this host's rows of the next global batch: [B, T]."""
    first = self.infeed_host_index * self.batch_size
    return super().get_next().Transform(lambda x: x[first : first + self.batch_size])

  def save(self, checkpoint_path: epath.PathLike) -> None:
    """Writes the position, which all hosts share, once."""
    if jax.process_index() == 0:
      epath.Path(checkpoint_path).write_bytes(self.get_state())

  def restore(self, checkpoint_path: epath.PathLike) -> None:
    """Goes on behind the batches that were read when the checkpoint was saved.

    Args:
      checkpoint_path: The position, or the name that PAX gives it for this host and number of
        hosts, beside which the first host's lies.

    Raises:
      UserError: no position is there.
    """
    path = epath.Path(checkpoint_path)
    saved = [path] if path.exists() else sorted(path.parent.glob('process_*'))
    if not saved:
      raise UserError(
        f'the position in the training data should be in {path.parent}, and is not: copy the '
        f'whole of that checkpoint, or remove the checkpoint to resume from the one before'
      )
    logging.info('The training data go on from %s.', saved[0])
    self.set_state(saved[0].read_bytes())
    self._restored = True

  def go_to(self, step: int) -> None:
    """Reads on to the batch of a step, unless a checkpoint's position was restored.

    PAX begins the data anew, and tells nobody, where a checkpoint has parameters but no position.

    Args:
      step: Batches that were trained on before.
    """
    if step and not self._restored:
      logging.warning('No position in the data was saved: reading %d batches again.', step)
      for _ in range(step):
        self.get_next()


def train_input(
  task: str,
  *,
  lengths: Mapping[str, int],
  converter: pax_fiddle.Config,
  batch_size: int,
  seed: int,
  name: str,
) -> pax_fiddle.Config[GlobalStreamInput]:
  """Endless rows of a task's train split, epoch after epoch, in an order given by the seed.

  The rows of a step's batch, over all hosts, do not depend on the number of hosts.

  Its state can be saved and restored by PAX's input checkpoints (`enable_input_checkpointing`): the
  next batch is then the one that would have come.

  Args:
    task: seqio's name of the task.
    lengths: Of each of the task's features.
    converter: Of the task's features to a batch, a seqio feature converter.
    batch_size: B, rows per host.
    seed: Of the order of files and rows.
    name: Of the input, in PAX's logs.
  """
  return _input(
    GlobalStreamInput,
    task,
    lengths,
    converter,
    split_name='train',
    batch_size=batch_size,
    name=name,
    is_training=True,
    input_random_seed=seed,
    # Symbolic checkpoints, PAX's default, do not know rebatch, and with what could replace it a run
    # of 8 s was not done after ten minutes. An explicit one holds the shuffle's rows (40 MB).
    enable_symbolic_checkpointing=False,
  )


def eval_input(
  task: str,
  *,
  split: str,
  lengths: Mapping[str, int],
  converter: pax_fiddle.Config,
  batch_size: int,
  name: str,
) -> Input:
  """The whole of a split, once at each evaluation, in order.

  The rows that fill the last batch have weight 0.

  Args:
    task: seqio's name of the task.
    split: Of the task.
    lengths: Of each of the task's features.
    converter: Of the task's features to a batch, a seqio feature converter.
    batch_size: B, rows per host.
    name: Of the input, in PAX's logs.
  """
  return _input(
    seqio_input.SeqIOInput,
    task,
    lengths,
    converter,
    split_name=split,
    batch_size=batch_size,
    name=name,
    is_training=False,
    reset_for_eval=True,
    eval_loop_num_batches=None,
    annotate_padding_fields=True,
  )


def _input(
  cls: type[seqio_input.SeqIOInput],
  task: str,
  lengths: Mapping[str, int],
  converter: pax_fiddle.Config,
  **fields,
) -> Input:
  return pax_fiddle.Config(
    cls,
    mixture_name=task,
    task_feature_lengths=dict(lengths),
    feature_converter=converter,
    # All for exact resumption: a cache is no part of an iterator's saved state, and neither is the
    # order of files in the epochs to come, so it stays that of the first (rows are shuffled anew).
    read_config=pax_fiddle.Config(
      tfds.ReadConfig, try_autocache=False, shuffle_reshuffle_each_iteration=False
    ),
    try_in_mem_cache=False,
    **fields,
  )
