"""WordPiece vocabularies are trained: BERT's layout, lower case, the same each time."""

import pytest

from laser_pax.cli import vocab
from laser_pax.data import wordpiece
from laser_pax.errors import UserError

TEXT = 'The Council of the Union met. The council met again, and the union with it. '


@pytest.fixture
def texts(tmp_path):
  folder = tmp_path / 'texts'
  folder.mkdir()
  (folder / 'part-00001-of-00002').write_text(TEXT * 30)
  # Sources of `prepare wikipedia`, which `prepare c4` does not know.
  (folder / 'part-00000-of-00002').write_text('Zebras met.\nZebras ate.\n\nZebras ran.\n' * 20)
  return str(folder)


def train(texts, out, **options):
  options = {'size': 220, 'sentences': 1000, 'character_coverage': None} | options
  vocab.vocab(texts, str(out), vocab.Kind.WORDPIECE, **options)
  return wordpiece.read_vocab(out)


def test_the_same_texts_give_the_same_vocabulary(texts, tmp_path):
  pieces = train(texts, tmp_path / 'new' / 'vocab.txt')
  assert len(pieces) == len(set(pieces)) == 220
  assert {'the', 'council', 'union', 'met', 'zebras'} <= set(pieces)
  assert all(piece == piece.lower() for piece in pieces if piece[0] != '[')
  train(texts, tmp_path / 'again.txt')
  assert (tmp_path / 'again.txt').read_bytes() == (tmp_path / 'new' / 'vocab.txt').read_bytes()
  (encoded,) = wordpiece.Tokenizer(tmp_path / 'again.txt').encode(['The COUNCIL met.'])
  assert [pieces[i] for i in encoded] == ['the', 'council', 'met', '.']


def test_an_existing_file_is_never_overwritten(texts, tmp_path):
  out = tmp_path / 'vocab.txt'
  out.write_text('mine')
  with pytest.raises(UserError, match='never overwritten'):
    train(texts, out)
  assert out.read_text() == 'mine'


@pytest.mark.parametrize(
  ('options', 'message'),
  [({'size': 104}, 'more than the 104 reserved'), ({'character_coverage': 0.9}, 'sentencepiece')],
)
def test_what_makes_no_sense_is_refused(texts, tmp_path, options, message):
  with pytest.raises(UserError, match=message):
    train(texts, tmp_path / 'vocab.txt', **options)
  assert not (tmp_path / 'vocab.txt').exists()


def test_texts_without_a_word_are_refused(tmp_path):
  with pytest.raises(UserError, match='no text to train'):
    wordpiece.make_vocab([], tmp_path / 'vocab.txt', size=150)


def write(path, pieces, end='\n'):
  path.write_bytes(end.join([*wordpiece._RESERVED, *pieces, '']).encode())
  return path


@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_a_piece_is_a_line_whatever_is_in_it(tmp_path, end):
  """Python takes more characters for the end of a line, and all later ids would be wrong."""
  pieces = ['a', 'b\u2028c', 'd\x85e', '\x0c', 'last']
  path = write(tmp_path / 'vocab.txt', pieces, end)
  assert wordpiece.read_vocab(path)[104:] == pieces


def test_a_piece_that_comes_twice_is_refused_with_its_line(tmp_path):
  path = write(tmp_path / 'vocab.txt', ['a', 'b', 'a'])
  with pytest.raises(UserError, match=f"{path}, line 107: the piece 'a' is in line 105 too"):
    wordpiece.read_vocab(path)


def test_an_error_of_the_texts_is_told_as_it_is(tmp_path):
  def texts():
    yield TEXT
    raise UserError('a.json, line 3: not JSON')

  with pytest.raises(UserError) as error:
    wordpiece.make_vocab(texts(), tmp_path / 'vocab.txt', size=150)
  assert str(error.value) == 'a.json, line 3: not JSON'
  assert list(tmp_path.iterdir()) == []
