"""Inputs of text: rows, epochs, exact resumption, and hosts that share one stream."""

import collections

import jax
import numpy as np
import pytest
import sentencepiece
import seqio
from praxis import py_utils

from laser_pax.data import sample, text_lm
from laser_pax.data.prepare import c4
from laser_pax.data.sources import Source
from laser_pax.errors import UserError

T, B = 16, 4


@pytest.fixture(scope='module', autouse=True)
def small_shuffle():
  """A buffer smaller than an epoch: tf.data needs ten seconds to save one of 10,000 rows."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(text_lm, 'SHUFFLE_ROWS', 200)
    yield


def make(input_fn, source, **fields):
  """Returns an input. `fields` are arguments of the function, or are set on its config."""
  names = ('seed', 'seq_len', 'batch_size', 'name')
  args = dict(data_dir=source.data_dir, vocab=source.vocab, batch_size=B, seq_len=T)
  args |= {k: v for k, v in fields.items() if k in names}
  config = input_fn(**args)
  for key, value in fields.items():
    if key not in names:
      setattr(config, key, value)
  return config.Instantiate()


def train(source, seed=1, **fields):
  return make(text_lm.train_input, source, seed=seed, **fields)


def labels(inp, batches):
  return np.concatenate([inp.get_next_padded().labels for _ in range(batches)])


def all_batches(inp):
  batches = []
  while True:
    try:
      batches.append(inp.get_next_padded())
    except StopIteration:
      return batches


def tokens(source, texts):
  """Returns the tokens that the packed rows must hold, computed without TensorFlow."""
  processor = sentencepiece.SentencePieceProcessor(model_file=source.vocab)
  return [i for text in texts for i in [*processor.encode(text), 1]]


def real(batches):
  return np.concatenate([b.labels[b.weights > 0] for b in batches])


def test_validation_is_the_concatenated_split_in_order(source, texts):
  batches = all_batches(make(text_lm.validation_input, source))
  np.testing.assert_array_equal(real(batches), tokens(source, texts['validation']))


@pytest.mark.parametrize(('seq_len', 'batch_size'), [(16, 4), (50, 7), (1024, 8), (2000, 3)])
def test_validation_weights_sum_to_the_tokens(source, texts, seq_len, batch_size):
  count = len(tokens(source, texts['validation']))
  inp = make(text_lm.validation_input, source, seq_len=seq_len, batch_size=batch_size)
  batches = all_batches(inp)
  assert sum(b.weights.sum() for b in batches) == count
  assert len(batches) == -(-count // (seq_len * batch_size))
  for b in batches:
    np.testing.assert_array_equal(b.paddings, 1 - b.weights)
    np.testing.assert_array_equal(b.weights.max(axis=1), b.eval_sample_weights)


def test_validation_starts_again_after_a_reset(source):
  inp = make(text_lm.validation_input, source)
  first = all_batches(inp)
  inp.reset()
  np.testing.assert_array_equal(real(first), real(all_batches(inp)))


def test_a_batch_has_the_fields_of_paxs_language_model(source):
  b = train(source).get_next_padded()
  for field in ('ids', 'labels', 'weights', 'paddings', 'segment_ids', 'segment_pos'):
    assert b[field].shape == (B, T)
  np.testing.assert_array_equal(b.ids[:, 1:], b.labels[:, :-1])
  np.testing.assert_array_equal(b.ids[:, 0], np.zeros(B))
  np.testing.assert_array_equal(b.segment_pos, np.tile(np.arange(T), (B, 1)))
  np.testing.assert_array_equal(b.segment_ids, np.ones((B, T)))


def sequences(rows):
  return [tuple(row) for row in rows.tolist()]


def test_an_epoch_is_every_row_once_and_the_next_one_has_another_order(source, texts):
  oracle = tokens(source, texts['train'])
  count = len(oracle) // T
  inp = train(source, batch_size=1)
  first, second = labels(inp, count), labels(inp, count)
  assert sorted(sequences(first)) == sorted(sequences(second))
  assert sequences(first) != sequences(second)
  # The rows hold all tokens of the split but the remainder, which is too short for a row.
  drawn = collections.Counter(first.reshape(-1).tolist())
  assert drawn <= collections.Counter(oracle)


def test_training_rows_are_full_and_hold_whole_documents_between_eos(source, texts):
  count = len(tokens(source, texts['train'])) // T
  rows = labels(train(source, batch_size=1, shuffle=False), count)
  assert (rows > 0).all()
  ends = np.flatnonzero(rows.reshape(-1) == 1)
  documents = [tuple(d[:-1]) for d in np.split(rows.reshape(-1), ends + 1)[:-1]]
  processor = sentencepiece.SentencePieceProcessor(model_file=source.vocab)
  known = {tuple(processor.encode(text)) for text in texts['train']}
  assert len(documents) == len(set(documents)) >= len(known) - T
  assert set(documents) <= known


def test_the_seed_determines_the_order(source):
  first = labels(train(source, seed=1), 40)
  np.testing.assert_array_equal(first, labels(train(source, seed=1), 40))
  assert not np.array_equal(first, labels(train(source, seed=2), 40))


@pytest.mark.parametrize('before', [0, 7, 150])
def test_a_restored_input_continues_with_the_next_batch(source, texts, tmp_path, before):
  per_epoch = len(tokens(source, texts['train'])) // T // B
  assert 7 < per_epoch < 150  # 7 batches end in the first epoch, and 150 in a later one.
  inp = train(source, input_checkpointing_enabled=True)
  if before:
    labels(inp, before)
  inp.save(tmp_path / 'state')
  expected = labels(inp, per_epoch + 5)
  restored = train(source, input_checkpointing_enabled=True)
  labels(restored, 3)
  restored.restore(tmp_path / 'state')
  np.testing.assert_array_equal(labels(restored, per_epoch + 5), expected)


@pytest.mark.parametrize('hosts', [2, 4, 6])
def test_hosts_share_the_validation_split(source, texts, hosts):
  batches = [
    all_batches(make(text_lm.validation_input, source, num_infeed_hosts=hosts, infeed_host_index=i))
    for i in range(hosts)
  ]
  documents = [str(real(b).tolist())[1:-4].split(', 1, ') for b in batches]
  processor = sentencepiece.SentencePieceProcessor(model_file=source.vocab)
  expected = sorted(str(processor.encode(text))[1:-1] for text in texts['validation'])
  assert sorted(d for host in documents for d in host) == expected


def host_inputs(source, hosts, global_batch=8):
  """Returns the training inputs of all hosts, one each."""
  fields = dict(num_infeed_hosts=hosts, batch_size=global_batch // hosts)
  fields['input_checkpointing_enabled'] = True
  return [train(source, infeed_host_index=i, **fields) for i in range(hosts)]


def global_batches(host_inputs, batches):
  """Returns the labels of all hosts together: [batches, global batch, T]."""
  return np.stack(
    [np.concatenate([i.get_next_padded().labels for i in host_inputs]) for _ in range(batches)]
  )


BEFORE, AFTER = 7, 60  # Batches before and after the position is saved. An epoch has 66.


@pytest.fixture(scope='module')
def streams(source, tmp_path_factory):
  """For 1, 2 and 4 hosts: the batches of all hosts, and the folder of the saved position."""
  streams = {}
  for hosts in (1, 2, 4):
    inputs, folder = host_inputs(source, hosts), tmp_path_factory.mktemp(f'hosts_{hosts}')
    first = global_batches(inputs, BEFORE)
    inputs[0].save(folder / f'process_0-of-{hosts}')
    streams[hosts] = np.concatenate([first, global_batches(inputs, AFTER)]), folder
  return streams


@pytest.mark.parametrize('hosts', [2, 4])
def test_any_number_of_hosts_trains_on_the_same_batches(streams, hosts):
  np.testing.assert_array_equal(streams[hosts][0], streams[1][0])


@pytest.mark.parametrize(('before', 'after'), [(1, 2), (2, 4), (4, 2), (4, 1)])
def test_another_number_of_hosts_continues_with_the_next_batch(source, streams, before, after):
  batches, folder = streams[before]
  restored = host_inputs(source, after)
  for i, inp in enumerate(restored):
    inp.restore(folder / f'process_{i}-of-{after}')
    inp.go_to(BEFORE)
  np.testing.assert_array_equal(global_batches(restored, AFTER), batches[BEFORE:])


def test_the_first_host_alone_saves_the_position(source, tmp_path, monkeypatch):
  inp = train(source, input_checkpointing_enabled=True)
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  inp.save(tmp_path / 'process_1-of-2')
  assert not list(tmp_path.iterdir())
  with pytest.raises(UserError, match=f'should be in {tmp_path}, and is not: copy the whole'):
    inp.restore(tmp_path / 'process_1-of-2')


def test_without_a_saved_position_the_data_are_read_again_up_to_the_step(source, streams):
  restarted = host_inputs(source, 2)
  for inp in restarted:
    inp.go_to(BEFORE)
  expected = streams[1][0][BEFORE : BEFORE + 5]
  np.testing.assert_array_equal(global_batches(restarted, 5), expected)


def test_two_data_folders_serve_one_process(source, texts, tmp_path):
  for name in ('a', 'b', 'validation'):
    (tmp_path / f'{name}.txt').write_text(f'A text of its own, {name}. ' * 30)
  c4.prepare([tmp_path], tmp_path / 'data')
  own = Source(str(tmp_path / 'data'), str(sample.VOCAB))
  first, second = (make(text_lm.validation_input, s) for s in (source, own))
  expected = (tmp_path / 'validation.txt').read_text()
  np.testing.assert_array_equal(real(all_batches(second)), tokens(own, [expected]))
  np.testing.assert_array_equal(real(all_batches(first)), tokens(source, texts['validation']))
  row = train(own, batch_size=1).get_next_padded().labels[0]
  assert set(row.tolist()) <= set(tokens(own, [(tmp_path / f'{n}.txt').read_text() for n in 'ab']))


def test_paxs_data_flag_is_obeyed(source, texts, monkeypatch):
  seqio.set_tfds_data_dir_override(source.data_dir)
  try:
    elsewhere = Source('/elsewhere', source.vocab)
    batches = all_batches(make(text_lm.validation_input, elsewhere))
  finally:
    seqio.set_tfds_data_dir_override(None)
  np.testing.assert_array_equal(real(batches), tokens(source, texts['validation']))


def test_no_bucket_is_read(source, monkeypatch):
  from tensorflow_datasets.core.utils import gcs_utils

  def fail(*args):
    raise AssertionError(f'looked for {args}')

  monkeypatch.setattr(gcs_utils, '_is_gcs_disabled', False)
  monkeypatch.setattr(gcs_utils, 'exists', fail)
  seqio.utils.LazyTfdsLoader._MEMOIZED_BUILDERS.clear()
  assert isinstance(train(source).get_next_padded(), py_utils.NestedMap)
