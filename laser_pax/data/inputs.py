"""PAX inputs over seqio tasks: a training stream that resumes where it stopped, and evaluations.

The content of a batch is defined in a family's own file, such as text_lm.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from paxml import seqio_input
from praxis import pax_fiddle, py_utils

from laser_pax.data import damage
from laser_pax.errors import UserError


class SeqIOInput(seqio_input.SeqIOInput):
  """PAX's input. If a file of the data is missing or damaged, the error names it."""

  def get_next(self) -> py_utils.NestedMap:
    """Returns the next batch.

    Raises:
      UserError: A file is missing or damaged.
    """
    with damage.told(self.files):
      return super().get_next()

  def _get_dataset(self) -> tf.data.Dataset:
    with damage.told(self.files):  # An evaluation counts its rows here.
      return super()._get_dataset()

  def files(self) -> list[str]:
    """Returns the files that it reads."""
    tasks = getattr(self.mixture_or_task_inst, 'tasks', [self.mixture_or_task_inst])
    return [path for task in tasks for path in task.source.list_shards(self.split_name)]


Input = pax_fiddle.Config[SeqIOInput]


class OnePosition:
  """A base before a PAX input: all hosts are at one position, and the first host saves it for all.

  An input may know a faster `skip_to`.
  """

  _restored = False

  def save(self, checkpoint_path: epath.PathLike) -> None:
    """Writes the position. The first host writes it for all hosts.

    Args:
      checkpoint_path: File to write.
    """
    if jax.process_index() == 0:
      epath.Path(checkpoint_path).write_bytes(self.get_state())

  def restore(self, checkpoint_path: epath.PathLike) -> None:
    """Continues after the batches that had been read when the checkpoint was saved.

    Args:
      checkpoint_path: File of the position. PAX names it by this host and the number of hosts. If
        it does not exist, the first host's file in the same folder is read.

    Raises:
      UserError: The folder holds no position.
    """
    path = epath.Path(checkpoint_path)
    saved = [path] if path.exists() else sorted(path.parent.glob('process_*'))
    if not saved:
      raise UserError(
        f'the position in the training data should be in {path.parent}, and is not: copy the '
        f'whole of that checkpoint, or remove the checkpoint to resume from the previous one'
      )
    logging.info('The training data continue from %s.', saved[0])
    self.set_state(saved[0].read_bytes())
    self._restored = True

  def go_to(self, step: int) -> None:
    """Goes forward to the batch of a step, unless a checkpoint's position was restored.

    PAX silently starts the data from the beginning if a checkpoint has parameters but no position.

    Args:
      step: Number of batches that were trained on before.
    """
    if step and not self._restored:
      self.skip_to(step)

  def skip_to(self, step: int) -> None:
    """Goes from the first batch to the batch of a step."""
    logging.warning('No position in the data was saved: reading %d batches again.', step)
    for _ in range(step):
      self.get_next()


class GlobalStreamInput(OnePosition, SeqIOInput):
  """One stream of rows for all hosts. Each host takes its share of every batch.

  PAX divides the files among the hosts, so the batches depend on the number of hosts. Here every
  host runs the whole pipeline, and a step's batch has the same rows on any number of hosts.
  All hosts have the same position in the stream.
  """

  _taken = 0

  def _get_dataset(self) -> tf.data.Dataset:
    """Returns the global batches: [hosts x B, T]."""
    whole = seqio.ShardInfo(index=0, num_shards=1)
    rows = self._get_backing_ds(shuffle=self.should_shuffle, num_epochs=-1, shard_info=whole)
    # Rows are not divided among hosts here: `get_next` does that. The saved position includes the
    # shuffle buffer, and all hosts restore the first host's, so all buffers must be equal.
    rows = self._pad_to_batch_size(rows)
    return rows.batch(self.batch_size * self.num_infeed_hosts, drop_remainder=True)

  def get_next(self) -> py_utils.NestedMap:
    """Returns this host's rows of the next global batch: [B, T].

    Raises:
      UserError: A file is missing or damaged.
    """
    try:
      batch = super().get_next()
    except damage.NoDamageError:
      if not self._restored:
        raise
      batch = self._read_again()
    self._taken += 1
    first = self.infeed_host_index * self.batch_size
    return batch.Transform(lambda x: x[first : first + self.batch_size])

  def go_to(self, step: int) -> None:
    """As the base's."""
    super().go_to(step)
    self._taken = step

  def _read_again(self) -> py_utils.NestedMap:
    """Returns the next batch of a new stream, where the restored one only repeats an error.

    tf.data reads ahead, and saves an error among the rows that it has read. So a position that was
    saved while a file was missing keeps that error after the file is back.
    """
    logging.warning(
      'The saved position repeats an error of files that are whole now: reading %d batches again.',
      self._taken,
    )
    self._restored = False
    self.dataset = self._get_dataset()
    self.reset()
    for _ in range(self._taken):
      super().get_next()
    return super().get_next()


