"""Texts of a prepared data set, and the unigram baseline."""

import collections
import itertools
import math

import sentencepiece

from laser_pax.data import records
from laser_pax.data.datasets import C4


def test_every_document_is_read_once(source, texts):
  for split, expected in texts.items():
    assert sorted(records.read_texts(source.data_dir, C4, split)) == sorted(expected)


def test_the_first_documents_come_from_several_shards(source, texts):
  first = itertools.islice(records.read_texts(source.data_dir, C4, 'train'), 100)
  assert len({texts['train'].index(t) // 75 for t in first}) == 4


def test_unigram_entropy_is_its_formula(source, texts):
  processor = sentencepiece.SentencePieceProcessor(model_file=source.vocab)
  tokens = {s: [i for t in texts[s] for i in [*processor.encode(t), 1]] for s in texts}
  counts = collections.Counter(tokens['train'])
  total = len(tokens['train']) + 4096
  expected = [-math.log((counts[y] + 1) / total) for y in tokens['validation']]
  assert math.isclose(
    records.unigram_entropy(source, C4), sum(expected) / len(expected), rel_tol=1e-9
  )
