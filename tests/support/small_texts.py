"""Small texts, and files of them in the form of C4."""

import gzip
import json
import pathlib

WORDS = (
  'the',
  'state',
  'of',
  'our',
  'union',
  'is',
  'strong',
  'and',
  'its',
  'people',
  'are',
  'free',
)


def text(number: int) -> str:
  """Returns a unique document: its number, and 3 to 40 words."""
  length = 3 + number * 7 % 38
  return ' '.join([f'Number {number}:', *(WORDS[(number + i) % len(WORDS)] for i in range(length))])


def texts() -> dict[str, list[str]]:
  """Returns the documents of a small data set, by split."""
  return {'train': [text(i) for i in range(300)], 'validation': [text(i) for i in range(300, 337)]}


def prepare(folder: pathlib.Path):
  """Prepares `texts`, as four train shards and one of validation; with the sample's vocabulary.

  Returns:
    The `sources.Source`.
  """
  from unittest import mock

  from laser_pax.data import sample, sources
  from laser_pax.data.prepare import c4, parts

  train, validation = texts().values()
  for i in range(4):
    write_gz(folder / f'c4-train.{i:05d}-of-00004.json.gz', train[75 * i : 75 * (i + 1)])
  write_gz(folder / 'c4-validation.00000-of-00001.json.gz', validation)
  with mock.patch.object(parts, 'PART_BYTES', 1):
    c4.prepare([folder], folder / 'data')
  return sources.Source(str(folder / 'data'), str(sample.VOCAB))


def write_gz(path, texts):
  """Writes texts in the form of allenai's C4."""
  with gzip.open(path, 'wt') as file:
    for t in texts:
      file.write(json.dumps({'text': t, 'timestamp': '2019', 'url': 'u'}) + '\n')
