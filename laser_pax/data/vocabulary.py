"""SentencePiece vocabularies of T5's layout: how to train one, and how to read its size."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from laser_pax import folders
from laser_pax.errors import UserError

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2

# SentencePiece silently drops sentences that are longer than this.
MAX_SENTENCE_BYTES = 4192

# SentencePiece's own default.
CHARACTER_COVERAGE = 0.9995


def train_vocabulary(
  texts: Iterable[str],
  out: Path,
  *,
  size: int,
  sentences: int,
  character_coverage: float = CHARACTER_COVERAGE,
) -> None:
  """Trains a unigram SentencePiece model with T5's ids: pad 0, eos 1, unk 2, and no bos.

  The model depends only on the texts, the size and the number of sentences. Every run on every
  machine gives the same model.

  Args:
    texts: Documents. Each is cut at white space into sentences of at most `MAX_SENTENCE_BYTES`.
    out: File to write. It appears only when it is complete.
    size: V, the number of pieces, including control pieces.
    sentences: Greatest number of sentences to train on. The first ones are used.
    character_coverage: Share of all characters that get pieces. The rarest become unknown.

  Raises:
    UserError: `out` exists or cannot be written, or the texts hold too few distinct pieces.
  """
  check_new_file(out)
  model = io.BytesIO()
  with reading(check_any(first_sentences(texts, sentences))) as chosen:
    _train(chosen, model, size=size, character_coverage=character_coverage)
  partial = out.with_name(f'{out.name}.{os.getpid()}.partial')
  partial.write_bytes(model.getvalue())
  check_new_file(out)  # Another process may have made the file meanwhile.
  partial.rename(out)


def _train(
  sentences: Iterator[str], model: io.BytesIO, *, size: int, character_coverage: float
) -> None:
  """Trains a model, and writes its bytes to `model`."""
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=sentences,
      model_writer=model,
      model_type='unigram',
      vocab_size=size,
      pad_id=PAD_ID,
      eos_id=EOS_ID,
      unk_id=UNK_ID,
      bos_id=-1,
      character_coverage=character_coverage,
      max_sentence_length=MAX_SENTENCE_BYTES,
      num_threads=16,  # Fixed: the number changes the order of sums, and so the scores.
      minloglevel=2,
    )
  except RuntimeError as e:
    raise UserError(_explain(str(e), size)) from e


@contextlib.contextmanager
def reading(texts: Iterable[str]) -> Iterator[Iterator[str]]:
  """Gives texts to a library. Where reading them fails, the `with` block raises that error itself.

  SentencePiece and TensorFlow make errors of their own of it, with a traceback in the message.

  Args:
    texts: The texts.
  """
  failures: list[Exception] = []

  def read() -> Iterator[str]:
    try:
      yield from texts
    except Exception as e:
      failures.append(e)
      raise

  try:
    yield read()
  except Exception as e:
    raise (failures or [e])[0] from e.__cause__


def vocabulary_size(path: str | Path) -> int:
  """Returns V, the number of pieces of a SentencePiece model, after checking its layout.

  Args:
    path: File of the model, local or in a bucket.

  Raises:
    UserError: The file is not a SentencePiece model, or its pad, eos or unk ids are not T5's.
  """
  from etils import epath

  processor = sentencepiece.SentencePieceProcessor()
  try:
    processor.LoadFromSerializedProto(epath.Path(path).read_bytes())
  except (RuntimeError, OSError) as e:
    raise UserError(
      f'{path}: not a SentencePiece model ({e}); train one with: python -m laser_pax vocab'
    ) from e
  ids = (processor.pad_id(), processor.eos_id(), processor.unk_id())
  if ids != (PAD_ID, EOS_ID, UNK_ID):
    raise UserError(
      f"{path}: expected T5's layout, pad, eos, unk = {(PAD_ID, EOS_ID, UNK_ID)}, got {ids}; "
      'train one with: python -m laser_pax vocab'
    )
  return processor.vocab_size()


def check_size(path: str | Path, size: int, place: str) -> None:
  """Checks that a trained model's vocabulary has as many pieces as the model.

  Args:
    path: File of the vocabulary, local or in a bucket.
    size: V, the number of pieces that the model has.
    place: Where the right vocabulary is to be copied to, for the message.

  Raises:
    UserError: It has another number, or is no vocabulary of T5's layout.
  """
  pieces = vocabulary_size(path)
  if pieces != size:
    raise UserError(
      f'{path} has {pieces} pieces, but the model has VOCAB_SIZE = {size}: copy the vocabulary '
      f'that it was trained with to {place}'
    )


def check_new_file(out: Path) -> None:
  """Checks that `out` is a new file in a folder that can be written.

  Raises:
    UserError: It is not.
  """
  if out.exists():
    raise UserError(f'{out}: exists already and is never overwritten; name another file')
  folders.make_folder(out.parent)


def check_any(sentences: Iterable[str]) -> Iterator[str]:
  """Returns the sentences, of which there must be one.

  Raises:
    UserError: There is none.
  """
  sentences = iter(sentences)
  for first in sentences:
    return itertools.chain([first], sentences)
  raise UserError('there is no text to train a vocabulary on: all documents are empty')


def first_sentences(texts: Iterable[str], count: int) -> Iterator[str]:
  """Returns the first `count` sentences of texts, each of at most MAX_SENTENCE_BYTES."""
  lines = (line for text in texts for line in text.splitlines())
  return itertools.islice((sentence for line in lines for sentence in _cut(line)), count)


def _cut(line: str) -> Iterator[str]:
  """Yields a line's pieces, cut at spaces, of at most MAX_SENTENCE_BYTES each."""
  data, start = line.encode(), 0
  while len(data) - start > MAX_SENTENCE_BYTES:
    end = data.rfind(b' ', start + 1, start + MAX_SENTENCE_BYTES)
    if end < 0:
      end = start + MAX_SENTENCE_BYTES
      while data[end] & 0xC0 == 0x80:  # Inside a UTF-8 character.
        end -= 1
    yield data[start:end].decode()
    start = end
    while data[start : start + 1] == b' ':
      start += 1
  if start < len(data):
    yield data[start:].decode()


def _explain(message: str, size: int) -> str:
  if limit := re.search(r'value <= (\d+)', message):
    return (
      f'the text is too small for a vocabulary of {size}: at most {limit[1]} pieces; '
      f'give --size {limit[1]} or less, or more text'
    )
  if floor := re.search(r'smaller than required_chars\. (\d+) vs (\d+)', message):
    return (
      f'a vocabulary of {floor[1]} cannot hold the {floor[2]} characters of this text; give --size '
      f'{floor[2]} or more'
    )
  return f'SentencePiece could not train a vocabulary of {size}: {message}'
