"""RandAugment with AlgoPerf's sixteen operations on images, in TensorFlow.

Each image gets some operations, drawn uniformly, one after another. At AlgoPerf's magnitude, 10:

| operation | |
|---|---|
| AutoContrast | stretches each channel to 0..255 |
| Equalize | makes each channel's histogram flat |
| Invert | 255 - x |
| Rotate | by 30 degrees, either way |
| Posterize | keeps the first 4 bits |
| Solarize | inverts what is not below a threshold: 256, which in 8 bits is 0, so all |
| Color, Contrast, Brightness, Sharpness | moves away from a plain image by the factor 1.9 |
| ShearX, ShearY | by 0.3, either way |
| TranslateX, TranslateY | by 100 of 224 pixels, either way |
| Cutout | a square of 80 of 224 pixels, cut at the edges |
| SolarizeAdd | adds 110 to what is below 128 |

Colours that come from outside of the image are 128. Distances in pixels are in proportion to the
image's size, so that a small image gets as much of each. All draws are stateless.

Images are uint8 [H, W, 3].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

GREY = 128
# At 22.5 Posterize would keep nine bits of eight.
GREATEST_MAGNITUDE = 22
# The size for which AlgoPerf gives distances in pixels.
_SIZE = 224

# An operation of an image, a magnitude and a seed.
Operation = Callable[[tf.Tensor, float, tf.Tensor], tf.Tensor]


def rand_augment(image: tf.Tensor, seed: tf.Tensor, ops: int, magnitude: float) -> tf.Tensor:
  """Applies operations to an image, each drawn uniformly from OPERATIONS.

  Args:
    image: uint8 [H, W, 3].
    seed: Stateless seed, int64 [2].
    ops: Number of operations.
    magnitude: Strength, 10 in AlgoPerf.
  """
  for step_seed in tf.unstack(tf.random.split(seed, ops)) if ops else ():
    choice_seed, own_seed = tf.unstack(tf.random.split(step_seed, 2))
    choice = tf.random.stateless_uniform([], choice_seed, 0, len(OPERATIONS), tf.int32)

    def branch(operation: Operation, image=image, seed=own_seed) -> Callable[[], tf.Tensor]:
      return lambda: operation(image, magnitude, seed)

    shape = image.shape
    image = tf.switch_case(choice, [branch(op) for op in OPERATIONS.values()])
    image.set_shape(shape)
  return image


def _auto_contrast(image: tf.Tensor, magnitude: float, seed: tf.Tensor) -> tf.Tensor:
  low, high = (
    tf.cast(reduce(image, axis=[0, 1]), tf.float32) for reduce in (tf.reduce_min, tf.reduce_max)
  )
  scale = tf.where(high > low, 255 / tf.maximum(high - low, 1), 1.0)
  low = tf.where(high > low, low, 0.0)
  return _to_uint8(tf.cast(image, tf.float32) * scale - low * scale)


def _equalize(image: tf.Tensor, magnitude: float, seed: tf.Tensor) -> tf.Tensor:
  channels = [_equalized(tf.cast(channel, tf.int32)) for channel in tf.unstack(image, axis=-1)]
  return tf.stack(channels, axis=-1)


def _equalized(channel: tf.Tensor) -> tf.Tensor:
  """Returns a channel with a flat histogram, as PIL computes it in whole numbers."""
  counts = tf.math.bincount(tf.reshape(channel, [-1]), minlength=256, maxlength=256)
  greatest = tf.reduce_max(channel)
  step = (tf.reduce_sum(counts) - counts[greatest]) // 255
  before = tf.math.cumsum(counts, exclusive=True)
  table = tf.minimum((before + step // 2) // tf.maximum(step, 1), 255)
  table = tf.where(tf.range(256) == 0, 0, table)
  return tf.cast(tf.where(step == 0, channel, tf.gather(table, channel)), tf.uint8)


def _invert(image: tf.Tensor, magnitude: float, seed: tf.Tensor) -> tf.Tensor:
  return 255 - image


def _posterize(image: tf.Tensor, magnitude: float, seed: tf.Tensor) -> tf.Tensor:
  dropped = tf.constant(8 - int(magnitude / 10 * 4), tf.uint8)
  return tf.bitwise.left_shift(tf.bitwise.right_shift(image, dropped), dropped)


def _solarize(image: tf.Tensor, magnitude: float, seed: tf.Tensor) -> tf.Tensor:
  threshold = int(magnitude / 10 * 256) % 256
  return tf.where(image < threshold, image, 255 - image)


def _solarize_add(image: tf.Tensor, magnitude: float, seed: tf.Tensor) -> tf.Tensor:
  added = tf.minimum(tf.cast(image, tf.int32) + int(magnitude / 10 * 110), 255)
  return tf.where(image < 128, tf.cast(added, tf.uint8), image)


def _color(image: tf.Tensor, magnitude: float, seed: tf.Tensor) -> tf.Tensor:
  return _away_from(_grey(image), image, magnitude)


def _contrast(image: tf.Tensor, magnitude: float, seed: tf.Tensor) -> tf.Tensor:
  """Moves away from one grey: AlgoPerf's is the number of pixels / 256, 196, not their mean."""
  return _away_from(tf.fill(tf.shape(image), tf.constant(196, tf.uint8)), image, magnitude)


def _brightness(image: tf.Tensor, magnitude: float, seed: tf.Tensor) -> tf.Tensor:
  return _away_from(tf.zeros_like(image), image, magnitude)


