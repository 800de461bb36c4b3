"""The speech that ships with the tests, prepared, with a small vocabulary."""

import functools
import pathlib
import tempfile

import soundfile

from laser_pax.data import vocabulary
from laser_pax.data.prepare import librispeech

FOLDER = pathlib.Path(__file__).parent / 'speech'
VOCAB_SIZE = 40


def utterances(subset: str) -> dict[str, tuple]:
  """Returns samples and transcript of each utterance of a subset, by name."""
  (file,) = (FOLDER / subset).glob('*/*/*.trans.txt')
  lines = [line.split(' ', 1) for line in file.read_text().splitlines()]
  return {
    name: (soundfile.read(file.parent / f'{name}.flac', dtype='int16')[0], text)
    for name, text in lines
  }


@functools.cache
def prepared() -> tuple[str, str]:
  """Returns a data folder, and a vocabulary of VOCAB_SIZE pieces beside it."""
  data_dir = pathlib.Path(tempfile.mkdtemp(prefix='small_speech'))
  librispeech.prepare([FOLDER], data_dir)
  vocab = data_dir / 'vocab.model'
  subsets = ('train-clean-100', 'dev-clean')
  texts = [text for subset in subsets for _, text in utterances(subset).values()]
  vocabulary.train_vocabulary(texts, vocab, size=VOCAB_SIZE, sentences=100, character_coverage=1.0)
  return str(data_dir), str(vocab)
