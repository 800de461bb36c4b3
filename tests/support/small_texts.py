"""Small texts, and files of them in the form of C4."""

import gzip
import json

WORDS = (
  'the',
  'state',
  'of',
  'our',
  'union',
  'is',
  'strong',
  'and',
  'its',
  'people',
  'are',
  'free',
)


def text(number: int) -> str:
  """Returns a unique document: its number, and 3 to 40 words."""
  length = 3 + number * 7 % 38
  return ' '.join([f'Number {number}:', *(WORDS[(number + i) % len(WORDS)] for i in range(length))])


def write_gz(path, texts):
  """Writes texts in the form of allenai's C4."""
  with gzip.open(path, 'wt') as file:
    for t in texts:
      file.write(json.dumps({'text': t, 'timestamp': '2019', 'url': 'u'}) + '\n')
