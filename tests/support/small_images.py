"""Small pictures with known contents, as files and as prepared data."""

import io
import pathlib

import numpy as np
from PIL import Image

from laser_pax.data.prepare import imagenet

CLASSES = ('one', 'three', 'two')


def jpeg(pixels, mode='RGB', **options) -> bytes:
  """Returns a JPEG file of uint8 pixels."""
  data = io.BytesIO()
  Image.fromarray(np.asarray(pixels, np.uint8), mode).save(data, 'JPEG', quality=95, **options)
  return data.getvalue()


def png(pixels, mode) -> bytes:
  """Returns a PNG file of uint8 pixels."""
  data = io.BytesIO()
  Image.fromarray(np.asarray(pixels, np.uint8), mode).save(data, 'PNG')
  return data.getvalue()


def noise(seed, height=20, width=24) -> np.ndarray:
  """Returns smooth random pixels."""
  rng = np.random.default_rng(seed)
  coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
  return np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR))


def write_folders(folder: pathlib.Path, per_class=10, splits=('',)) -> pathlib.Path:
  """Writes class folders of different pictures. Returns the folder."""
  number = 0
  for split in splits:
    for name in CLASSES:
      (folder / split / name).mkdir(parents=True)
      for i in range(per_class):
        (folder / split / name / f'{i}.jpg').write_bytes(jpeg(noise(number)))
        number += 1
  return folder


def prepare(folder: pathlib.Path, per_class=10, splits=('',)) -> pathlib.Path:
  """Prepares such pictures. Returns the data folder."""
  write_folders(folder / 'pictures', per_class, splits)
  imagenet.prepare([folder / 'pictures'], folder / 'data')
  return folder / 'data'
