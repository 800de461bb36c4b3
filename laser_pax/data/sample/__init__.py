"""The sample that ships: State of the Union addresses in allenai's C4 format, and a vocabulary.

221 addresses make the train split (2,286,223 tokens of the vocabulary, one EOS each included) and
12, spread over the years, the validation split (119,404). `scripts/make_sample.py` made the files;
LICENSE.md says where the text is from.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from laser_pax.data import folders, paths, prepare

FOLDER = Path(__file__).parent
VOCAB = FOLDER / 'vocab.model'


def prepare_sample() -> paths.Source:
  """Prepares the sample under `~/.cache/laser_pax` unless it is there, in a few seconds.

  Several processes may do so at once: one works and the others wait for it.

  Raises:
    UserError: if the folder cannot be written.
  """
  files = sorted(FOLDER.glob('c4-*.json.gz'))
  # Another version of the sample gets another folder.
  key = hashlib.sha256(b''.join(file.read_bytes() for file in files)).hexdigest()[:8]
  data_dir = paths.cache_dir() / f'sample-{key}'
  if not (data_dir / paths.DATASET_FOLDER).exists():
    folders.make_folder(data_dir)
    with folders.locked(data_dir / 'sample.lock'):
      if not (data_dir / paths.DATASET_FOLDER).exists():
        prepare.prepare(files, data_dir)
  return paths.Source(str(data_dir), str(VOCAB))
