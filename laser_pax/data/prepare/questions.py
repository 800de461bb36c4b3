"""Questions of our own in the form of BoolQ, made by rule from texts: does a sentence follow?

A row's passage is a sentence, and its question asks whether another sentence comes next. In half of
the rows it does. In the others the second sentence is that of another pair. The rows show that a
fine-tuning works. They are no part of SuperGLUE, and say nothing of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

# Shorter sentences are headings and the like, and longer ones do not fit a small row.
_WORDS = range(5, 13)
PIECE = 50
_BETWEEN_SENTENCES = r'(?<=[.?!]) +(?=[A-Z])'


def write(texts: Iterable[str], path: Path, count: int) -> None:
  """Writes rows as lines of JSON, in the form of BoolQ's own files.

  Args:
    texts: Texts, each of which gives one pair of sentences at most.
    path: File to write, such as BoolQ/train.jsonl. Its folder is made if missing.
    count: Number of rows, at most as many as texts.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [json.dumps(row) for row in rows(texts, count)]
  path.write_text('\n'.join(lines) + '\n', 'utf-8')


def rows(texts: Iterable[str], count: int) -> Iterator[dict[str, object]]:
  """Yields rows whose answer is true and false in turn.

  Args:
    texts: Texts, each of which gives one pair of sentences at most.
    count: Number of rows.

  Raises:
    ValueError: The texts give fewer pairs.
  """
  pairs = [pair for pair in map(_pair, texts) if pair][:count]
  if len(pairs) < count:
    raise ValueError(f'expected texts with {count} pairs of sentences, got {len(pairs)}')
  for number, (first, second) in enumerate(pairs):
    is_next = number % 2 == 0
    other = second if is_next else pairs[(number + 2) % count][1]
    question = f'does "{other}" come next'
    yield {'question': question, 'passage': first, 'idx': number, 'label': is_next}


def pieces(texts: Iterable[str]) -> Iterator[str]:
  """Yields pieces of texts of PIECE sentences: so few texts give many pairs."""
  for text in texts:
    sentences = re.split(_BETWEEN_SENTENCES, text)
    for begin in range(0, len(sentences), PIECE):
      yield ' '.join(sentences[begin : begin + PIECE])


def _pair(text: str) -> tuple[str, str] | None:
  """Returns two sentences of a text that follow each other, the first pair that is short enough."""
  sentences = re.split(_BETWEEN_SENTENCES, text)
  for first, second in zip(sentences[:-1], sentences[1:], strict=True):
    if len(first.split()) in _WORDS and len(second.split()) in _WORDS:
      return first, second
  return None
