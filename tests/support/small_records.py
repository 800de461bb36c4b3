"""A few records in MLPerf's layout, of random tokens."""

import random

import tensorflow as tf

from laser_pax.data import text_mlm
from laser_pax.data.prepare import wikipedia

VOCAB_SIZE = 300


def write(folder):
  """Writes train and evaluation records of random short documents. Returns the folder."""
  rng = random.Random(0)
  for name, count in (('part-00000-of-00002', 60), ('part-00001-of-00002', 60), ('eval_10k', 21)):
    with tf.io.TFRecordWriter(str(folder / name)) as writer:
      for _ in range(count):
        first, second = (
          [rng.randrange(104, VOCAB_SIZE) for _ in range(rng.randint(3, 12))] for _ in 'ab'
        )
        row = wikipedia.Row(first, second, False)
        record = wikipedia.make_record(row, VOCAB_SIZE, rng)
        writer.write(wikipedia._serialized(record))
  return folder


def read(folder, name):
  """Returns the parsed records of a file."""
  records = tf.data.TFRecordDataset(f'{folder}/{name}')
  return [tf.io.parse_single_example(record, text_mlm._RECORD) for record in records]
