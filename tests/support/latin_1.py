"""A TFRecord file whose first text is not UTF-8."""

import pathlib

import tensorflow as tf


def put(path: pathlib.Path, feature: str) -> None:
  """Replaces a text of a file's first record by one in Latin-1. It is wrong from byte 3 on."""
  first, *rest = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
  example = tf.train.Example.FromString(first)
  example.features.feature[feature].bytes_list.value[0] = 'café au lait'.encode('latin-1')
  with tf.io.TFRecordWriter(str(path)) as writer:
    for record in (example.SerializeToString(), *rest):
      writer.write(record)
