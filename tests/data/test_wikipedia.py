"""Records for BERT: rows of two texts, masks, splits, and the same bytes however often stopped."""

import collections
import json
import random
import shutil

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from laser_pax.cli import vocab
from laser_pax.data import sample, text_mlm, wordpiece
from laser_pax.data.prepare import documents, files, mlperf, parts, wikipedia
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
def release(tmp_path, monkeypatch):
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


def test_mlperfs_files_become_records(release, tmp_path):
  (release / 'README.md').write_text('no source')
  # The release has these too: one is no document, and the other no JSON lines.
  (release / 'vocab.txt').write_text('[PAD]')
  (release / 'bert_config.json').write_text('{\n}')
  final = prepare(release, tmp_path / 'out')
  assert {p.name for p in final.iterdir()} == {
    'part-00000-of-00002',
    'part-00001-of-00002',
    'eval_10k',
    'vocab.txt',
    'report.json',
  }
  report = json.loads((final / 'report.json').read_text())
  assert report['documents'] == {'in': 18, 'blank': 0, 'train': 12, 'eval': 6}
  assert [x['reason'] for x in report['left_out']] == [
    'no suffix of a source',
    mlperf.NO_PART,
    mlperf.NO_PART,
  ]
  for name in ('part-00000-of-00002', 'eval_10k'):
    for record in tf.data.TFRecordDataset(str(final / name)):
      parsed = tf.io.parse_single_example(record, text_mlm._RECORD)
      assert parsed['input_ids'][0] == wordpiece.CLS
  assert contents(prepare(release, tmp_path / 'again')) == contents(final)
  other = contents(prepare(release, tmp_path / 'other', seed=1))
  assert other['part-00000-of-00002'] != contents(final)['part-00000-of-00002']


def without_a_part(folder):
  (folder / 'part-00000-of-00002').unlink()


def without_eval(folder):
  (folder / 'eval.txt').unlink()


def with_another_release(folder):
  (folder / 'part-00000-of-00003').write_text('A sentence.')


def with_a_part_twice(folder):
  (folder / 'again').mkdir()
  (folder / 'again' / 'part-00000-of-00002').write_text('A sentence.')


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (without_a_part, "MLPerf's release, and eval.txt; missing: part-00000-of-00002: fetch"),
    (without_eval, 'missing: eval.txt: fetch'),
    (with_another_release, 'several wholes, of 2 and of 3 parts'),
    (with_a_part_twice, 'again/part-00000-of-00002 and .*: name one of them'),
  ],
)
def test_a_release_that_is_not_complete_is_refused(release, tmp_path, change, words):
  change(release)
  with pytest.raises(UserError, match=words):
    prepare(release, tmp_path / 'out')


def test_mlperfs_own_release_must_have_all_articles_to_evaluate_on(tmp_path, monkeypatch):
  evaluation = tmp_path / 'eval.txt'
  evaluation.write_text('One.\n\nTwo.\n')
  names = [f'part-{i:05d}-of-00500' for i in range(mlperf.PARTS)]
  sources = files.Sources([evaluation, *(tmp_path / name for name in names)], [], {})
  with pytest.raises(UserError, match='expected .* 32,851,144 bytes; got 2 articles, 11 bytes'):
    mlperf.check_complete(sources)
  del sources.taken[7:]
  with pytest.raises(UserError, match='part-00010-of-00500 and 489 more: fetch'):
    mlperf.check_complete(sources)
  sources = sources._replace(taken=[evaluation, *(tmp_path / name for name in names)])
  for name, value in {'EVAL_ARTICLES': 2, 'EVAL_BYTES': 11}.items():
    with monkeypatch.context() as patch:
      patch.setattr(mlperf, name, value)
      mlperf.check_complete(sources)


