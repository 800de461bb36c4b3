"""TFRecord files are whole or cut short, wherever the cut is; records have a layout or not."""

import pytest
import tensorflow as tf

from laser_pax.data import tfrecords
from laser_pax.errors import UserError


def write(path, lengths, modulus=251):
  with tf.io.TFRecordWriter(str(path)) as writer:
    for length in lengths:
      writer.write(bytes(i % modulus for i in range(length)))
  return path


@pytest.mark.parametrize('lengths', [[], [0], [1], [5, 0, 7], [40, 300], [2**16, 10], [10, 2**21]])
def test_a_whole_file_is_whole(tmp_path, lengths):
  path = write(tmp_path / 'x', lengths)
  assert tfrecords.is_whole(path)
  assert [len(record) for record in tfrecords.first_records(path, 9)] == lengths


@pytest.mark.parametrize('modulus', [251, 1])  # 1: all bytes are zero.
def test_a_file_that_is_cut_anywhere_is_not(tmp_path, modulus):
  path = write(tmp_path / 'x', [30, 20], modulus)
  data = path.read_bytes()
  for length in range(1, len(data)):
    path.write_bytes(data[:length])
    assert tfrecords.is_whole(path) == (length == 46)  # Between the records.


def test_the_broken_file_is_named(tmp_path):
  whole, broken = write(tmp_path / 'whole', [9]), tmp_path / 'broken'
  broken.write_bytes(whole.read_bytes()[:-1])
  with pytest.raises(UserError, match=f'{broken}: cut short.*; copy it'):
    tfrecords.check_whole([whole, broken], 'copy it')
  broken.unlink()
  with pytest.raises(UserError, match=f'{broken}: missing.*; copy it'):
    tfrecords.check_whole([whole, broken], 'copy it')


@pytest.mark.parametrize(
  ('features', 'message'),
  [
    ({'b': tf.io.FixedLenFeature([2], tf.int64)}, 'expected b, a int64_list of 2, got none'),
    ({'a': tf.io.FixedLenFeature([3], tf.int64)}, 'of 3, got a int64_list of 2'),
    ({'a': tf.io.FixedLenFeature([2], tf.float32)}, 'a float_list of 2, got a int64_list'),
  ],
)
def test_another_layout_is_told_by_its_key(features, message):
  example = tf.train.Example()
  example.features.feature['a'].int64_list.value.extend([1, 2])
  record = example.SerializeToString()
  expected = {'a': tf.io.FixedLenFeature([2], tf.int64)}
  assert tfrecords.check_layout('x', record, expected, '') == example
  with pytest.raises(UserError, match=message):
    tfrecords.check_layout('x', record, features, 'make it again')


def test_what_is_no_example_is_refused():
  with pytest.raises(UserError, match='x: its records are no tf.train.Example; make it'):
    tfrecords.check_layout('x', b'\xff' * 20, {}, 'make it again')
