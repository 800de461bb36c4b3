"""ReCoRD: a passage, and a sentence with a gap that one of the passage's names fills."""

import collections
import re
import string
from collections.abc import Sequence
from typing import Any

import datasets

_ARTICLES = re.compile(r'\b(a|an|the)\b')
_WITHOUT_PUNCTUATION = str.maketrans('', '', string.punctuation)


def distinct(rows: datasets.Dataset) -> datasets.Dataset:
  """Returns the documents with each entity and each answer once, in order."""
  return rows.map(
    lambda doc: {name: sorted(set(doc[name])) for name in ('entities', 'answers')},
    load_from_cache_file=False,
  )


def prompt(doc: dict[str, Any]) -> str:
  """Returns the passage, and its highlights as a list."""
  passage, *highlights = doc['passage'].strip().split('\n@highlight\n')
  return f'{passage}\n\n' + ''.join(f'  - {highlight}.\n' for highlight in highlights)


def options(doc: dict[str, Any]) -> list[str]:
  """Returns the sentence, once with each entity in its gap."""
  return [_filled(doc, entity) for entity in doc['entities']]


def answer(doc: dict[str, Any]) -> str:
  """Returns the sentence with its first answer."""
  return _filled(doc, doc['answers'][0])


def metrics(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
  """Returns SQuAD's F1 and exact match of the likeliest entity, each for its best answer."""
  likeliest = max(range(len(results)), key=lambda i: results[i][0])
  chosen = _words(doc['entities'][likeliest])
  right = [_words(text) for text in doc['answers']]
  return {
    'f1': max(_f1(chosen, words) for words in right),
    'em': float(max(chosen == words for words in right)),
  }


def _filled(doc: dict[str, Any], entity: str) -> str:
  return '  - ' + doc['query'].replace('@placeholder', entity)


def _words(text: str) -> list[str]:
  """Returns the words of a text in lower case, without punctuation and articles."""
  return _ARTICLES.sub(' ', text.lower().translate(_WITHOUT_PUNCTUATION)).split()


def _f1(chosen: Sequence[str], right: Sequence[str]) -> float:
  common = sum((collections.Counter(chosen) & collections.Counter(right)).values())
  return 2 * common / (len(chosen) + len(right)) if common else float(not chosen and not right)
