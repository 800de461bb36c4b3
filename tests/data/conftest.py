"""A small prepared data set, shared by the tests of this folder."""

import pytest

from laser_pax.data import sample, sources
from laser_pax.data.prepare import c4
from tests.support.small_texts import text, write_gz


@pytest.fixture(scope='session')
def texts():
  """The texts of the data set of the fixture `source`, by split."""
  return {'train': [text(i) for i in range(300)], 'validation': [text(i) for i in range(300, 337)]}


@pytest.fixture(scope='session')
def source(tmp_path_factory, texts):
  """A data set of four train shards and one validation shard, and the sample's vocabulary."""
  folder = tmp_path_factory.mktemp('source')
  for i in range(4):
    write_gz(folder / f'c4-train.{i:05d}-of-00004.json.gz', texts['train'][75 * i : 75 * (i + 1)])
  write_gz(folder / 'c4-validation.00000-of-00001.json.gz', texts['validation'])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(c4, 'PART_BYTES', 1)
    c4.prepare([folder], folder / 'data')
  return sources.Source(str(folder / 'data'), str(sample.VOCAB))
