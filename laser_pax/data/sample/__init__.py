"""The sample that ships: State of the Union addresses in allenai's C4 format, and a vocabulary.

221 addresses make the train split (2,286,223 tokens of the vocabulary, one EOS each included) and
12, spread over the years, the validation split (119,404). `scripts/make_sample.py` made the files;
LICENSE.md says where the text is from.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from laser_pax import folders
from laser_pax.data import sources
from laser_pax.data.datasets import C4
from laser_pax.data.prepare import c4

FOLDER = Path(__file__).parent
VOCAB = FOLDER / 'vocab.model'


def prepare_sample() -> sources.Source:
  """Prepares the sample under `~/.cache/laser_pax` unless it is there, in a few seconds.

  Several processes may do so at once: one works and the others wait for it.

  Raises:
    UserError: if the folder cannot be written.
  """
  files = sorted(FOLDER.glob('c4-*.json.gz'))
  # Another version of the sample gets another folder.
  key = hashlib.sha256(b''.join(file.read_bytes() for file in files)).hexdigest()[:8]
  data_dir = folders.cache_dir() / f'sample-{key}'
  if not (data_dir / C4.folder).exists():
    folders.make_folder(data_dir)
    with folders.locked(data_dir / 'sample.lock'):
      if not (data_dir / C4.folder).exists():
        c4.prepare(files, data_dir)
  return sources.Source(str(data_dir), str(VOCAB))


def find_source_or_sample(
  data_dir: str | None, vocab: str | None, vocab_size: int
) -> sources.Source:
  """As `sources.find_source`, with the sample where neither data nor vocabulary is named.

  Raises:
    UserError: as `sources.find_source`.
  """
  if sources.is_named(data_dir, vocab):
    return sources.find_source(C4, data_dir, vocab, vocab_size)
  source = prepare_sample()
  sources.check_vocab(source, vocab_size)
  return source
