"""RandAugment: each operation on pictures with known answers, and against PIL."""

import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from laser_pax.data import rand_augment
from tests.support import small_images

SEEDS = [tf.constant([0, i], tf.int64) for i in range(6)]
PICTURE = small_images.noise(3, 32, 32)


def apply(name, image, seed=SEEDS[0], magnitude=10.0):
  return rand_augment.OPERATIONS[name](tf.constant(image, tf.uint8), magnitude, seed).numpy()


def both_signs(name, image):
  """Returns the two results of an operation that goes either way."""
  results = {apply(name, image, seed).tobytes() for seed in SEEDS}
  assert len(results) == 2
  return [np.frombuffer(r, np.uint8).reshape(image.shape) for r in results]


def test_there_are_algoperfs_sixteen():
  assert len(rand_augment.OPERATIONS) == 16


def test_each_operation_works_at_the_greatest_magnitude():
  for name in rand_augment.OPERATIONS:
    result = apply(name, PICTURE, magnitude=rand_augment.GREATEST_MAGNITUDE)
    assert result.shape == PICTURE.shape
    if name == 'Posterize':
      np.testing.assert_array_equal(result, PICTURE)


def pil(image):
  return Image.fromarray(image)


def contrast(image):
  """AlgoPerf's: away from the grey 196."""
  return np.clip(196 + 1.9 * (image.astype(np.float32) - 196), 0, 255).astype(np.uint8)


def sharpness(image):
  smooth = np.asarray(pil(image).filter(ImageFilter.SMOOTH)).astype(np.float32)
  return np.clip(smooth + 1.9 * (image - smooth), 0, 255)


ORACLES = {
  'AutoContrast': (lambda x: ImageOps.autocontrast(pil(x)), 1),
  'Equalize': (lambda x: ImageOps.equalize(pil(x)), 0),
  'Invert': (lambda x: ImageOps.invert(pil(x)), 0),
  'Posterize': (lambda x: ImageOps.posterize(pil(x), 4), 0),
  'Solarize': (lambda x: ImageOps.solarize(pil(x), 0), 0),
  'Color': (lambda x: ImageEnhance.Color(pil(x)).enhance(1.9), 2),
  'Contrast': (contrast, 0),
  'Brightness': (lambda x: ImageEnhance.Brightness(pil(x)).enhance(1.9), 1),
  'Sharpness': (sharpness, 2),
  'SolarizeAdd': (lambda x: np.where(x < 128, np.minimum(x.astype(int) + 110, 255), x), 0),
}