def _sharpness(image: tf.Tensor, magnitude: float, seed: tf.Tensor) -> tf.Tensor:
  """Moves away from a smoothed image, whose edge is the image's own."""
  weights = tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], tf.float32) / 13
  kernel = tf.tile(weights[:, :, None, None], [1, 1, 3, 1])
  pixels = tf.cast(image, tf.float32)[None]
  inner = _to_uint8(tf.nn.depthwise_conv2d(pixels, kernel, [1, 1, 1, 1], 'VALID')[0])
  edge = [[1, 1], [1, 1], [0, 0]]
  is_inner = tf.pad(tf.ones_like(inner, tf.bool), edge)
  smooth = tf.where(is_inner, tf.pad(inner, edge), image)
  return _away_from(smooth, image, magnitude)


def _rotate(image: tf.Tensor, magnitude: float, seed: tf.Tensor) -> tf.Tensor:
  angle = _either_sign(seed) * (magnitude / 10 * 30 * math.pi / 180)
  sine, cosine = tf.sin(angle), tf.cos(angle)
  height, width = (tf.cast(n - 1, tf.float32) / 2 for n in tf.unstack(tf.shape(image)[:2]))
  x = width - (cosine * width - sine * height)
  y = height - (sine * width + cosine * height)
  return _warp(image, [cosine, -sine, x, sine, cosine, y])


def _shear_x(image: tf.Tensor, magnitude: float, seed: tf.Tensor) -> tf.Tensor:
  return _warp(image, [1.0, _either_sign(seed) * (magnitude / 10 * 0.3), 0.0, 0.0, 1.0, 0.0])


def _shear_y(image: tf.Tensor, magnitude: float, seed: tf.Tensor) -> tf.Tensor:
  return _warp(image, [1.0, 0.0, 0.0, _either_sign(seed) * (magnitude / 10 * 0.3), 1.0, 0.0])


def _translate_x(image: tf.Tensor, magnitude: float, seed: tf.Tensor) -> tf.Tensor:
  pixels = _either_sign(seed) * _pixels(image, magnitude / 10 * 100)
  return _warp(image, [1.0, 0.0, pixels, 0.0, 1.0, 0.0])


def _translate_y(image: tf.Tensor, magnitude: float, seed: tf.Tensor) -> tf.Tensor:
  pixels = _either_sign(seed) * _pixels(image, magnitude / 10 * 100)
  return _warp(image, [1.0, 0.0, 0.0, 0.0, 1.0, pixels])


def _cutout(image: tf.Tensor, magnitude: float, seed: tf.Tensor) -> tf.Tensor:
  """Fills the square of rows and columns from c - h to c + h - 1 around a random centre c."""
  half = tf.cast(_pixels(image, magnitude / 10 * 40), tf.int32)
  size = tf.shape(image)[:2]
  centre = tf.cast(tf.random.stateless_uniform([2], seed) * tf.cast(size, tf.float32), tf.int32)
  rows, columns = (
    (tf.range(size[i]) >= centre[i] - half) & (tf.range(size[i]) < centre[i] + half)
    for i in range(2)
  )
  is_cut = rows[:, None, None] & columns[None, :, None]
  return tf.where(is_cut, tf.constant(GREY, tf.uint8), image)


# In AlgoPerf's order.
OPERATIONS: dict[str, Operation] = {
  'AutoContrast': _auto_contrast,
  'Equalize': _equalize,
  'Invert': _invert,
  'Rotate': _rotate,
  'Posterize': _posterize,
  'Solarize': _solarize,
  'Color': _color,
  'Contrast': _contrast,
  'Brightness': _brightness,
  'Sharpness': _sharpness,
  'ShearX': _shear_x,
  'ShearY': _shear_y,
  'TranslateX': _translate_x,
  'TranslateY': _translate_y,
  'Cutout': _cutout,
  'SolarizeAdd': _solarize_add,
}


def _away_from(plain: tf.Tensor, image: tf.Tensor, magnitude: float) -> tf.Tensor:
  """Returns plain + factor (image - plain), cut to 0..255; the factor is 1.9 at magnitude 10."""
  factor = magnitude / 10 * 1.8 + 0.1
  start = tf.cast(plain, tf.float32)
  return _to_uint8(start + factor * (tf.cast(image, tf.float32) - start))


def _grey(image: tf.Tensor) -> tf.Tensor:
  return tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(image))


def _to_uint8(pixels: tf.Tensor) -> tf.Tensor:
  return tf.cast(tf.clip_by_value(pixels, 0, 255), tf.uint8)


def _either_sign(seed: tf.Tensor) -> tf.Tensor:
  """Returns 1 or -1, each in half of the cases."""
  return tf.where(tf.random.stateless_uniform([], seed) < 0.5, 1.0, -1.0)


def _pixels(image: tf.Tensor, at_224: float) -> tf.Tensor:
  """Returns a distance, float32 and whole, in proportion to the image's width."""
  return tf.floor(at_224 * tf.cast(tf.shape(image)[1], tf.float32) / _SIZE)


def _warp(image: tf.Tensor, transform: list) -> tf.Tensor:
  """Takes each pixel (x, y) from (a x + b y + c, d x + e y + f), the nearest there.

  Args:
    image: uint8 [H, W, 3].
    transform: [a, b, c, d, e, f].
  """
  transform = [tf.convert_to_tensor(x, tf.float32) for x in (*transform, 0.0, 0.0)]
  return tf.raw_ops.ImageProjectiveTransformV3(
    images=image[None],
    transforms=tf.stack(transform)[None],
    output_shape=tf.shape(image)[:2],
    fill_value=float(GREY),
    interpolation='NEAREST',
    fill_mode='CONSTANT',
  )[0]
