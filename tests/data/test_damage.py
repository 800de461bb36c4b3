"""Prepared data that are missing or damaged are named, and no batch is lost once they are back."""

import shutil

import numpy as np
import pytest
import tensorflow as tf

from laser_pax import cli
from laser_pax.data import damage, records, streams, text_lm
from laser_pax.data.datasets import C4
from laser_pax.data.sources import Source
from laser_pax.errors import UserError
from tests.support import latin_1

SHARD = 'c4-train.tfrecord-00002-of-00004'
SEQ_LEN = 24  # No other file's: a task of seqio keeps the size of the buffer that it began with.


@pytest.fixture(scope='module', autouse=True)
def small_shuffle():
  """tf.data needs ten seconds to save a buffer of 10,000 rows."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(text_lm, 'SHUFFLE_ROWS', 200)
    yield


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def put_first(record):
  def put(path):
    rest = path.read_bytes()
    with tf.io.TFRecordWriter(str(path)) as writer:
      writer.write(record)
    path.write_bytes(path.read_bytes() + rest)

  return put


def example(**features):
  kinds = {
    k: tf.train.Feature(int64_list=tf.train.Int64List(value=[v])) for k, v in features.items()
  }
  return tf.train.Example(features=tf.train.Features(feature=kinds)).SerializeToString()


def cut_between_records(path):
  size = sum(16 + len(r) for r in list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())[:-1])
  path.write_bytes(path.read_bytes()[:size])


DAMAGES = {
  'missing': (lambda path: path.unlink(), 'missing, though the data set lists it'),
  'flipped': (flip, r'damaged, corrupted record at \d+'),
  'cut': (
    lambda path: path.write_bytes(path.read_bytes()[:-9]),
    r'damaged, truncated record at \d+',
  ),
  'no record': (put_first(b'abc'), 'its record 1 is none of this data set'),
  'another record': (put_first(example(label=1)), 'its record 1 is none of this data set'),
  'not UTF-8': (
    lambda path: latin_1.put(path, 'text'),
    r'its record 1 has a text that is not UTF-8 \(invalid continuation byte at byte 3\)',
  ),
}


@pytest.fixture
def copy(source, tmp_path):
  """A copy of the data set, and the file that is to be damaged."""
  shutil.copytree(source.data_dir, tmp_path / 'data')
  return Source(str(tmp_path / 'data'), source.vocab), tmp_path / 'data' / C4.folder / SHARD


def stream(source, **fields):
  config = text_lm.train_input(
    data_dir=source.data_dir, vocab=source.vocab, batch_size=32, seq_len=SEQ_LEN, seed=1
  )
  return config.set(input_checkpointing_enabled=True, **fields).Instantiate()


def labels(inp, batches):
  return np.stack([inp.get_next().labels for _ in range(batches)])


@pytest.fixture(scope='module')
def whole(source, tmp_path_factory):
  """The rows of some four epochs, and the position after two batches."""
  inp, state = stream(source), tmp_path_factory.mktemp('position') / 'state'
  first = labels(inp, 2)
  inp.save(state)
  return np.concatenate([first, labels(inp, 46)]), state


@pytest.mark.parametrize('name', DAMAGES)
def test_a_file_damaged_in_a_run_is_named_and_the_run_goes_on_when_it_is_back(whole, copy, name):
  (rows, state), (own, path) = whole, copy
  spoil, words = DAMAGES[name]
  inp, good = stream(own), path.read_bytes()
  np.testing.assert_array_equal(labels(inp, 2), rows[:2])
  spoil(path)
  with pytest.raises(UserError, match=f'{path}: {words}; bring the whole file back') as error:
    labels(inp, 48)
  assert '\n' not in str(error.value)
  path.write_bytes(good)
  restored = stream(own)
  restored.restore(state)
  np.testing.assert_array_equal(labels(restored, 46), rows[2:])


def test_a_position_that_was_saved_while_a_file_was_missing_is_good_when_it_is_back(
  whole, copy, tmp_path
):
  """tf.data saves the error, with the rows that it has read ahead."""
  (rows, _), (own, path) = whole, copy
  inp, good = stream(own), path.read_bytes()
  labels(inp, 2)
  path.unlink()
  taken = 2
  with pytest.raises(UserError, match='missing'):
    while True:
      inp.get_next()
      taken += 1
  inp.save(tmp_path / 'state')
  path.write_bytes(good)
  restored = stream(own)
  restored.restore(tmp_path / 'state')
  restored.go_to(taken)
  np.testing.assert_array_equal(labels(restored, 48 - taken), rows[taken:])
  assert not restored._restored, 'the position was good: this test shows nothing'


def test_an_evaluation_names_the_file_too(copy):
  own, path = copy
  path = path.with_name('c4-validation.tfrecord-00000-of-00001')
  config = text_lm.validation_input(
    data_dir=own.data_dir, vocab=own.vocab, batch_size=4, seq_len=SEQ_LEN
  )
  flip(path)
  with pytest.raises(UserError, match=f'{path}: damaged') as error:  # The rows are counted here.
    config.Instantiate()
  line, code = cli._explain(error.value)
  assert (line.endswith('give the same command again'), code) == (True, 2)


class Plain(streams.RecordInput):
  """The records themselves."""

  def _dataset(self):
    return streams.in_order(self._records(), self._share()).map(lambda x: {'x': x}).batch(4)


@pytest.mark.parametrize('name', ['missing', 'flipped', 'cut'])
def test_inputs_of_records_name_the_file_too(copy, name):
  own, path = copy
  spoil, words = DAMAGES[name]
  spoil(path)
  inp = Plain(folder=f'{own.data_dir}/{C4.folder}', splits=['train'], batch_size=4)
  with pytest.raises(UserError, match=f'{path}: {words}'):
    for _ in range(75):
      inp.get_next()


@pytest.mark.parametrize(
  ('spoil', 'words'),
  [
    (DAMAGES['missing'][0], 'missing, though'),
    (DAMAGES['cut'][0], 'cut short'),
    (lambda path: path.write_bytes(b''), r'has 0 bytes, and [\d,]+ were written'),
    (cut_between_records, r'has [\d,]+ bytes, and [\d,]+ were written'),
    (lambda path: path.write_bytes(2 * path.read_bytes()), r'has [\d,]+ bytes, and [\d,]+ were'),
  ],
)
def test_before_a_training_each_file_is_looked_at(copy, spoil, words):
  own, path = copy
  text_lm.check_files(own.data_dir, C4)
  spoil(path)
  with pytest.raises(UserError, match=f'{path}: {words}.*; copy it again, or make it with: python'):
    text_lm.check_files(own.data_dir, C4)


def test_data_without_a_report_must_have_room_for_their_records(copy):
  own, path = copy
  path.with_name('report.json').unlink()
  text_lm.check_files(own.data_dir, C4)
  path.write_bytes(b'')
  with pytest.raises(UserError, match=f'{path}: has 0 bytes, and 1,[0-9]+ or more were written'):
    text_lm.check_files(own.data_dir, C4)


@pytest.mark.parametrize('name', ['features.json', 'dataset_info.json', 'report.json'])
@pytest.mark.parametrize('data', [b'', b'{"spl', b'\xff', b'[3]', b'{"splits": {"train": [{}]}}'])
def test_a_damaged_description_is_named(copy, name, data):
  own, path = copy
  path.with_name(name).write_bytes(data)
  with pytest.raises(UserError, match=f'{path.parent}.*copy') as error:
    text_lm.check_files(own.data_dir, C4)
  assert name in str(error.value)


def test_texts_are_read_whole_or_refused(copy):
  own, path = copy
  whole = path.read_bytes()
  path.write_bytes(b'')
  with pytest.raises(UserError, match=f'{path}: empty'):
    list(records.read_texts(own.data_dir, C4, 'train'))
  path.write_bytes(whole)
  cut_between_records(path)
  with pytest.raises(UserError, match=f'{path.parent}: expected to contain 300 elements but'):
    list(records.read_texts(own.data_dir, C4, 'train'))


def test_other_failures_stay_as_they_are(tmp_path):
  with pytest.raises(tf.errors.InvalidArgumentError, match='no jpeg'), damage.told(lambda: []):
    raise tf.errors.InvalidArgumentError(None, None, 'no jpeg')


def test_what_python_reads_as_utf8_is_text_and_nothing_else():
  """Surrogates, overlong forms and numbers above U+10FFFF are none."""
  rng = np.random.default_rng(0)
  leads = list(b'\xc0\xc1\xc3\xe0\xe2\xed\xef\xf0\xf4\xf5\x80\x8f\x90\x9f\xa0\xbfa')
  texts = [bytes(rng.choice(leads, size).tolist()) for size in rng.integers(0, 5, 3_000)]
  texts += [''.join(chr(c) for c in [*range(0xD800), *range(0xE000, 0x110000)]).encode()]
  expected = []
  for text in texts:
    try:
      expected.append(bool(text.decode() or True))
    except UnicodeDecodeError:
      expected.append(False)
  assert 300 < sum(expected) < 2_700
  assert damage.is_text(tf.constant(texts)).numpy().tolist() == expected
