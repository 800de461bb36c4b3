"""Batches for masked language models: packed rows, new masks each time, exact resumption."""

import shutil

import numpy as np
import pytest
import tensorflow as tf

from laser_pax.data import text_mlm, wordpiece
from laser_pax.data.datasets import WIKIPEDIA
from laser_pax.errors import UserError
from tests.support import small_records

SEQ_LEN = 64


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return str(small_records.write(tmp_path_factory.mktemp('records')))


def train(folder, batch_size=4, seed=0, **fields):
  config = text_mlm.train_input(
    folder, batch_size=batch_size, seq_len=SEQ_LEN, vocab_size=small_records.VOCAB_SIZE, seed=seed
  )
  return config.set(**fields).Instantiate()


def evaluation(folder, seq_len):
  size = small_records.VOCAB_SIZE
  return text_mlm.eval_input(folder, batch_size=8, seq_len=seq_len, vocab_size=size)


def test_documents_share_rows_and_stay_apart(folder):
  stream = train(folder)
  shared = 0
  for _ in range(5):
    batch = stream.get_next()
    assert set(batch.FlattenItems()[i][0] for i in range(len(batch.FlattenItems()))) >= set(
      text_mlm.batch_specs(1, 1)
    )
    for row in range(4):
      labels, segments = batch.labels[row], batch.segment_ids[row]
      shared += segments.max() > 1
      np.testing.assert_array_equal(batch.paddings[row] == 1, segments == 0)
      for segment in range(1, segments.max() + 1):
        own = labels[segments == segment]
        assert own[0] == wordpiece.CLS
        positions = batch.segment_pos[row][segments == segment]
        np.testing.assert_array_equal(positions, np.arange(len(own)))
  assert shared


def test_new_masks_each_time(folder):
  stream = train(folder, batch_size=32)
  counts = np.zeros(4)
  for _ in range(20):
    batch = stream.get_next()
    real, chosen = batch.paddings == 0, batch.masked_pos == 1
    assert not (chosen & ~real).any()
    masked = batch.masked_ids == wordpiece.MASK
    same = batch.masked_ids == batch.labels
    assert same[real & ~chosen].all()
    counts += [real.sum(), (chosen & masked).sum(), (chosen & same).sum(), chosen.sum()]
  shares = counts / counts[0]
  np.testing.assert_allclose(shares, [1, 0.12, 0.015, 0.15], atol=0.004)


def test_evaluation_has_each_document_once_with_the_stored_masks(folder):
  batches = evaluation(folder, seq_len=512).Instantiate()
  rows, weights = [], 0.0
  while True:
    try:
      batch = batches.get_next_padded()
    except (StopIteration, tf.errors.OutOfRangeError):
      break
    real = batch.eval_sample_weights == 1
    rows += [tuple(row[row != 0]) for row in batch.labels[real]]
    weights += batch.masked_pos.sum()
    assert (batch.segment_ids.max(1) <= 1).all()
    assert not batch.masked_pos[~real].any()
  expected = [text_mlm.restore_tokens(record) for record in small_records.read(folder, 'eval_10k')]
  assert sorted(rows) == sorted(tuple(x['labels'].numpy()) for x in expected)
  assert weights == sum(x['masked_pos'].numpy().sum() for x in expected)


def test_rows_shorter_than_documents_hold_all_of_them(folder):
  batches = evaluation(folder, seq_len=8).Instantiate()
  rows = []
  for batch in iter(batches.get_next_padded, None):
    for i in np.flatnonzero(batch.eval_sample_weights):
      real = batch.paddings[i] == 0
      rows.append([batch[x][i][real] for x in ('labels', 'masked_ids', 'masked_pos')])
    if not batch.eval_sample_weights[-1]:
      break
  documents = [text_mlm.restore_tokens(record) for record in small_records.read(folder, 'eval_10k')]
  for place, name in enumerate(('labels', 'masked_ids', 'masked_pos')):
    whole = np.concatenate([document[name] for document in documents])
    np.testing.assert_array_equal(np.concatenate([row[place] for row in rows]), whole)
  assert max(len(row[0]) for row in rows) == 8
  stream = text_mlm.train_input(folder, batch_size=4, seq_len=8, vocab_size=300, seed=0)
  batch = stream.Instantiate().get_next()
  assert batch.labels.shape == (4, 8) and (batch.paddings.sum(1) == 0).any()


def test_a_restored_stream_goes_on_with_the_next_batch(folder, tmp_path):
  stream = train(folder, input_checkpointing_enabled=True)
  for _ in range(3):
    stream.get_next_padded()
  state = stream.get_state()
  after = [stream.get_next_padded() for _ in range(30)]  # More than an epoch.
  again = train(folder, input_checkpointing_enabled=True)
  again.get_next_padded()
  again.set_state(state)
  for expected in after:
    found = again.get_next_padded()
    for name in text_mlm.batch_specs(1, 1):
      np.testing.assert_array_equal(found[name], expected[name])


def test_the_seed_decides(folder):
  first, same, other = (train(folder, seed=s).get_next() for s in (1, 1, 2))
  np.testing.assert_array_equal(first.masked_ids, same.masked_ids)
  assert (first.masked_ids != other.masked_ids).any()


def test_the_shapes_are_known_beforehand(folder):
  batch = train(folder).get_next()
  for name, spec in text_mlm.batch_specs(4, SEQ_LEN).items():
    assert (batch[name].shape, batch[name].dtype) == (spec.shape, spec.dtype)


def test_records_are_found_below_a_folder_or_in_it(folder, tmp_path):
  assert WIKIPEDIA.find(folder) == folder
  assert WIKIPEDIA.find(str(tmp_path)) is None


@pytest.mark.parametrize(('name', 'token'), [('part-00001-of-00002', 300), ('eval_10k', -1)])
def test_a_token_that_the_model_lacks_is_refused_with_its_record(folder, tmp_path, name, token):
  shutil.copytree(folder, tmp_path / 'x')
  records = [*tf.data.TFRecordDataset(f'{folder}/{name}').as_numpy_iterator()]
  with tf.io.TFRecordWriter(str(tmp_path / 'x' / name)) as writer:
    for number, record in enumerate(records, 1):
      example = tf.train.Example.FromString(record)
      if number == 17:
        example.features.feature['input_ids'].int64_list.value[1] = token
      writer.write(example.SerializeToString())
  own = str(tmp_path / 'x')
  stream = train(own) if 'part' in name else evaluation(own, SEQ_LEN).Instantiate()
  with pytest.raises(UserError, match=f'{name}, record 17: the token {token}, but the model has'):
    for _ in range(60):
      stream.get_next()
