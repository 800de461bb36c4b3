"""The samples that ship: State of the Union addresses with vocabularies, and clip art.

The addresses are in allenai's C4 format. The train split has 221 of them, with 2,286,223 tokens of
the vocabulary. The validation split has 12, spread over the years, with 119,404 tokens. Both counts
include one EOS for each address.
The clip art is 2,229 pictures, 64 x 64, of 12 classes.

`scripts/make_sample.py` and `scripts/make_image_sample.py` made the files; LICENSE.md states the
sources.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from laser_pax import folders
from laser_pax.data import sources, vocabulary
from laser_pax.data.datasets import C4, IMAGENET, LIBRISPEECH, SUPER_GLUE, WIKIPEDIA
from laser_pax.data.prepare import c4

FOLDER = Path(__file__).parent
VOCAB = FOLDER / 'vocab.model'
WORDPIECE = FOLDER / 'vocab.txt'
CLIP_ART = FOLDER / 'clipart.tar.gz'
# Rows of each split of our questions.
QUESTIONS = 32


def prepare_sample() -> sources.Source:
  """Prepares the sample under `~/.cache/laser_pax`, unless it exists, and returns its source.

  This takes a few seconds. Several processes may call it at once: one works, and the rest wait.

  Raises:
    UserError: The folder cannot be written.
  """
  files = _texts()
  data_dir = _folder(files, 'sample')
  _once(data_dir / C4.folder, data_dir, lambda: c4.prepare(files, data_dir))
  return sources.Source(str(data_dir), str(VOCAB))


def prepare_records() -> str:
  """Makes records for BERT from the sample under `~/.cache/laser_pax`, unless they are there.

  It takes half a minute.

  Returns:
    The folder of the records.

  Raises:
    UserError: The folder cannot be written.
  """
  from laser_pax.data.prepare import wikipedia

  data_dir = _folder([*_texts(), WORDPIECE], 'records')
  folder = data_dir / WIKIPEDIA.folder
  _once(folder, data_dir, lambda: wikipedia.prepare(_texts(), data_dir, vocab=WORDPIECE, copies=1))
  return str(folder)


def prepare_questions() -> str:
  """Makes questions in the form of BoolQ from the addresses, under `~/.cache/laser_pax`, once.

  Each split has QUESTIONS rows. They are our own (data/prepare/questions.py), not SuperGLUE's.

  Returns:
    The folder that contains the data set's folder.

  Raises:
    UserError: The folder cannot be written.
  """
  from laser_pax.data import records
  from laser_pax.data.prepare import questions, superglue

  data_dir = folders.cache_dir() / 'questions-1'
  source = data_dir / 'source'

  def make() -> None:
    texts = prepare_sample().data_dir
    for split, name in {'train': 'train.jsonl', 'validation': 'val.jsonl'}.items():
      pieces = questions.pieces(records.read_texts(texts, C4, split))
      questions.write(pieces, source / 'BoolQ' / name, QUESTIONS)
    superglue.prepare([source], data_dir)

  _once(data_dir / SUPER_GLUE['boolq'].folder, data_dir, make)
  return str(data_dir)


def prepare_images() -> str:
  """Prepares the clip art under `~/.cache/laser_pax`, unless it is there.

  Returns:
    The folder that contains the data set's folder.

  Raises:
    UserError: The folder cannot be written.
  """
  from laser_pax.data.prepare import imagenet

  data_dir = _folder([CLIP_ART], 'images')
  _once(data_dir / IMAGENET.folder, data_dir, lambda: imagenet.prepare([CLIP_ART], data_dir))
  return str(data_dir)


def prepare_speech(vocab_size: int) -> sources.Source:
  """Fetches Asterisk's prompts, and prepares them under `~/.cache/laser_pax`, unless it was done.

  It takes a minute, and 18 MB are fetched by apt-get.

  Args:
    vocab_size: V, the pieces of the vocabulary that is trained on the transcripts.

  Raises:
    UserError: The prompts cannot be fetched, or the folder cannot be written.
  """
  from laser_pax.data import records
  from laser_pax.data.prepare import librispeech, prompts

  data_dir = folders.cache_dir() / 'prompts-2'
  vocab = data_dir / f'vocab-{vocab_size}.model'
  source = data_dir / 'source'

  def train_vocabulary() -> None:
    texts = records.read_texts(data_dir, LIBRISPEECH, 'train_clean100')
    vocabulary.train_vocabulary(
      texts, vocab, size=vocab_size, sentences=10**6, character_coverage=1.0
    )

  _once(source, data_dir, lambda: prompts.fetch(source))
  _once(data_dir / LIBRISPEECH.folder, data_dir, lambda: librispeech.prepare([source], data_dir))
  _once(vocab, data_dir, train_vocabulary)
  return sources.Source(str(data_dir), str(vocab))


def _once(made: Path, data_dir: Path, make: Callable[[], object]) -> None:
  """Makes what is not there. One of several processes does it, and the others wait."""
  if not made.exists():
    folders.make_folder(data_dir)
    with folders.locked(data_dir / 'sample.lock'):
      if not made.exists():
        make()


def _texts() -> list[Path]:
  return sorted(FOLDER.glob('c4-*.json.gz'))


def _folder(files: list[Path], kind: str) -> Path:
  """Returns the cache's folder for what is made of these files. Each version has its own."""
  key = hashlib.sha256(b''.join(file.read_bytes() for file in files)).hexdigest()[:8]
  return folders.cache_dir() / f'{kind}-{key}'


def find_source_or_sample(
  data_dir: str | None, vocab: str | None, vocab_size: int
) -> sources.Source:
  """Returns the source by `sources.find_source`, or the sample if nothing is named.

  Args:
    data_dir: The experiment's own data folder, or None.
    vocab: The experiment's own SentencePiece model, or None.
    vocab_size: V, the number of pieces that the model expects.

  Raises:
    UserError: Data or vocabulary is missing, or the vocabulary does not have V pieces.
  """
  if sources.is_named(data_dir, vocab):
    return sources.find_source(C4, data_dir, vocab, vocab_size)
  source = prepare_sample()
  sources.check_vocab(source, vocab_size)
  return source
