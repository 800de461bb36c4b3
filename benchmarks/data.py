"""Measures how fast one core prepares batches: `python benchmarks/data.py [DATASET ...]`.

Text is that of the sample. Images and speech are drawn here, of the sizes that ImageNet's and
LibriSpeech's have in the mean: 500 x 375 pixels in 110 kB, and 12.3 seconds.
"""

import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

from laser_pax.data import imagenet, librispeech, sample, text_lm, text_mlm, vocabulary
from laser_pax.data.datasets import C4, IMAGENET, LIBRISPEECH, WIKIPEDIA
from laser_pax.data.prepare import imagenet as prepare_imagenet
from laser_pax.data.prepare import librispeech as prepare_librispeech

# With so much noise an image's file has 110 kB.
WIDTH, HEIGHT, IMAGES, NOISE, QUALITY = 500, 375, 256, 24, 90
UTTERANCES, SECONDS = 128, 12.3

# What is measured: its name, the input, the batches to read, and the units of a batch.
Measured = tuple[str, object, int, Callable[[dict], int]]


def of_c4() -> Iterator[Measured]:
  """Yields the input of the decoders, in rows of 1,024 tokens."""
  source = sample.prepare_sample()
  stream = text_lm.train_input(
    data_dir=source.data_dir, vocab=source.vocab, batch_size=64, seq_len=1024, seed=0
  )
  yield 'tokens', stream, 60, lambda batch: batch.labels.size


def of_wikipedia() -> Iterator[Measured]:
  """Yields BERT's input, in rows of 512 tokens. A segment is a record."""
  stream = text_mlm.train_input(
    sample.prepare_records(), batch_size=64, seq_len=512, vocab_size=4096, seed=0
  )
  yield 'tokens', stream, 60, lambda batch: batch.labels.size
  yield 'segments', stream, 60, lambda batch: int(batch.segment_ids.max(1).sum())


def of_imagenet() -> Iterator[Measured]:
  """Yields the inputs of images to train and to evaluate on, of 224 x 224 pixels."""
  with tempfile.TemporaryDirectory() as folder:
    data_dir = _draw_images(pathlib.Path(folder))
    fields = dict(dataset=IMAGENET, data_dir=data_dir, batch_size=32, size=224, num_classes=2)
    augmented = dict(seed=0, mixup_alpha=0.2, augment_ops=2, augment_magnitude=10)
    streams = {
      'images to train on': imagenet.train_input(**fields, **augmented),
      'images to evaluate on': imagenet.eval_input(**fields, split='train', name='evaluation'),
    }
    for name, stream in streams.items():
      yield name, stream, 6, lambda batch: len(batch.image)


def of_librispeech() -> Iterator[Measured]:
  """Yields the input of speech, in rows of 20 seconds."""
  with tempfile.TemporaryDirectory() as folder:
    data_dir, vocab = _draw_speech(pathlib.Path(folder))
    stream = librispeech.train_input(
      name='train',
      folder=f'{data_dir}/{LIBRISPEECH.folder}',
      splits=('train_clean100',),
      vocab=vocab,
      batch_size=32,
      samples=320_000,
      labels=256,
      input_random_seed=0,
    )
    yield 'utterances', stream, 12, lambda batch: len(batch.speech)


INPUTS = {
  C4.name: of_c4,
  WIKIPEDIA.name: of_wikipedia,
  'imagenet': of_imagenet,
  LIBRISPEECH.name: of_librispeech,
}


def per_core_second(stream, batches: int, units: Callable[[dict], int]) -> float:
  """Returns the units that one core prepares in a second."""
  stream = stream.Instantiate()
  stream.get_next_padded()  # Fills the shuffle's buffer.
  start = time.process_time()
  total = sum(units(stream.get_next_padded()) for _ in range(batches))
  return total / (time.process_time() - start)


def _draw_images(folder: pathlib.Path) -> str:
  """Prepares images that decode as slowly as photographs. Returns the data folder."""
  import tensorflow as tf

  rng = np.random.default_rng(0)
  for number in range(IMAGES):
    coarse = rng.integers(0, 256, (12, 16, 3)).astype(np.float32)
    smooth = tf.image.resize(coarse, [HEIGHT, WIDTH], 'bicubic').numpy()
    noise = rng.normal(0, NOISE, smooth.shape)
    pixels = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    split = 'val' if number < 2 else 'train'
    file = folder / 'pictures' / split / f'class{number % 2}' / f'{number}.jpg'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(tf.io.encode_jpeg(pixels, quality=QUALITY).numpy())
  prepare_imagenet.prepare([folder / 'pictures'], folder / 'data')
  return str(folder / 'data')


def _draw_speech(folder: pathlib.Path) -> tuple[str, str]:
  """Prepares noise with transcripts of 180 characters. Returns data folder and vocabulary."""
  import soundfile

  rng = np.random.default_rng(0)
  chapter = folder / 'speech' / 'train-clean-100' / '1' / '1'
  chapter.mkdir(parents=True)
  words = ['THE', 'QUICK', 'BROWN', 'FOX', 'JUMPS', 'OVER', 'LAZY', 'DOG']
  lines = []
  for number in range(UTTERANCES):
    samples = rng.normal(0, 1_000, round(SECONDS * 16_000)).astype(np.int16)
    soundfile.write(chapter / f'1-1-{number:04d}.flac', samples, 16_000)
    lines.append(f'1-1-{number:04d} {" ".join(rng.choice(words, 35))}\n')
  (chapter / '1-1.trans.txt').write_text(''.join(lines))
  prepare_librispeech.prepare([folder / 'speech'], folder / 'data')
  vocab = folder / 'vocab.model'
  vocabulary.train_vocabulary(lines, vocab, size=50, sentences=UTTERANCES)
  return str(folder / 'data'), str(vocab)


if __name__ == '__main__':
  for dataset in sys.argv[1:] or INPUTS:
    for name, stream, batches, units in INPUTS[dataset]():
      rate = per_core_second(stream, batches, units)
      print(f'{dataset}: {rate:,.0f} {name} a second on one core', flush=True)
