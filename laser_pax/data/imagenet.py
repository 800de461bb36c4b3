"""Images with their classes: TFDS's records of ImageNet, as batches to train and to evaluate on.

A batch has B rows per host, in these fields:

| field | dtype, shape | |
|---|---|---|
| image | float32 [B, S, S, 3] | red, green, blue, minus ImageNet's mean, over its deviation |
| label_probs | float32 [B, C] | 1 for the class; in training the two mixed classes have shares |
| weight | float32 [B] | 0 for a row that only fills the last batch; not in training |

In training an image is cropped and flipped at random, gets RandAugment, and is mixed with its
neighbour in the batch. All of this, and the order, depends on a seed and on the number of the row
alone: so the position in the stream is that number. Source: AlgoPerf's ImageNet workload.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from etils import epath
from praxis import pax_fiddle, py_utils

from laser_pax.data import images, inputs, sources, streams
from laser_pax.data.datasets import DatasetSpec
from laser_pax.errors import UserError

# The next record is drawn from a buffer of this many batches.
SHUFFLED_BATCHES = 16

_RECORD = {
  'image': tf.io.FixedLenFeature([], tf.string),
  'label': tf.io.FixedLenFeature([], tf.int64),
}
# The name of the file of a data set's classes, one a line.
LABELS_FILE = 'label.labels.txt'


def batch_specs(batch_size: int, size: int, num_classes: int) -> py_utils.NestedMap:
  """Returns the shapes and dtypes of a training batch, without opening the data.

  Args:
    batch_size: B, the rows.
    size: S, height and width of an image.
    num_classes: C.
  """
  return py_utils.NestedMap(
    image=jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.float32),
    label_probs=jax.ShapeDtypeStruct((batch_size, num_classes), jnp.float32),
  )


def random_batch(
  rng: np.random.Generator, batch_size: int, size: int, num_classes: int
) -> py_utils.NestedMap:
  """Returns a training batch of noise, each image of one class: to time steps without data.

  Args:
    rng: The source of images and classes.
    batch_size: B, the rows.
    size: S, height and width of an image.
    num_classes: C.
  """
  classes = rng.integers(0, num_classes, batch_size)
  return py_utils.NestedMap(
    image=rng.standard_normal((batch_size, size, size, 3), np.float32),
    label_probs=(classes[:, None] == np.arange(num_classes)).astype(np.float32),
  )


def train_input(
  *,
  dataset: DatasetSpec,
  data_dir: str,
  batch_size: int,
  size: int,
  num_classes: int,
  seed: int,
  mixup_alpha: float,
  augment_ops: int,
  augment_magnitude: float,
) -> pax_fiddle.Config[ImageTrainInput]:
  """Returns the endless input of the train split, epoch after epoch.

  The rows of a step's batch, over all hosts, do not depend on the number of hosts.

  Args:
    dataset: The data set.
    data_dir: Folder that contains the data set's folder.
    batch_size: B, the rows per host.
    size: S, height and width of an image.
    num_classes: C.
    seed: Seed of order, augmentation and mixup.
    mixup_alpha: Parameter of mixup's Beta distribution; 0 for no mixup.
    augment_ops: Operations of RandAugment on each image.
    augment_magnitude: Their strength.
  """
  return pax_fiddle.Config(
    ImageTrainInput,
    name='train',
    folder=f'{data_dir}/{dataset.folder}',
    splits=('train',),
    batch_size=batch_size,
    size=size,
    num_classes=num_classes,
    is_training=True,
    input_random_seed=seed,
    mixup_alpha=mixup_alpha,
    augment_ops=augment_ops,
    augment_magnitude=augment_magnitude,
  )


def eval_input(
  *,
  dataset: DatasetSpec,
  data_dir: str,
  split: str,
  batch_size: int,
  size: int,
  num_classes: int,
  name: str,
  limit: int | None = None,
) -> pax_fiddle.Config[ImageEvalInput]:
  """Returns the input of a split, read once and in order at each evaluation.

  Args:
    dataset: The data set.
    data_dir: Folder that contains the data set's folder.
    split: Split of the data set.
    batch_size: B, the rows per host.
    size: S, height and width of an image.
    num_classes: C.
    name: Name of the input in PAX's logs.
    limit: Most images to read, the first ones; None for all.
  """
  return pax_fiddle.Config(
    ImageEvalInput,
    name=name,
    folder=f'{data_dir}/{dataset.folder}',
    splits=(split,),
    batch_size=batch_size,
    size=size,
    num_classes=num_classes,
    limit=limit,
    reset_for_eval=True,
    eval_loop_num_batches=None,
  )


class _ImageInput(streams.RecordInput):
  """What both inputs share.

  Attributes:
    size: S, height and width of an image.
    num_classes: C.
  """

  size: int = 0
  num_classes: int = 0

  def _one_hot(self, label: tf.Tensor) -> tf.Tensor:
    return tf.one_hot(label, self.num_classes)


class ImageTrainInput(inputs.OnePosition, _ImageInput):
  """One endless stream of augmented images for all hosts; each decodes its share of every batch.

  Attributes:
    mixup_alpha: Parameter of mixup's Beta distribution; 0 for no mixup.
    augment_ops: Operations of RandAugment on each image.
    augment_magnitude: Their strength.
  """

  mixup_alpha: float = 0.0
  augment_ops: int = 0
  augment_magnitude: float = 10.0
  _rows: int = dataclasses.field(init=False, repr=False, default=0)

  def get_next(self) -> py_utils.NestedMap:
    """Returns this host's rows of the next global batch."""
    batch = super().get_next()
    self._rows += self._share().whole
    return batch

  def skip_to(self, step: int) -> None:
    """Moves to the batch of a step, whose rows are known without reading the others."""
    self._rows, self._iterator = step * self._share().whole, None

  def _get_state_internal(self) -> bytes:
    return json.dumps({'rows': self._rows}).encode()

  def _set_state_internal(self, state: bytes) -> None:
    self._rows, self._iterator = json.loads(state)['rows'], None

  def _dataset(self) -> tf.data.Dataset:
    share, start = self._share(), self._rows
    # Mixup's partner of a row is the row before it; that of the first row is the last one.
    partner = (share.first - 1) % share.whole
    is_whole = share.hosts == 1

    def is_own(row: tf.Tensor, record: tf.Tensor) -> tf.Tensor:
      return share.owns(row - start) | ((row - start) % share.whole == partner)

    buffer = SHUFFLED_BATCHES * share.whole
    rows = streams.shuffled(self._records(), self.input_random_seed, buffer, start)
    rows = tf.data.Dataset.zip(tf.data.Dataset.counter(tf.cast(start, tf.int64)), rows)
    if not is_whole:
      rows = rows.filter(is_own)
    rows = rows.map(self._row, num_parallel_calls=tf.data.AUTOTUNE)
    batches = rows.batch(self.batch_size + (not is_whole), drop_remainder=True)
    return batches.map(self._mix, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)

  def _row(self, row: tf.Tensor, record: tf.Tensor) -> dict[str, tf.Tensor]:
    fields = tf.io.parse_single_example(record, _RECORD)
    image = images.augmented(
      fields['image'],
      tf.stack([tf.constant(self.input_random_seed, tf.int64), row]),
      self.size,
      self.augment_ops,
      self.augment_magnitude,
    )
    return {'image': image, 'label_probs': self._one_hot(fields['label']), 'row': row}

  def _mix(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Mixes each row with the one before it, and drops the row that was only a partner."""
    first = self._share().first
    start = batch['row'][0] - (first - 1 if first else 0)
    seed = tf.stack([start, tf.constant(self.input_random_seed, tf.int64)])
    weight = images.mixup_weight(seed, self.mixup_alpha) if self.mixup_alpha else None

    def mixed(x: tf.Tensor) -> tf.Tensor:
      if first:
        own, partner = x[1:], x[:-1]
      else:
        own, partner = x[: self.batch_size], tf.roll(x, 1, axis=0)[: self.batch_size]
      mix = own if weight is None else weight * own + (1 - weight) * partner
      return tf.ensure_shape(mix, [self.batch_size, *x.shape[1:]])

    return {name: mixed(batch[name]) for name in ('image', 'label_probs')}


class ImageEvalInput(_ImageInput):
  """A split, once and in order. The rows that fill the last batch have weight 0.

  Attributes:
    limit: Most images to read, the first ones; None for all.
  """

  limit: int | None = None

  def _dataset(self) -> tf.data.Dataset:
    own = streams.in_order(self._records(), self._share(), self.limit)
    own = own.map(self._row, num_parallel_calls=tf.data.AUTOTUNE)
    return own.batch(self.batch_size, drop_remainder=True).prefetch(2)

  def _row(self, record: tf.Tensor) -> dict[str, tf.Tensor]:
    shape = [self.size, self.size, 3]

    def real() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
      fields = tf.io.parse_single_example(record, _RECORD)
      image = images.normalised(images.centre(fields['image'], self.size))
      return image, self._one_hot(fields['label']), tf.ones([])

    def filler() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
      return tf.zeros(shape), tf.zeros([self.num_classes]), tf.zeros([])

    image, label_probs, weight = tf.cond(record == streams.FILLER, filler, real)
    return {'image': tf.ensure_shape(image, shape), 'label_probs': label_probs, 'weight': weight}


def find_data_dir(dataset: DatasetSpec, attribute: str | None) -> str:
  """Returns the folder that contains a data set's folder.

  Args:
    dataset: The data set.
    attribute: The experiment's own data folder, or None.

  Raises:
    UserError: The data set is not there; the message has the command that makes it.
  """
  data = sources.find_data_dir(attribute)
  sources.check_prepared(dataset, data)
  return data.path


def is_prepared(dataset: DatasetSpec, data_dir: str) -> bool:
  """Returns whether a data set is in a folder of prepared data."""
  return (epath.Path(data_dir) / dataset.folder / 'dataset_info.json').exists()


def check_data(dataset: DatasetSpec, data_dir: str, num_classes: int) -> None:
  """Checks that records are whole, and have as many classes as the model.

  Raises:
    UserError: They have not, their classes are not known, or a file is cut short.
  """
  file = epath.Path(data_dir) / dataset.folder / LABELS_FILE
  try:
    classes = len(file.read_text().splitlines())
  except OSError as e:
    raise UserError(f'{file}: cannot be read; prepare the data again') from e
  if classes != num_classes:
    raise UserError(
      f'{file.parent} has images of {classes} classes, but the model has NUM_CLASSES = '
      f'{num_classes}: set NUM_CLASSES = {classes}, or name other data'
    )
  remedy = f'copy it again, or make it with: {dataset.prepare_command(data_dir)}'
  streams.check_files(str(file.parent), dataset.splits, _RECORD, remedy)


def commonest_share(dataset: DatasetSpec, data_dir: str, split: str) -> float:
  """Returns the share of a split's images that are of its commonest class."""
  records = streams.find_records(f'{data_dir}/{dataset.folder}', [split])
  label = {'label': _RECORD['label']}
  rows = tf.data.TFRecordDataset(records.files).map(
    lambda record: tf.io.parse_single_example(record, label)['label']
  )
  counts = collections.Counter(int(x) for x in rows.as_numpy_iterator())
  return max(counts.values()) / records.count
