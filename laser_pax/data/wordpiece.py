"""WordPiece vocabularies of BERT's layout: how to read, train and use one."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from laser_pax.data import vocabulary
from laser_pax.errors import UserError

# The places of BERT's special pieces in its vocabulary.
PAD, UNK, CLS, SEP, MASK = 0, 100, 101, 102, 103
_SPECIAL = {PAD: '[PAD]', UNK: '[UNK]', CLS: '[CLS]', SEP: '[SEP]', MASK: '[MASK]'}
_RESERVED = [
  _SPECIAL.get(i, f'[unused{i - 1}]' if i < UNK else f'[unused{i}]') for i in range(MASK + 1)
]


def read_vocab(path: str | Path) -> list[str]:
  """Returns the pieces of a vocabulary, which has one a line.

  Args:
    path: File of the vocabulary, local or in a bucket.

  Raises:
    UserError: The file cannot be read, its special pieces are not at BERT's places, or a piece
      comes twice.
  """
  from etils import epath

  try:
    text = epath.Path(path).read_bytes().decode()
  except (OSError, UnicodeDecodeError) as e:
    raise UserError(f'{path}: not a WordPiece vocabulary ({e}); expected one piece a line') from e
  # A line ends at a line feed alone. What else Python takes for a line's end may be in a piece.
  pieces = [line.removesuffix('\r') for line in text.removesuffix('\n').split('\n')]
  for place, piece in _SPECIAL.items():
    found = pieces[place] if place < len(pieces) else 'nothing'
    if found != piece:
      raise UserError(
        f'{path}: expected {piece} in line {place + 1}, as in BERT, found {found}: name another '
        'WordPiece vocabulary'
      )
  lines: dict[str, int] = {}
  for line, piece in enumerate(pieces, 1):
    if lines.setdefault(piece, line) != line:
      raise UserError(
        f'{path}, line {line}: the piece {piece!r} is in line {lines[piece]} too, and a piece has '
        'one id: fetch the file again, or name another vocabulary'
      )
  return pieces


class Tokenizer:
  """BERT's tokeniser: lower case, words cut at white space and punctuation, then WordPiece.

  Attributes:
    size: V, the number of pieces.
    digest: A hash of the pieces.
  """

  def __init__(self, path: str | Path):
    """Reads the vocabulary.

    Raises:
      UserError: It is not one of BERT's layout.
    """
    self._pieces = read_vocab(path)
    self.size = len(self._pieces)
    self.digest = hashlib.sha256('\n'.join(self._pieces).encode()).hexdigest()[:8]

  @functools.cached_property
  def _tokenizer(self):
    import tensorflow as tf
    import tensorflow_text

    table = tf.lookup.StaticVocabularyTable(
      tf.lookup.KeyValueTensorInitializer(
        self._pieces, list(range(self.size)), tf.string, tf.int64
      ),
      num_oov_buckets=1,
    )
    return tensorflow_text.BertTokenizer(table, lower_case=True, token_out_type=tf.int64)

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns the tokens of each text."""
    if not texts:
      return []
    return self._tokenizer.tokenize(texts).merge_dims(-2, -1).to_list()

  def write(self, path: Path) -> None:
    """Writes the vocabulary to a file."""
    path.write_text('\n'.join(self._pieces) + '\n', 'utf-8')


def make_vocab(texts: Iterable[str], out: Path, *, size: int) -> None:
  """Writes the vocabulary that `train_vocab` returns.

  Args:
    texts: Documents or sentences.
    out: File to write. It appears only when it is complete.
    size: V, the number of pieces.

  Raises:
    UserError: `out` exists or cannot be written, there is no text, or the size is too small.
  """
  vocabulary.check_new_file(out)
  with vocabulary.reading(vocabulary.check_any(texts)) as read:
    pieces = train_vocab(read, size)
  partial = out.with_name(f'{out.name}.{os.getpid()}.partial')
  partial.write_text('\n'.join(pieces) + '\n', 'utf-8')
  vocabulary.check_new_file(out)  # Another process may have made the file meanwhile.
  partial.rename(out)


def train_vocab(texts: Iterable[str], size: int) -> list[str]:
  """Returns a WordPiece vocabulary of BERT's layout, trained by TensorFlow Text.

  Args:
    texts: Documents or sentences.
    size: V, the number of pieces, with the 104 that are reserved. Where the texts give fewer, the
      rest are unused pieces.

  Raises:
    UserError: The size leaves no place for pieces.
  """
  import tensorflow as tf
  from tensorflow_text.tools.wordpiece_vocab import bert_vocab_from_dataset

  if size <= len(_RESERVED):
    raise UserError(f'size {size}: expected more than the {len(_RESERVED)} reserved pieces')
  dataset = tf.data.Dataset.from_generator(
    lambda: texts, output_signature=tf.TensorSpec([], tf.string)
  )
  pieces = bert_vocab_from_dataset.bert_vocab_from_dataset(
    dataset.batch(64),
    vocab_size=size,
    reserved_tokens=_RESERVED,
    bert_tokenizer_params={'lower_case': True},
  )[:size]
  return [*pieces, *(f'[unused{i}]' for i in range(len(pieces), size))]