def row_specs(
  batch_size: int, seq_len: int, *, integers: Sequence[str], reals: Sequence[str]
) -> py_utils.NestedMap:
  """Returns the shapes and dtypes of fields [B, T]: int32 and float32.

  Args:
    batch_size: B, the rows.
    seq_len: T, the tokens per row.
    integers: Names of the int32 fields.
    reals: Names of the float32 fields.
  """
  dtypes = dict.fromkeys(integers, jnp.int32) | dict.fromkeys(reals, jnp.float32)
  shape = (batch_size, seq_len)
  return py_utils.NestedMap({k: jax.ShapeDtypeStruct(shape, v) for k, v in dtypes.items()})


def train_input(
  task: str,
  *,
  lengths: Mapping[str, int],
  converter: pax_fiddle.Config,
  batch_size: int,
  seed: int,
  name: str,
  cls: type[GlobalStreamInput] = GlobalStreamInput,
) -> pax_fiddle.Config[GlobalStreamInput]:
  """Returns the endless input of a task's train split, epoch after epoch.

  The rows of a step's batch, over all hosts, do not depend on the number of hosts.

  PAX's input checkpoints (`enable_input_checkpointing`) save and restore the position. The next
  batch after a restart is the one that an uninterrupted run would have read.

  Args:
    task: Name of the task in seqio.
    lengths: Length of each of the task's features.
    converter: Feature converter of seqio, from the task's features to a batch.
    batch_size: B, the rows per host.
    seed: Seed of the order of files and rows.
    name: Name of the input in PAX's logs.
    cls: Class of the input.
  """
  return _input(
    cls,
    task,
    lengths,
    converter,
    split_name='train',
    batch_size=batch_size,
    name=name,
    is_training=True,
    input_random_seed=seed,
    # PAX's default, symbolic checkpoints, cannot save rebatch. With a replacement for rebatch, a
    # run of 8 s did not end in ten minutes. An explicit checkpoint saves the shuffled rows (40 MB).
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
  cls: type[SeqIOInput] = SeqIOInput,
) -> Input:
  """Returns the input of a whole split, read once and in order at each evaluation.

  The rows that fill the last batch have weight 0.

  Args:
    task: Name of the task in seqio.
    split: Split of the task.
    lengths: Length of each of the task's features.
    converter: Feature converter of seqio, from the task's features to a batch.
    batch_size: B, the rows per host.
    name: Name of the input in PAX's logs.
    cls: Class of the input.
  """
  return _input(
    cls,
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
  cls: type[SeqIOInput],
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
    # Exact resumption needs these settings. An iterator's saved state has no cache in it, so both
    # caches are off. It has no order of files for later epochs either, so the order is fixed. Rows
    # are still shuffled anew.
    read_config=pax_fiddle.Config(
      tfds.ReadConfig, try_autocache=False, shuffle_reshuffle_each_iteration=False
    ),
    try_in_mem_cache=False,
    **fields,
  )
