"""Vocabularies: T5's layout, repeatable training, and refused sizes and files."""

import random
import time

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from laser_pax.data import sample, vocabulary
from laser_pax.errors import UserError


def words(count, seed=0):
  rng = random.Random(seed)
  return [''.join(rng.choices('abcdefghij', k=rng.randint(2, 8))) for _ in range(count)]


TEXTS = [' '.join(words(200, seed)) for seed in range(20)]


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  out = tmp_path_factory.mktemp('vocab') / 'new' / 'v.model'
  vocabulary.train_vocabulary(TEXTS, out, size=100, sentences=1000)
  return out


def layout(path):
  p = sentencepiece.SentencePieceProcessor(model_file=str(path))
  return p.pad_id(), p.eos_id(), p.unk_id(), p.bos_id()


def test_the_layout_is_t5s(model):
  assert layout(model) == layout(sample.VOCAB) == (0, 1, 2, -1)
  assert vocabulary.vocabulary_size(model) == 100
  assert vocabulary.vocabulary_size(sample.VOCAB) == 4096


def test_the_same_texts_give_the_same_model(model, tmp_path):
  vocabulary.train_vocabulary(iter(TEXTS), tmp_path / 'v.model', size=100, sentences=1000)
  assert (tmp_path / 'v.model').read_bytes() == model.read_bytes()


def test_an_existing_file_is_never_overwritten(model):
  before = model.read_bytes()
  with pytest.raises(UserError, match='never overwritten'):
    vocabulary.train_vocabulary(TEXTS, model, size=90, sentences=1000)
  assert model.read_bytes() == before


def test_too_small_a_corpus_says_what_would_work(tmp_path):
  with pytest.raises(UserError, match=r'at most \d+ pieces; give --size (\d+)') as error:
    vocabulary.train_vocabulary(['a few words'], tmp_path / 'v.model', size=32_000, sentences=10)
  assert list(tmp_path.iterdir()) == []
  size = int(str(error.value).split('--size ')[1].split()[0])
  vocabulary.train_vocabulary(['a few words'], tmp_path / 'v.model', size=size, sentences=10)


def test_too_small_a_size_is_refused(tmp_path):
  with pytest.raises(UserError, match='cannot hold the 14 characters'):
    vocabulary.train_vocabulary(TEXTS, tmp_path / 'v.model', size=5, sentences=1000)


def test_long_lines_are_trained_on(tmp_path):
  long_line = ' '.join(['zyx'] * 5000)
  assert len(long_line) > vocabulary.MAX_SENTENCE_BYTES
  vocabulary.train_vocabulary([*TEXTS, long_line], tmp_path / 'v.model', size=100, sentences=1000)
  processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / 'v.model'))
  assert processor.encode('zyx', out_type=str) == ['▁zyx']


def test_only_the_stated_number_of_sentences_is_used(tmp_path):
  texts = [*TEXTS, 'qqqq ' * 100]
  vocabulary.train_vocabulary(texts, tmp_path / 'v.model', size=100, sentences=len(TEXTS))
  processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / 'v.model'))
  assert vocabulary.UNK_ID in processor.encode('q')


@given(st.text(st.sampled_from('ab äé€😀'), max_size=200))
def test_cutting_loses_spaces_at_most(line):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(vocabulary, 'MAX_SENTENCE_BYTES', 16)
    pieces = list(vocabulary._cut(line))
  assert all(0 < len(piece.encode()) <= 16 for piece in pieces)
  assert ''.join(pieces).replace(' ', '') == line.replace(' ', '')


def test_other_files_are_refused(tmp_path):
  (tmp_path / 'text').write_text('not a model')
  with pytest.raises(UserError, match='not a SentencePiece model'):
    vocabulary.vocabulary_size(tmp_path / 'text')
  with (tmp_path / 'llama.model').open('wb') as file:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(TEXTS), model_writer=file, vocab_size=100, minloglevel=2
    )
  with pytest.raises(UserError, match="expected T5's layout"):
    vocabulary.vocabulary_size(tmp_path / 'llama.model')


@pytest.mark.parametrize('texts', [[], [''], ['\n\n']])
def test_texts_without_a_word_are_refused(texts, tmp_path):
  with pytest.raises(UserError, match='no text to train a vocabulary on'):
    vocabulary.train_vocabulary(texts, tmp_path / 'v.model', size=100, sentences=10)
  assert not (tmp_path / 'v.model').exists()


def test_rare_characters_may_become_unknown(tmp_path):
  texts = [*TEXTS, 'rare: \u00e4\u00f6\u00fc']
  for coverage, is_known in ((1.0, True), (0.99, False)):
    out = tmp_path / f'{coverage}.model'
    vocabulary.train_vocabulary(texts, out, size=100, sentences=1000, character_coverage=coverage)
    encode = sentencepiece.SentencePieceProcessor(model_file=str(out)).encode
    assert (vocabulary.UNK_ID not in encode('\u00e4')) == is_known


def test_an_error_of_the_texts_is_told_as_it_is(tmp_path):
  def texts():
    yield from TEXTS
    raise UserError('a.json, line 3: not JSON')

  with pytest.raises(UserError) as error:
    vocabulary.train_vocabulary(texts(), tmp_path / 'v.model', size=100, sentences=1000)
  assert str(error.value) == 'a.json, line 3: not JSON'
  assert list(tmp_path.iterdir()) == []


def test_a_line_of_50_mb_is_cut_in_linear_time():
  """By copies of the rest it would take minutes."""
  line, start = 'state' * 10**7, time.process_time()
  pieces = list(vocabulary.first_sentences([line], 10**9))
  assert ''.join(pieces) == line
  assert time.process_time() - start < 5
