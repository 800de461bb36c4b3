"""The rule for the places of data and vocabulary, and its messages."""

import subprocess
import sys

import pytest
from absl import flags

from laser_pax.data import sample, sources
from laser_pax.data.datasets import C4
from laser_pax.errors import UserError


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch, tmp_path):
  monkeypatch.delenv('LASER_PAX_DATA_DIR', raising=False)
  monkeypatch.delenv('LASER_PAX_VOCAB', raising=False)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def failure(*args):
  """Returns the message of a search that must fail."""
  with pytest.raises(UserError) as error:
    sources.find_source(C4, *args)
  return str(error.value)


def test_attributes_come_before_variables_and_these_before_the_default(source, monkeypatch):
  assert sources.find_source(C4, source.data_dir, source.vocab, 4096) == source
  monkeypatch.setenv('LASER_PAX_DATA_DIR', source.data_dir)
  monkeypatch.setenv('LASER_PAX_VOCAB', source.vocab)
  assert sources.find_source(C4, None, None, 4096) == source
  assert '/attribute' in failure('/attribute', None, 4096)
  assert '/attribute.model' in failure(None, '/attribute.model', 4096)


def test_the_default_data_folder_is_the_one_that_prepare_writes(source, tmp_path):
  folder = tmp_path / 'cache/laser_pax/data'
  assert sources.default_data_dir() == str(folder)
  folder.parent.mkdir(parents=True)
  folder.symlink_to(source.data_dir)
  assert sources.find_source(C4, None, source.vocab, 4096) == (str(folder), source.vocab)


def test_paxs_flag_comes_first_as_seqio_obeys_it(source, monkeypatch):
  values = flags.FlagValues()
  flags.DEFINE_string('tfds_data_dir', source.data_dir, 'as in paxml.main', flag_values=values)
  monkeypatch.setattr(flags, 'FLAGS', values)
  assert sources.find_source(C4, '/attribute', source.vocab, 4096) == source


def test_missing_data_says_where_and_how(source, tmp_path):
  message = failure(str(tmp_path), source.vocab, 4096)
  assert f'looked for c4/en/3.0.1/dataset_info.json in {tmp_path} (named by DATA_DIR)' in message
  assert f'python -m laser_pax prepare c4 SOURCE... --out {tmp_path}' in message


def test_broken_data_is_named(source, tmp_path):
  folder = tmp_path / 'c4/en/3.0.1'
  folder.mkdir(parents=True)
  (folder / 'dataset_info.json').write_text('{"splits": [{"name": "train"}]}')
  assert 'lacks validation' in failure(str(tmp_path), source.vocab, 4096)
  (folder / 'dataset_info.json').write_text('{"spl')
  assert 'cannot be read as a TFDS data set' in failure(str(tmp_path), source.vocab, 4096)


def test_missing_vocabulary_says_where_and_how(source):
  command = f'python -m laser_pax vocab --data {source.data_dir} --out'
  assert f'{command} vocab.model --size 32000' in failure(source.data_dir, None, 32_000)
  assert f'{command} /no.model --size 32000' in failure(source.data_dir, '/no.model', 32_000)


@pytest.mark.parametrize('size', [4095, 4097, 32_000])
def test_a_vocabulary_of_another_size_is_refused(source, size):
  message = failure(source.data_dir, source.vocab, size)
  assert f'has 4096 pieces, but the model has VOCAB_SIZE = {size}' in message
  assert 'set VOCAB_SIZE = 4096' in message


def test_the_sample_serves_only_where_nothing_is_named(source, monkeypatch):
  shipped = sample.find_source_or_sample(None, None, 4096)
  assert shipped.data_dir != source.data_dir
  assert sources.find_source(C4, shipped.data_dir, shipped.vocab, 4096) == shipped
  with pytest.raises(UserError, match='VOCAB_SIZE = 99'):
    sample.find_source_or_sample(None, None, 99)
  with pytest.raises(UserError, match='no vocabulary'):
    sample.find_source_or_sample(source.data_dir, None, 4096)
  monkeypatch.setenv('LASER_PAX_VOCAB', source.vocab)
  with pytest.raises(UserError, match='no prepared data'):
    sample.find_source_or_sample(None, None, 4096)


def test_the_checks_do_not_import_tensorflow(source):
  code = (
    'import sys; from laser_pax.data import sample, sources; from laser_pax.data.prepare import c4;'
    f'sample.find_source_or_sample({source.data_dir!r}, {source.vocab!r}, 4096);'
    'sys.exit("tensorflow" in sys.modules)'
  )
  assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
