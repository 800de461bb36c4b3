"""Measures how fast one core prepares batches.

`python benchmarks/data.py` reads the text of the sample. `python benchmarks/data.py images` reads
images of ImageNet's mean size, 500 x 375 in 110 kB, which it draws itself.
"""

import pathlib
import sys
import tempfile
import time

import numpy as np

from laser_pax.data import imagenet, sample, text_lm
from laser_pax.data.datasets import IMAGENET

SEQ_LEN, BATCH_SIZE, BATCHES = 1024, 64, 60
WIDTH, HEIGHT, IMAGES, IMAGE_BATCH, IMAGE_BATCHES = 500, 375, 256, 32, 6
# With so much noise a file has 110 kB.
NOISE, QUALITY = 24, 90


def tokens_per_core_second() -> float:
  """Returns the tokens a second that one core prepares of the sample, in rows of 1,024."""
  source = sample.prepare_sample()
  fields = dict(batch_size=BATCH_SIZE, seq_len=SEQ_LEN, seed=0)
  stream = text_lm.train_input(data_dir=source.data_dir, vocab=source.vocab, **fields).Instantiate()
  return _per_core_second(stream, BATCHES, BATCH_SIZE * SEQ_LEN)


def images_per_core_second() -> dict[str, float]:
  """Returns the images a second that one core prepares, to train on and to evaluate on."""
  with tempfile.TemporaryDirectory() as folder:
    data_dir = _draw_images(pathlib.Path(folder))
    fields = dict(
      dataset=IMAGENET, data_dir=data_dir, batch_size=IMAGE_BATCH, size=224, num_classes=2
    )
    augmented = dict(seed=0, mixup_alpha=0.2, augment_ops=2, augment_magnitude=10)
    streams = {
      'to train on': imagenet.train_input(**fields, **augmented),
      'to evaluate on': imagenet.eval_input(**fields, split='train', name='evaluation'),
    }
    return {
      name: _per_core_second(config.Instantiate(), IMAGE_BATCHES, IMAGE_BATCH)
      for name, config in streams.items()
    }


def _per_core_second(stream, batches: int, units: int) -> float:
  stream.get_next_padded()  # Fills the shuffle's buffer.
  start = time.process_time()
  for _ in range(batches):
    stream.get_next_padded()
  return batches * units / (time.process_time() - start)


def _draw_images(folder: pathlib.Path) -> str:
  """Prepares images that decode as slowly as photographs. Returns the data folder."""
  import tensorflow as tf

  from laser_pax.data.prepare import imagenet as prepare_imagenet

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


if __name__ == '__main__':
  if sys.argv[1:] == ['images']:
    for kind, rate in images_per_core_second().items():
      print(f'{rate:,.0f} images a second on one core, {kind}')
  else:
    print(f'{tokens_per_core_second():,.0f} tokens a second on one core')
