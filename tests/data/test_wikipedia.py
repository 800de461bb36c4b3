"""Records for BERT: rows of two texts, masks, splits, and the same bytes however often stopped."""

import collections
import json
import random

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from laser_pax.data import sample, text_mlm, wordpiece
from laser_pax.data.prepare import documents, parts, wikipedia
from laser_pax.errors import UserError

VOCAB_SIZE = 4096
tokens = st.integers(wordpiece.MASK + 1, VOCAB_SIZE - 1)
sentence = st.lists(tokens, min_size=1, max_size=60)
document = st.lists(sentence, min_size=1, max_size=25)


@settings(deadline=None)
@given(st.lists(document, min_size=1, max_size=4), st.integers(0, 2**32))
def test_a_document_is_cut_into_rows(drawn, seed):
  """Without random texts, rows would hold every token once and in order."""
  first, rows = drawn[0], list(wikipedia.make_rows(drawn[0], drawn, random.Random(seed)))
  flat = [t for s in first for t in s]
  for row in rows:
    assert row.first and row.second
    assert len(row.first) + len(row.second) <= wikipedia.TOKENS - 3
    in_order = ','.join(map(str, flat))
    assert ','.join(map(str, row.first)) in in_order
    if not row.is_random:
      assert ','.join(map(str, row.second)) in in_order


def test_half_of_the_second_texts_are_random_and_a_tenth_of_the_rows_short():
  rng = random.Random(0)
  documents_ = [
    [[rng.randrange(200, 4000) for _ in range(20)] for _ in range(60)] for _ in range(300)
  ]
  rows = [r for d in documents_ for r in wikipedia.make_rows(d, documents_, rng)]
  # A single sentence that is left over is paired with a random text too.
  assert sum(r.is_random for r in rows) / len(rows) == pytest.approx(0.53, abs=0.03)
  full = [r for d in documents_[:50] for r in wikipedia.make_rows(d, documents_, rng)]
  lengths = [len(r.first) + len(r.second) for r in full]
  assert max(lengths) == wikipedia.TOKENS - 3


@settings(deadline=None)
@given(st.lists(tokens, min_size=1, max_size=300), st.lists(tokens, min_size=1, max_size=209))
def test_a_record_holds_the_row_and_its_masks(first, second):
  row = wikipedia.Row(first, second, True)
  record = wikipedia.make_record(row, VOCAB_SIZE, random.Random(0))
  whole = [wordpiece.CLS, *first, wordpiece.SEP, *second, wordpiece.SEP]
  count = int(sum(record['masked_lm_weights']))
  assert count == min(76, max(1, round(0.15 * len(whole))))
  places = record['masked_lm_positions'][:count]
  assert places == sorted(set(places))
  assert all(whole[i] not in (wordpiece.CLS, wordpiece.SEP) for i in places)
  assert sum(record['input_mask']) == len(whole)
  assert sum(record['segment_ids']) == len(second) + 1
  restored = text_mlm.restore_tokens({k: tf.constant(v) for k, v in record.items()})
  labels = [wordpiece.CLS, *first, *second, wordpiece.SEP]
  assert restored['labels'].numpy().tolist() == labels
  assert restored['masked_pos'].numpy().sum() == count
  is_masked = restored['masked_pos'].numpy() == 1
  assert (restored['masked_ids'].numpy() == labels)[~is_masked].all()


def test_masked_tokens_become_mask_random_or_stay():
  counts = collections.Counter()
  rng = random.Random(0)
  for _ in range(200):
    row = wikipedia.Row([rng.randrange(200, 4000) for _ in range(400)], [500] * 100, False)
    record = wikipedia.make_record(row, VOCAB_SIZE, rng)
    for place, original in zip(record['masked_lm_positions'], record['masked_lm_ids'], strict=True):
      if original:
        masked = record['input_ids'][place]
        kind = {wordpiece.MASK: 'mask', original: 'same'}.get(masked, 'random')
        counts[kind] += 1
  total = sum(counts.values())
  shares = {kind: count / total for kind, count in counts.items()}
  assert shares == pytest.approx({'mask': 0.8, 'same': 0.1, 'random': 0.1}, abs=0.01)


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('One. Two! "Three?" Four', ['One.', 'Two!', '"Three?', 'Four']),
    ('a line\n\nanother. line', ['a line', 'another. line']),
    ('U.S. law. It holds 3.5 of 4. 12 more.', ['U.S. law.', 'It holds 3.5 of 4.', '12 more.']),
    ('', []),
  ],
)
def test_text_is_cut_into_sentences(text, expected):
  assert wikipedia.sentences(documents.Document(text, '', '')) == expected


def test_a_blank_line_ends_a_document_of_mlperf(tmp_path):
  path = tmp_path / 'part-00000-of-00500'
  path.write_text('one.\ntwo.\n\n\nthree.\n \nfour.')
  texts = [d.text for d in documents.read_blocks(path)]
  assert texts == ['one.\ntwo.\n', 'three.\n', 'four.']


