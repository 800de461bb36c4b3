"""C4 from source files: splits, resumed runs, refused sources, and the sample that ships."""

import gzip
import threading

import pytest
import tensorflow_datasets as tfds

from laser_pax.data import sample
from laser_pax.data.prepare import c4, documents, parts
from laser_pax.errors import UserError
from tests.support.small_texts import text, write_gz


def read(data_dir, split):
  builder = tfds.builder('c4/en:3.0.1', data_dir=data_dir)
  config = tfds.ReadConfig(interleave_cycle_length=1)
  return [d['text'].decode() for d in tfds.as_numpy(builder.as_dataset(split, read_config=config))]


def contents(folder):
  """Returns the data set's files."""
  return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def files(tmp_path, monkeypatch):
  """Five source files. Each becomes one part."""
  monkeypatch.setattr(parts, 'PART_BYTES', 1)
  for i in range(5):
    write_gz(tmp_path / f'c4-train.{i}.json.gz', [text(10 * i + j) for j in range(10)])
  return sorted(tmp_path.glob('*.gz'))


def test_tfds_reads_the_data_set_by_name(source, texts):
  for split, expected in texts.items():
    assert read(source.data_dir, split) == expected


def test_the_fields_of_allenai_are_kept(source):
  builder = tfds.builder('c4/en:3.0.1', data_dir=source.data_dir)
  record = next(iter(tfds.as_numpy(builder.as_dataset('validation'))))
  assert {k: v.decode() for k, v in record.items()} == {
    'text': text(300),
    'timestamp': '2019',
    'url': 'u',
  }


def test_without_validation_files_a_fraction_of_the_documents_is_taken(files, tmp_path):
  c4.prepare(files, tmp_path / 'out', validation_fraction=0.1)
  assert read(tmp_path / 'out', 'validation') == [text(i) for i in range(1, 50, 10)]
  assert read(tmp_path / 'out', 'train') == [text(i) for i in range(50) if i % 10 != 1]


def test_a_folder_of_two_texts_gives_both_splits(tmp_path):
  for name in ('a', 'b'):
    (tmp_path / f'{name}.txt').write_text(f'text {name}\n')
  c4.prepare([tmp_path], tmp_path / 'out')
  assert read(tmp_path / 'out', 'train') == ['text a']
  assert read(tmp_path / 'out', 'validation') == ['text b']


class Killed(BaseException):
  """Stands for a signal that ends the run."""


