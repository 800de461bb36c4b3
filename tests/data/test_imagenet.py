"""Batches of images: crops, mixup, order, resumption, hosts, and rows that only fill."""

import shutil

import jax
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from laser_pax.data import imagenet, images, streams
from laser_pax.data.datasets import IMAGENET, IMAGENET_V2
from laser_pax.errors import UserError
from tests.support import small_images

SIZE = 16
FIELDS = {'size': SIZE, 'num_classes': 3}
AUGMENTED = {'mixup_alpha': 0.2, 'augment_ops': 2, 'augment_magnitude': 10}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """30 training images (after their copies are left out), and 3 to evaluate on."""
  return str(small_images.prepare(tmp_path_factory.mktemp('images'), 11))


def train(data_dir, batch_size=8, hosts=1, host=0, seed=5, **fields):
  fields = FIELDS | AUGMENTED | fields
  config = imagenet.train_input(
    dataset=IMAGENET, data_dir=data_dir, batch_size=batch_size, seed=seed, **fields
  )
  config.num_infeed_hosts, config.infeed_host_index = hosts, host
  return config.Instantiate()


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, dict(a), dict(b))


def test_batches_are_as_specified(data_dir):
  batch = train(data_dir).get_next()
  specs = imagenet.batch_specs(8, SIZE, 3)
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
    k: (v.shape, v.dtype) for k, v in specs.items()
  }
  np.testing.assert_allclose(batch.label_probs.sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize('read', [1, 5, 11])
def test_a_saved_position_gives_the_next_batch_to_the_bit(data_dir, tmp_path, read):
  """30 rows an epoch and 8 a batch: the position is inside of an epoch, and past its end."""
  whole = train(data_dir)
  for _ in range(read):
    whole.get_next_padded()
  whole.peek_padded()  # PAX looks at a batch that it has not trained on.
  whole.save(tmp_path / 'process_0_of_1')
  resumed = train(data_dir)
  resumed.restore(tmp_path / 'process_0_of_1')
  again = train(data_dir)
  again.go_to(read)  # Without a saved position.
  for _ in range(3):
    batch = whole.get_next_padded()
    assert_equal(batch, resumed.get_next_padded())
    assert_equal(batch, again.get_next_padded())


@pytest.mark.parametrize(('hosts', 'batch_size'), [(2, 4), (4, 2)])
def test_a_batch_has_the_same_rows_on_any_number_of_hosts(data_dir, hosts, batch_size):
  one = train(data_dir)
  parts = [train(data_dir, batch_size, hosts, host) for host in range(hosts)]
  for _ in range(5):
    shares = [part.get_next() for part in parts]
    assert_equal(one.get_next(), {k: np.concatenate([s[k] for s in shares]) for k in shares[0]})


def test_each_epoch_has_every_image_once_in_another_order(data_dir):
  records = streams.find_records(f'{data_dir}/{IMAGENET.folder}', ['train'])
  assert records.count == 30
  rows = list(streams.shuffled(records, 0, 8, 0).take(90).as_numpy_iterator())
  epochs = [rows[i : i + 30] for i in (0, 30, 60)]
  assert all(set(epoch) == set(epochs[0]) and len(set(epoch)) == 30 for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2]
  assert list(streams.shuffled(records, 0, 8, 47).take(43).as_numpy_iterator()) == rows[47:]
  assert list(streams.shuffled(records, 1, 8, 0).take(30).as_numpy_iterator()) != epochs[0]


def test_mixup_is_one_weight_a_batch_with_the_row_before(data_dir):
  """AlgoPerf's formula, in NumPy, on the batch that is not mixed."""
  plain, mixed = train(data_dir, mixup_alpha=0.0), train(data_dir)
  weights = []
  for _ in range(4):
    own, batch = plain.get_next(), mixed.get_next()
    weight = batch.label_probs[np.arange(8), own.label_probs.argmax(1)]
    other = np.roll(own.label_probs, 1, 0)
    differs = own.label_probs.argmax(1) != other.argmax(1)
    assert differs.any()
    w = weight[differs][0]
    np.testing.assert_allclose(
      batch.image, w * own.image + (1 - w) * np.roll(own.image, 1, 0), atol=1e-5
    )
    np.testing.assert_allclose(batch.label_probs, w * own.label_probs + (1 - w) * other, atol=1e-6)
    weights.append(w)
  assert len(set(weights)) == 4


def test_mixups_weight_is_beta_distributed():
  draw = tf.function(
    lambda: tf.map_fn(
      lambda i: images.mixup_weight(tf.stack([i, 3]), 0.2),
      tf.range(4000, dtype=tf.int64),
      fn_output_signature=tf.float32,
    )
  )
  weights = draw().numpy()
  assert np.isfinite(weights).all() and weights.min() >= 0 and weights.max() <= 1
  assert weights.mean() == pytest.approx(0.5, abs=0.03)
  assert weights.var() == pytest.approx(0.2**2 / (0.4**2 * 1.4), abs=0.01)


def picture_of_places(height, width):
  """Red grows with the row, green with the column."""
  y, x = np.mgrid[:height, :width]
  return np.stack([4 * y, 4 * x, np.full_like(x, 100)], -1).astype(np.uint8)


def test_evaluation_takes_the_central_square_of_seven_eighths():
  """32 rows and 48 columns: the square has 28 rows and columns, from row 2 and column 10."""
  image = images.centre(small_images.jpeg(picture_of_places(32, 48)), 28).numpy()
  expected = picture_of_places(32, 48)[2:30, 10:38]
  assert np.abs(image - expected)[1:-1, 1:-1].max() < 6
  normalised = images.normalised(tf.constant([[[255.0, 255 * 0.456, 0.0]]])).numpy()
  expected = [(1 - 0.485) / 0.229, 0, -0.406 / 0.225]
  np.testing.assert_allclose(normalised[0, 0], expected, atol=1e-5)


def test_a_training_crop_is_a_part_of_the_image():
  """Its corners tell which part: area in [0.08, 1], width over height in [3/4, 4/3]."""
  data, areas = small_images.jpeg(picture_of_places(60, 60)), []
  crop = tf.function(lambda seed: images.random_crop(data, seed, 30))
  for i in range(60):
    image = crop(tf.constant([i, 7], tf.int64)).numpy()
    height = (image[-1, :, 0].mean() - image[0, :, 0].mean()) / 4 * 30 / 29
    width = (image[:, -1, 1].mean() - image[:, 0, 1].mean()) / 4 * 30 / 29
    areas.append(height * width / 3600)
    assert 0.65 < width / height < 1.55
  assert 0.06 < min(areas) < 0.2 and 0.7 < max(areas) < 1.1
  assert len({round(a, 3) for a in areas}) > 50


def test_half_of_the_images_are_flipped():
  data = small_images.jpeg(picture_of_places(60, 60))
  augment = tf.function(lambda seed: images.augmented(data, seed, 16, 0, 10))
  signs = []
  for i in range(100):
    image = augment(tf.constant([i, 0], tf.int64)).numpy()
    signs.append(image[:, -1, 1].mean() > image[:, 0, 1].mean())
  assert 30 < sum(signs) < 70


@pytest.mark.parametrize(('hosts', 'batch_size'), [(1, 2), (2, 4)])
def test_evaluation_reads_each_image_once_and_fillers_weigh_nothing(data_dir, hosts, batch_size):
  configs = [
    imagenet.eval_input(
      dataset=IMAGENET,
      data_dir=data_dir,
      split='validation',
      batch_size=batch_size,
      name='validation',
      **FIELDS,
    ).set(num_infeed_hosts=hosts, infeed_host_index=host)
    for host in range(hosts)
  ]
  for _ in range(2):  # Each evaluation begins anew.
    rows = []
    for config in configs:
      stream, count = config.Instantiate(), 0
      with pytest.raises(StopIteration):
        while True:
          batch = stream.get_next()
          assert batch.weight.shape == (batch_size,)
          rows += [
            (p, i)
            for w, p, i in zip(*(batch[k] for k in ('weight', 'label_probs', 'image')), strict=True)
            if w
          ]
          count += 1
      assert count == (2 if hosts == 1 else 1)
    assert len(rows) == 3
    assert sorted(int(p.argmax()) for p, _ in rows) == [0, 1, 2]
    stream.reset()
    assert stream.get_next().weight.shape == (batch_size,)


def test_train_eval_is_the_first_images_without_augmentation(data_dir):
  config = imagenet.eval_input(
    dataset=IMAGENET, data_dir=data_dir, split='train', batch_size=8, name='x', limit=5, **FIELDS
  )
  batch = config.Instantiate().get_next()
  assert batch.weight.tolist() == [1] * 5 + [0] * 3
  record = next(
    iter(tfds.load(IMAGENET.tfds_name, data_dir=data_dir, split='train', shuffle_files=False))
  )
  assert batch.label_probs[0].argmax() == record['label'].numpy()


def test_tfds_reads_what_prepare_wrote(data_dir):
  builder = tfds.builder_from_directory(f'{data_dir}/{IMAGENET.folder}')
  assert builder.info.features['label'].names == list(small_images.CLASSES)
  assert {n: s.num_examples for n, s in builder.info.splits.items()} == {
    'train': 30,
    'validation': 3,
  }
  for record in builder.as_dataset(split='validation'):
    assert record['image'].shape == (20, 24, 3)
    name = record['file_name'].numpy().decode()
    assert name.split('/')[0] == small_images.CLASSES[int(record['label'])]


def test_a_file_that_was_cut_is_told(data_dir, tmp_path):
  copy = shutil.copytree(data_dir, tmp_path / 'data')
  (file,) = (copy / IMAGENET.folder).glob('*-train.tfrecord*')
  file.write_bytes(file.read_bytes()[:-10])
  with pytest.raises(UserError, match='train.tfrecord.*: cut short'):
    imagenet.check_data(IMAGENET, str(copy), 3)


def test_a_class_may_have_a_name_of_two_words(data_dir, tmp_path):
  copy = shutil.copytree(data_dir, tmp_path / 'data')
  (copy / IMAGENET.folder / imagenet.LABELS_FILE).write_text('hot dog\ncat\nold dog\n')
  imagenet.check_data(IMAGENET, str(copy), 3)


def test_wrong_classes_and_missing_data_are_told(data_dir, tmp_path):
  imagenet.check_data(IMAGENET, data_dir, 3)
  with pytest.raises(UserError, match='3 classes, but the model has NUM_CLASSES = 1000'):
    imagenet.check_data(IMAGENET, data_dir, 1000)
  with pytest.raises(UserError, match='prepare imagenet SOURCE'):
    imagenet.find_data_dir(IMAGENET, str(tmp_path))
  assert not imagenet.is_prepared(IMAGENET_V2, data_dir)
  assert imagenet.commonest_share(IMAGENET, data_dir, 'validation') == pytest.approx(1 / 3)
