"""One image: its crop, flip and augmentation to train on, and its centre to evaluate on.

Source: AlgoPerf's ImageNet workload, by its description. All draws are stateless.
"""

from __future__ import annotations

import tensorflow as tf

from laser_pax.data.rand_augment import rand_augment

# ImageNet's mean and standard deviation of each colour, for values from 0 to 1.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Evaluation takes this share of the shorter side.
_CENTRE = 224 / 256


def augmented(jpeg: tf.Tensor, seed: tf.Tensor, size: int, ops: int, magnitude: float) -> tf.Tensor:
  """Returns an image to train on: cropped, flipped, after RandAugment, normalised.

  Args:
    jpeg: The bytes of a JPEG file.
    seed: Stateless seed, int64 [2].
    size: S.
    ops: Operations of RandAugment.
    magnitude: Their strength.
  """
  crop_seed, flip_seed, augment_seed = tf.unstack(tf.random.split(seed, 3))
  image = random_crop(jpeg, crop_seed, size)
  image = tf.image.stateless_random_flip_left_right(image, flip_seed)
  image = tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8)
  return normalised(rand_augment(image, augment_seed, ops, magnitude))


def random_crop(jpeg: tf.Tensor, seed: tf.Tensor, size: int) -> tf.Tensor:
  """Returns a random part of an image, float32 [S, S, 3], by cubic interpolation.

  The part has a share of the area in [0.08, 1], and width over height in [3/4, 4/3]. If ten tries
  give none but the whole image, it is the centre.

  Args:
    jpeg: The bytes of a JPEG file.
    seed: Stateless seed, int64 [2].
    size: S.
  """
  shape = tf.io.extract_jpeg_shape(jpeg)
  begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
    shape,
    bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
    seed=seed,
    min_object_covered=0.1,
    aspect_ratio_range=(3 / 4, 4 / 3),
    area_range=(0.08, 1.0),
    max_attempts=10,
    use_image_if_no_bounding_boxes=True,
  )
  window = tf.concat([begin[:2], extent[:2]], axis=0)
  is_whole = tf.reduce_all(extent[:2] == shape[:2]) & (shape[2] == 3)
  return tf.cond(is_whole, lambda: centre(jpeg, size), lambda: _cropped(jpeg, window, size))


def centre(jpeg: tf.Tensor, size: int) -> tf.Tensor:
  """Returns the central square of an image, float32 [S, S, 3], by cubic interpolation.

  Its side is 224/256 of the image's shorter side, rounded down.

  Args:
    jpeg: The bytes of a JPEG file.
    size: S.
  """
  extent = tf.io.extract_jpeg_shape(jpeg)[:2]
  side = tf.cast(_CENTRE * tf.cast(tf.reduce_min(extent), tf.float32), tf.int32)
  begin = (extent - side + 1) // 2
  return _cropped(jpeg, tf.concat([begin, [side, side]], axis=0), size)


def _cropped(jpeg: tf.Tensor, window: tf.Tensor, size: int) -> tf.Tensor:
  image = tf.io.decode_and_crop_jpeg(jpeg, window, channels=3)
  image = tf.image.resize(image, [size, size], method=tf.image.ResizeMethod.BICUBIC)
  return tf.ensure_shape(image, [size, size, 3])


def normalised(image: tf.Tensor) -> tf.Tensor:
  """Returns an image of 0..255 minus ImageNet's mean, over its deviation; float32."""
  mean, deviation = (tf.constant(x) * 255 for x in (MEAN, DEVIATION))
  return (tf.cast(image, tf.float32) - mean) / deviation


def mixup_weight(seed: tf.Tensor, alpha: float) -> tf.Tensor:
  """Returns one draw of Beta(alpha, alpha), as g1 / (g1 + g2) of two Gamma variables.

  Args:
    seed: Stateless seed, int64 [2].
    alpha: The parameter.
  """
  first, second = tf.unstack(tf.random.stateless_gamma([2], seed, alpha, dtype=tf.float64))
  return tf.cast(first / (first + second), tf.float32)