@pytest.mark.parametrize('name', ORACLES)
@pytest.mark.parametrize('image', [PICTURE, PICTURE // 3 + 40], ids=['wide', 'narrow'])
def test_colours_are_those_of_pil(name, image):
  oracle, tolerance = ORACLES[name]
  expected = np.asarray(oracle(image)).astype(int)
  assert np.abs(apply(name, image).astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize('name', ['AutoContrast', 'Equalize'])
def test_a_plain_picture_stays_as_it_is(name):
  plain = np.full((8, 8, 3), 77, np.uint8)
  np.testing.assert_array_equal(apply(name, plain), plain)


def test_solarize_below_magnitude_10_keeps_what_is_dark():
  image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
  x = image.astype(int)
  np.testing.assert_array_equal(
    apply('Solarize', image, magnitude=5.0), np.where(x < 128, x, 255 - x)
  )


@pytest.mark.parametrize(('name', 'axis'), [('TranslateX', 1), ('TranslateY', 0)])
def test_translation_is_by_100_of_224_pixels_filled_with_grey(name, axis):
  image = small_images.noise(1, 224, 224)
  moved = np.full_like(image, 128)
  low, high = [slice(None)] * 2, [slice(None)] * 2
  low[axis], high[axis] = slice(None, -100), slice(100, None)
  there, back = moved.copy(), moved.copy()
  there[tuple(high)], back[tuple(low)] = image[tuple(low)], image[tuple(high)]
  expected = {there.tobytes(), back.tobytes()}
  assert {x.tobytes() for x in both_signs(name, image)} == expected


@pytest.mark.parametrize('name', ['ShearX', 'ShearY'])
def test_a_shear_takes_pixels_from_along_the_axis(name):
  image = PICTURE if name == 'ShearX' else PICTURE.swapaxes(0, 1)
  expected = set()
  for level in (0.3, -0.3):
    sheared = np.full_like(PICTURE, 128)
    for y in range(32):
      for x in range(32):
        place = x + np.float32(level) * y
        source = int(np.copysign(np.floor(abs(place) + 0.5), place))  # Halves go away from zero.
        if 0 <= source < 32 and place > -0.5:
          sheared[y, x] = PICTURE[y, source]
    expected.add((sheared if name == 'ShearX' else sheared.swapaxes(0, 1)).tobytes())
  assert {x.tobytes() for x in both_signs(name, image)} == expected


def test_rotation_is_by_30_degrees_about_the_centre():
  image = small_images.noise(2, 33, 33)
  for rotated in both_signs('Rotate', image):
    np.testing.assert_array_equal(rotated[16, 16], image[16, 16])
    assert (rotated[0, 0] == 128).all() or (rotated[0, -1] == 128).all()
  mark = np.zeros((33, 33, 3), np.uint8)
  mark[15:18, 27:30] = 255  # Twelve pixels to the right of the centre.
  places = [np.argwhere(r[..., 0] == 255).mean(0) - 16 for r in both_signs('Rotate', mark)]
  angles = sorted(math.degrees(math.atan2(y, x)) for y, x in places)
  assert angles == pytest.approx([-30, 30], abs=2)


def test_cutout_fills_a_square_of_80_of_224_pixels_cut_at_the_edges():
  image = np.zeros((224, 224, 3), np.uint8)
  centres = set()
  for seed in SEEDS:
    cut = apply('Cutout', image, seed)
    rows, columns = np.flatnonzero(cut.any((1, 2))), np.flatnonzero(cut.any((0, 2)))
    assert (cut[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 128).all()
    assert (cut == 128).sum() == 3 * len(rows) * len(columns)
    for places in (rows, columns):
      assert len(places) == 80 or places[0] == 0 or places[-1] == 223
      assert 40 <= len(places) <= 80
    centres.add((rows[0], columns[0]))
  assert len(centres) > 4


@pytest.mark.parametrize('name', rand_augment.OPERATIONS)
def test_an_operation_keeps_shape_and_depends_on_its_seed_alone(name):
  first, second = apply(name, PICTURE), apply(name, PICTURE)
  assert first.shape == PICTURE.shape and first.dtype == np.uint8
  np.testing.assert_array_equal(first, second)


def test_operations_are_drawn_uniformly():
  """Each is replaced by its number, written into the picture."""
  numbers = list(rand_augment.OPERATIONS)

  def number(i):
    return lambda image, magnitude, seed: tf.fill(tf.shape(image), tf.constant(i, tf.uint8))

  replaced = {name: number(i) for i, name in enumerate(numbers)}
  original = dict(rand_augment.OPERATIONS)
  rand_augment.OPERATIONS.update(replaced)
  try:
    drawn = tf.function(
      lambda seeds: tf.map_fn(
        lambda s: rand_augment.rand_augment(tf.zeros([1, 1, 3], tf.uint8), s, 2, 10)[0, 0, 0],
        seeds,
        fn_output_signature=tf.uint8,
      )
    )(tf.stack([tf.range(3200, dtype=tf.int64), tf.zeros(3200, tf.int64)], 1))
  finally:
    rand_augment.OPERATIONS.update(original)
  counts = np.bincount(drawn.numpy(), minlength=16)
  assert counts.min() > 140 and counts.max() < 260


def test_no_operations_change_nothing():
  image = tf.constant(PICTURE)
  same = rand_augment.rand_augment(image, SEEDS[0], 0, 10)
  np.testing.assert_array_equal(same, PICTURE)
