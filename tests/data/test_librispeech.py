"""The inputs of speech: what is in a batch, what is left out, and where a stream goes on."""

import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from laser_pax.data import librispeech
from laser_pax.data.datasets import LIBRISPEECH
from laser_pax.errors import UserError
from tests.support import latin_1, small_speech


@pytest.fixture(scope='module')
def rows():
  data_dir, vocab = small_speech.prepared()
  return {'folder': f'{data_dir}/{LIBRISPEECH.folder}', 'vocab': vocab, 'samples': 120_000}


def train(rows, *, host=0, hosts=1, batch=4, **fields):
  splits = ('train_clean100', 'dev_clean')
  config = librispeech.train_input(
    name='train',
    splits=splits,
    batch_size=batch // hosts,
    input_random_seed=7,
    num_infeed_hosts=hosts,
    infeed_host_index=host,
    **({'labels': 128} | rows | fields),
  )
  return config.Instantiate()


def texts(batch, speech):
  return speech.ids_to_strings(batch.labels, [len(row) for row in batch.labels])


def all_texts():
  both = [*small_speech.utterances('train-clean-100').values()]
  return both + [*small_speech.utterances('dev-clean').values()]


def test_a_batch_has_the_samples_and_the_labels(rows):
  speech = train(rows)
  batch = speech.get_next()
  specs = librispeech.batch_specs(4, 120_000, 128)
  assert {k: (v.shape, v.dtype) for k, v in specs.items()} == {
    k: (v.shape, jnp.dtype(v.dtype)) for k, v in batch.items()
  }
  by_text = {text: samples for samples, text in all_texts()}
  for row, text in enumerate(texts(batch, speech)):
    samples = by_text[text]
    assert batch.num_samples[row] == len(samples)
    np.testing.assert_array_equal(batch.speech[row, : len(samples)], samples)
    assert not batch.speech[row, len(samples) :].any()
    count = int((batch.label_paddings[row] == 0).sum())
    assert batch.labels[row, count - 1] == 1 and (batch.labels[row, : count - 1] > 2).all()
    assert not batch.labels[row, count:].any()


def test_each_epoch_has_all_utterances_once_in_another_order(rows):
  speech = train(rows, batch=2)
  epochs = [[t for _ in range(5) for t in texts(speech.get_next(), speech)] for _ in range(2)]
  expected = sorted(text for _, text in all_texts())
  assert sorted(epochs[0]) == sorted(epochs[1]) == expected
  assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
  ('fields', 'kept'),
  [
    ({'samples': 50_000}, lambda samples, text: len(samples) <= 50_000),
    ({'labels': 40}, lambda samples, text: len(text) <= 40),
  ],
)
def test_what_is_too_long_is_left_out(rows, fields, kept):
  expected = sorted(text for samples, text in all_texts() if kept(samples, text))
  assert 0 < len(expected) < 10
  speech = train(rows, batch=len(expected), **fields)
  for _ in range(2):
    assert sorted(texts(speech.get_next(), speech)) == expected


@pytest.mark.parametrize('steps', [1, 4])
def test_a_restored_stream_goes_on_with_the_next_batch(rows, steps, tmp_path):
  """Also where utterances are left out, and an epoch ends inside of a batch."""
  fields = {'samples': 60_000, 'batch': 4}
  whole, stopped, resumed = (train(rows, **fields) for _ in range(3))
  batches = [whole.get_next() for _ in range(steps + 2)]
  for _ in range(steps):
    stopped.get_next()
  stopped.save(tmp_path / 'process_0')
  resumed.restore(tmp_path / 'process_0')
  for expected in batches[steps:]:
    batch = resumed.get_next()
    assert batch.keys() == expected.keys()
    for name in batch:
      np.testing.assert_array_equal(batch[name], expected[name])


def test_a_step_has_the_same_rows_on_any_number_of_hosts(rows):
  fields = {'samples': 60_000, 'batch': 4}
  alone = train(rows, **fields)
  hosts = [train(rows, host=i, hosts=2, **fields) for i in range(2)]
  for _ in range(4):
    expected, shares = alone.get_next(), [host.get_next() for host in hosts]
    for name in expected:
      joined = np.concatenate([share[name] for share in shares])
      np.testing.assert_array_equal(joined, expected[name])
    states = {host.get_state() for host in (*hosts, alone)}
    assert len(states) == 1


@pytest.mark.parametrize('hosts', [1, 2])
def test_an_evaluation_reads_all_once_and_fills_the_last_batch(rows, hosts):
  weights, seen = 0, []
  for host in range(hosts):
    speech = librispeech.eval_input(
      name='validation',
      splits=('dev_clean', 'train_clean100'),
      batch_size=4,
      labels=128,
      num_infeed_hosts=hosts,
      infeed_host_index=host,
      **(rows | {'samples': 60_000}),
    ).Instantiate()
    batches = []
    with pytest.raises(StopIteration):
      while True:
        batches.append(speech.get_next())
    assert len(batches) == {1: 3, 2: 2}[hosts]
    for batch in batches:
      weights += batch.weight.sum()
      own = texts(batch, speech)
      seen += [text for text, weight in zip(own, batch.weight, strict=True) if weight]
  expected = sorted(text for samples, text in all_texts() if len(samples) <= 60_000)
  assert sorted(seen) == expected and weights == len(expected)


def test_an_eos_has_no_text_and_ends_nothing(rows):
  speech = train(rows)
  labels = speech.get_next().labels[:1]
  count = int((labels > 1).sum())
  (text,) = speech.ids_to_strings(labels[:, :count], [count])
  with_eos = np.insert(labels[:, :count], 3, 1, axis=1)
  assert speech.ids_to_strings(with_eos, [count + 1]) == [text]


def test_splits_that_are_not_there_are_told(rows):
  assert librispeech.has_splits(rows['folder'], ('train_clean100', 'dev_clean'))
  assert not librispeech.has_splits(rows['folder'], ('test_clean',))


def test_a_text_that_is_not_utf8_is_named(rows, tmp_path):
  folder = shutil.copytree(rows['folder'], tmp_path / 'speech')
  (path,) = pathlib.Path(folder).glob('*train_clean100*')
  latin_1.put(path, 'text')
  speech = train(rows | {'folder': str(folder)})
  with pytest.raises(UserError, match=f'{path}: its record 1 has a text that is not UTF-8'):
    for _ in range(9):
      speech.get_next()