@pytest.mark.parametrize('documents_before', [0, 17, 30, 49])
def test_a_killed_run_is_resumed_without_redoing_finished_files(
  files, tmp_path, monkeypatch, documents_before
):
  c4.prepare(files, tmp_path / 'whole')
  read_documents = documents.read_documents
  opened = []

  def spy(path, *args):
    opened.append(path)
    yield from read_documents(path, *args)

  def killing(path, *args):
    for document in spy(path, *args):
      if document.text == text(documents_before):
        raise Killed
      yield document

  monkeypatch.setattr(documents, 'read_documents', killing)
  with pytest.raises(Killed):
    c4.prepare(files, tmp_path / 'killed')
  assert not (tmp_path / 'killed/c4/en/3.0.1').exists()
  monkeypatch.setattr(documents, 'read_documents', spy)
  opened.clear()
  final = c4.prepare(files, tmp_path / 'killed')
  assert opened == files[documents_before // 10 :]
  assert contents(final) == contents(tmp_path / 'whole/c4/en/3.0.1')


@pytest.mark.parametrize('renamed', [0, 3, 6])
def test_a_run_killed_at_the_very_end_reads_no_source_again(files, tmp_path, monkeypatch, renamed):
  whole = c4.prepare(files, tmp_path / 'whole', validation_fraction=0.1)
  replace, calls = parts.Path.replace, []

  def killing(path, target):
    if path.suffix == '.tfrecord':
      calls.append(path)
      if len(calls) > renamed:
        raise Killed
    return replace(path, target)

  with monkeypatch.context() as patch:
    patch.setattr(parts.Path, 'replace', killing)
    with pytest.raises(Killed):
      c4.prepare(files, tmp_path / 'killed', validation_fraction=0.1)
  monkeypatch.setattr(documents, 'read_documents', None)
  final = c4.prepare(files, tmp_path / 'killed', validation_fraction=0.1)
  assert contents(final) == contents(whole)


def test_unfinished_work_of_other_sources_is_kept(files, tmp_path):
  files[-1].write_bytes(files[-1].read_bytes()[:-9])
  with pytest.raises(UserError, match='truncated'):
    c4.prepare(files, tmp_path / 'out')
  c4.prepare(files[:2], tmp_path / 'out')
  assert len(list((tmp_path / 'out/c4/en').glob('3.0.1.incomplete-*/part-*.json'))) == 4


def test_a_truncated_file_is_named_and_mended_by_fetching_it_again(files, tmp_path):
  whole = c4.prepare(files, tmp_path / 'whole')
  good = files[3].read_bytes()
  files[3].write_bytes(good[:-9])
  with pytest.raises(UserError, match='truncated') as error:
    c4.prepare(files, tmp_path / 'out')
  assert str(files[3]) in str(error.value)
  files[3].write_bytes(good)
  assert contents(c4.prepare(files, tmp_path / 'out')) == contents(whole)


def test_a_finished_data_set_is_never_overwritten(files, tmp_path):
  final = c4.prepare(files, tmp_path / 'out')
  before = contents(final)
  with pytest.raises(UserError, match='never overwritten'):
    c4.prepare(files[:2], tmp_path / 'out')
  assert contents(final) == before


def test_an_unwritable_folder_is_refused_before_any_source_is_read(files, tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('not a folder')
  monkeypatch.setattr(documents, 'read_documents', None)
  with pytest.raises(UserError, match='cannot make this folder'):
    c4.prepare(files, tmp_path / 'file' / 'out')


def test_one_document_alone_is_refused_and_does_not_block_the_next_run(tmp_path):
  (tmp_path / 'a.txt').write_text('alone')
  with pytest.raises(UserError, match='1 train and 0 validation'):
    c4.prepare([tmp_path], tmp_path / 'out')
  (tmp_path / 'b.txt').write_text('together')
  c4.prepare([tmp_path], tmp_path / 'out')


@pytest.mark.parametrize('fraction', [0, -1, 0.7])
def test_an_unfit_fraction_is_refused(files, tmp_path, fraction):
  with pytest.raises(UserError, match='expected more than 0, at most'):
    c4.prepare(files, tmp_path / 'out', validation_fraction=fraction)


def test_small_files_share_a_shard_and_large_ones_are_cut(files, tmp_path, monkeypatch):
  monkeypatch.setattr(parts, 'PART_BYTES', 2**24)
  final = c4.prepare(files, tmp_path / 'small')
  assert len(list(final.glob('c4-train.tfrecord-*'))) == 1
  monkeypatch.setattr(c4, 'SHARD_BYTES', 1000)
  final = c4.prepare(files, tmp_path / 'large')
  assert len(list(final.glob('c4-train.tfrecord-*'))) > 5
  assert read(tmp_path / 'large', 'train') == read(tmp_path / 'small', 'train')


def test_two_threads_prepare_the_sample_once(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  calls, results, original = [], [], c4.prepare

  def count_and_prepare(*args):
    calls.append(args)
    return original(*args)

  monkeypatch.setattr(c4, 'prepare', count_and_prepare)
  threads = [
    threading.Thread(target=lambda: results.append(sample.prepare_sample())) for _ in range(2)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(calls) == 1
  assert results[0] == results[1]
  assert len(read(results[0].data_dir, 'validation')) == 12


def test_the_sample_is_small_and_says_its_source():
  years = {}
  for file in sample.FOLDER.glob('*.json.gz'):
    assert file.stat().st_size < 5 * 2**20
    assert file.read_bytes()[4:8] == bytes(4)  # The gzip header has no time.
    years[file.name] = [int(d.timestamp) for d in documents.read_documents(file)]
    with gzip.open(file, 'rt') as lines:
      assert all('"url": "sotu:' in line for line in lines)
  validation = years['c4-validation.00000-of-00001.json.gz']
  assert all(15 <= b - a <= 25 for a, b in zip(validation, validation[1:], strict=False))