@pytest.fixture
def mlperf(tmp_path, monkeypatch):
  """Files as MLPerf names them; each becomes a part of the work."""
  monkeypatch.setattr(parts, 'PART_BYTES', 1)
  folder = tmp_path / 'mlperf'
  folder.mkdir()
  for number, name in enumerate(['part-00000-of-00002', 'part-00001-of-00002', 'eval.txt']):
    blocks = [
      '\n'.join(f'Sentence {i} of text {number} has the word {j}.' for i in range(20))
      for j in range(6)
    ]
    (folder / name).write_text('\n\n'.join(blocks))
  return folder


def contents(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir()}


def prepare(source, out, **options):
  return wikipedia.prepare([source], out, vocab=sample.WORDPIECE, copies=2, **options)


def test_mlperfs_files_become_records(mlperf, tmp_path):
  (mlperf / 'README.md').write_text('no source')
  final = prepare(mlperf, tmp_path / 'out')
  assert {p.name for p in final.iterdir()} == {
    'part-00000-of-00002',
    'part-00001-of-00002',
    'eval_10k',
    'vocab.txt',
    'report.json',
  }
  report = json.loads((final / 'report.json').read_text())
  assert report['documents'] == {'in': 18, 'blank': 0, 'train': 12, 'eval': 6}
  assert [x['reason'] for x in report['left_out']] == ['no suffix of a source']
  for name in ('part-00000-of-00002', 'eval_10k'):
    for record in tf.data.TFRecordDataset(str(final / name)):
      parsed = tf.io.parse_single_example(record, text_mlm._RECORD)
      assert parsed['input_ids'][0] == wordpiece.CLS
  assert contents(prepare(mlperf, tmp_path / 'again')) == contents(final)
  other = contents(prepare(mlperf, tmp_path / 'other', seed=1))
  assert other['part-00000-of-00002'] != contents(final)['part-00000-of-00002']


def test_a_large_file_becomes_several_shards(mlperf, tmp_path, monkeypatch):
  """So a dump of gigabytes needs no more memory than a shard."""
  monkeypatch.setattr(wikipedia, 'SHARD_CHARS', 1500)  # Two of six documents.
  final = prepare(mlperf, tmp_path / 'out')
  report = json.loads((final / 'report.json').read_text())
  assert report['documents'] == {'in': 18, 'blank': 0, 'train': 12, 'eval': 6}
  assert [shard['documents'] for shard in report['splits']['train']] == [2] * 6
  names = sorted(p.name for p in final.glob('part-*'))
  assert names == [f'part-{i:05d}-of-00006' for i in range(6)]
  counts = [sum(1 for _ in tf.data.TFRecordDataset(str(final / name))) for name in names]
  assert counts == [shard['records'] for shard in report['splits']['train']]
  assert contents(prepare(mlperf, tmp_path / 'again')) == contents(final)


def test_stopped_and_started_again_it_writes_the_same(mlperf, tmp_path, monkeypatch):
  whole = contents(prepare(mlperf, tmp_path / 'whole'))
  read_blocks = documents.read_blocks

  def fail_late(path, open_file):
    if path.name == 'part-00001-of-00002':
      raise KeyboardInterrupt
    return read_blocks(path, open_file)

  with monkeypatch.context() as patch:
    patch.setattr(documents, 'read_blocks', fail_late)
    with pytest.raises(KeyboardInterrupt):
      prepare(mlperf, tmp_path / 'out')
  assert contents(prepare(mlperf, tmp_path / 'out')) == whole


def test_evaluation_takes_records_at_a_constant_stride(mlperf, tmp_path, monkeypatch):
  every = list(tf.data.TFRecordDataset(str(prepare(mlperf, tmp_path / 'a') / 'eval_10k')))
  monkeypatch.setattr(wikipedia, 'EVAL_RECORDS', len(every) // 3)
  some = list(tf.data.TFRecordDataset(str(prepare(mlperf, tmp_path / 'b') / 'eval_10k')))
  assert some == every[::3][: len(every) // 3]


@pytest.mark.parametrize(
  ('pieces', 'message'),
  [
    (['[PAD]', 'a', 'b'], 'expected .UNK. in line 101'),
    (['a'] * 200, 'expected .PAD. in line 1,'),
    (None, 'not a WordPiece vocabulary'),
  ],
)
def test_another_vocabulary_is_refused_before_anything_is_written(
  mlperf, tmp_path, pieces, message
):
  vocab = tmp_path / 'vocab.txt'
  if pieces is not None:
    vocab.write_text('\n'.join(pieces))
  with pytest.raises(UserError, match=message):
    wikipedia.prepare([mlperf], tmp_path / 'out', vocab=vocab)
  assert not list((tmp_path / 'out').rglob('*.tfrecord'))


def test_words_become_pieces(tmp_path):
  tokenizer = wordpiece.Tokenizer(sample.WORDPIECE)
  assert tokenizer.size == VOCAB_SIZE
  upper, lower, odd = tokenizer.encode(
    ['The State of the Union!', 'the state of the union !', '\u2603']
  )
  assert upper == lower and wordpiece.UNK not in upper
  assert odd == [wordpiece.UNK]
  tokenizer.write(tmp_path / 'vocab.txt')
  assert wordpiece.Tokenizer(tmp_path / 'vocab.txt').digest == tokenizer.digest