def test_the_vocabulary_is_no_document(tmp_path):
  folder = tmp_path / 'source'
  folder.mkdir()
  vocab = shutil.copy(sample.WORDPIECE, folder / 'vocab.txt')
  with pytest.raises(UserError, match='vocab.txt: the only file, and it is the vocabulary'):
    wikipedia.prepare([folder], tmp_path / 'out', vocab=vocab)
  for name in ('a', 'eval-b'):
    (folder / f'{name}.txt').write_text(f'A sentence of {name}. And another one.')
  final = wikipedia.prepare([folder], tmp_path / 'out', vocab=vocab, copies=1)
  report = json.loads((final / 'report.json').read_text())
  assert report['documents'] == {'in': 2, 'blank': 0, 'train': 1, 'eval': 1}
  assert report['left_out'] == [{'path': str(vocab), 'reason': wikipedia.VOCAB}]


@pytest.mark.parametrize('kind', vocab.Kind)
def test_a_vocabulary_is_trained_on_what_is_trained_on(tmp_path, kind):
  for name, text in {
    'eval.txt': 'evaluated',
    'train.txt': 'trained',
    'z-validation.txt': 'validated',
    'zz.txt': 'validated',  # A copy, which `prepare` leaves out.
  }.items():
    (tmp_path / name).write_text(text)
  texts = list(vocab._texts(tmp_path, None, kind))
  expected = ['trained'] if kind == 'wordpiece' else ['evaluated', 'trained']
  assert texts == expected
  (tmp_path / 'train.txt').unlink()
  (tmp_path / 'eval.txt').unlink()
  with pytest.raises(UserError, match='all of its 1 files are to evaluate on'):
    vocab._texts(tmp_path, None, kind)


def test_a_large_file_becomes_several_shards(release, tmp_path, monkeypatch):
  """So a dump of gigabytes needs no more memory than a shard."""
  monkeypatch.setattr(wikipedia, 'SHARD_CHARS', 1500)  # Two of six documents.
  final = prepare(release, tmp_path / 'out')
  report = json.loads((final / 'report.json').read_text())
  assert report['documents'] == {'in': 18, 'blank': 0, 'train': 12, 'eval': 6}
  assert [shard['documents'] for shard in report['splits']['train']] == [2] * 6
  names = sorted(p.name for p in final.glob('part-*'))
  assert names == [f'part-{i:05d}-of-00006' for i in range(6)]
  counts = [sum(1 for _ in tf.data.TFRecordDataset(str(final / name))) for name in names]
  assert counts == [shard['records'] for shard in report['splits']['train']]
  assert contents(prepare(release, tmp_path / 'again')) == contents(final)


def test_stopped_and_started_again_it_writes_the_same(release, tmp_path, monkeypatch):
  whole = contents(prepare(release, tmp_path / 'whole'))
  read_blocks = documents.read_blocks

  def fail_late(path, open_file):
    if path.name == 'part-00001-of-00002':
      raise KeyboardInterrupt
    return read_blocks(path, open_file)

  with monkeypatch.context() as patch:
    patch.setattr(documents, 'read_blocks', fail_late)
    with pytest.raises(KeyboardInterrupt):
      prepare(release, tmp_path / 'out')
  assert contents(prepare(release, tmp_path / 'out')) == whole


def test_evaluation_takes_records_at_a_constant_stride(release, tmp_path, monkeypatch):
  every = list(tf.data.TFRecordDataset(str(prepare(release, tmp_path / 'a') / 'eval_10k')))
  monkeypatch.setattr(wikipedia, 'EVAL_RECORDS', len(every) // 3)
  some = list(tf.data.TFRecordDataset(str(prepare(release, tmp_path / 'b') / 'eval_10k')))
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
  release, tmp_path, pieces, message
):
  vocab = tmp_path / 'vocab.txt'
  if pieces is not None:
    vocab.write_text('\n'.join(pieces))
  with pytest.raises(UserError, match=message):
    wikipedia.prepare([release], tmp_path / 'out', vocab=vocab)
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
