"""SentencePiece vocabularies of T5's layout: training one, and reading a model's size."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from laser_pax import folders
from laser_pax.errors import UserError

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2

# SentencePiece leaves longer sentences out of the training without an error.
MAX_SENTENCE_BYTES = 4192


def train_vocabulary(texts: Iterable[str], out: Path, *, size: int, sentences: int) -> None:
  """Trains a unigram SentencePiece model with T5's ids: pad 0, eos 1, unk 2, and no bos.

  The result depends on the texts and the size alone (one machine or another, one run or another).

  Args:
    texts: documents; each is cut at white space into sentences of at most `MAX_SENTENCE_BYTES`.
    out: the file to write; it appears only when complete.
    size: number of pieces V, control pieces included.
    sentences: at most this many sentences are used, the first ones.

  Raises:
    UserError: if `out` exists or cannot be written, or the texts hold too few distinct pieces.
  """
  check_new_file(out)
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=_take(_sentences(texts), sentences),
      model_writer=model,
      model_type='unigram',
      vocab_size=size,
      pad_id=PAD_ID,
      eos_id=EOS_ID,
      unk_id=UNK_ID,
      bos_id=-1,
      max_sentence_length=MAX_SENTENCE_BYTES,
      num_threads=16,  # Fixed, as it orders the sums of the EM steps and so the scores.
      minloglevel=2,
    )
  except RuntimeError as e:
    raise UserError(_explain(str(e), size)) from e
  partial = out.with_name(f'{out.name}.{os.getpid()}.partial')
  partial.write_bytes(model.getvalue())
  check_new_file(out)  # Another process may have made it meanwhile.
  partial.rename(out)


def vocabulary_size(path: str | Path) -> int:
  """Number of pieces V of a SentencePiece model, checked to have T5's layout.

  Raises:
    UserError: if the file is not a SentencePiece model, or its pad, eos or unk ids differ.
  """
  from etils import epath

  processor = sentencepiece.SentencePieceProcessor()
  try:
    processor.LoadFromSerializedProto(epath.Path(path).read_bytes())
  except (RuntimeError, OSError) as e:
    raise UserError(f'{path}: not a SentencePiece model ({e})') from e
  ids = (processor.pad_id(), processor.eos_id(), processor.unk_id())
  if ids != (PAD_ID, EOS_ID, UNK_ID):
    raise UserError(
      f"{path}: expected T5's layout, pad, eos, unk = {(PAD_ID, EOS_ID, UNK_ID)}, got {ids}; "
      'train one with: python -m laser_pax vocab'
    )
  return processor.vocab_size()


def check_new_file(out: Path) -> None:
  """Raises UserError unless `out` is a new file in a folder that can be written."""
  if out.exists():
    raise UserError(f'{out}: exists already and is never overwritten; name another file')
  folders.make_folder(out.parent)


def _sentences(texts: Iterable[str]) -> Iterator[str]:
  for text in texts:
    for line in text.splitlines():
      yield from _cut(line)


def _cut(line: str) -> Iterator[str]:
  """Cuts a line at spaces into pieces short enough for SentencePiece; no character is lost."""
  data = line.encode()
  while len(data) > MAX_SENTENCE_BYTES:
    end = data.rfind(b' ', 1, MAX_SENTENCE_BYTES)
    if end < 0:
      end = MAX_SENTENCE_BYTES
      while data[end] & 0xC0 == 0x80:  # Not inside a UTF-8 character.
        end -= 1
    yield data[:end].decode()
    data = data[end:].lstrip(b' ')
  if data:
    yield data.decode()


def _take(sentences: Iterator[str], count: int) -> Iterator[str]:
  for _, sentence in zip(range(count), sentences, strict=False):
    yield sentence


def _explain(message: str, size: int) -> str:
  if limit := re.search(r'value <= (\d+)', message):
    return (
      f'the text is too small for a vocabulary of {size}: at most {limit[1]} pieces; '
      f'give --size {limit[1]} or less, or more text'
    )
  if floor := re.search(r'smaller than required_chars\. (\d+) vs (\d+)', message):
    return f'a vocabulary of {floor[1]} cannot hold the {floor[2]} characters of this text'
  return f'SentencePiece could not train a vocabulary of {size}: {message}'
