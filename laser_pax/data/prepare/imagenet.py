"""Converts images into TFDS data sets of the layouts imagenet2012/5.1.0 and imagenet_v2.

All images are listed first (image_files.py), and then written shard by shard (shards.py).
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import Progress

from laser_pax import folders
from laser_pax.data.datasets import IMAGENET, IMAGENET_V2, DatasetSpec
from laser_pax.data.prepare import archives, files, image_files, parts, pictures, reports, shards
from laser_pax.data.prepare.image_files import Image
from laser_pax.errors import UserError

COPY, LEAK = 'a copy of another image', 'a copy of an image to evaluate on'


class LeftOut(NamedTuple):
  """An image that was left out.

  Attributes:
    name: Its name.
    reason: Why.
  """

  name: str
  reason: str


def prepare(
  source_paths: Sequence[str | Path],
  data_dir: str | Path,
  *,
  validation_fraction: float = 0.1,
  progress: Progress | None = None,
) -> Path:
  """Writes `data_dir/imagenet2012/5.1.0`; and of test images `imagenet_v2/matched-frequency/3.0.0`.

  Sources are those of image_files.py. ImageNet's archives are taken as they are. Class folders that
  no folder assigns to a split are divided: images with the same content count once. In the order of
  content's hash, each k-th of a class goes to validation, where k = round(1 / fraction). Where
  folders name the splits, training images that are also validation or test images are left out.

  The result depends on the sources and the fraction alone. Interruptions do not change it.

  Args:
    source_paths: Files and folders.
    data_dir: Local folder for data sets, made if missing.
    validation_fraction: Share of validation images, in (0, 0.5], where nothing names them.
    progress: Progress bar, which counts bytes of images.

  Returns:
    The folder of the finished data set; that of ImageNet-v2 if there are test images alone.

  Raises:
    UserError: A data set exists already, or the folder cannot be written. An archive is damaged or
      lacks images. There are no labels. Or a split would be empty.
  """
  if not 1e-9 <= validation_fraction <= 0.5:
    raise UserError(f'validation fraction {validation_fraction}: expected more than 0, at most 0.5')
  finals = {spec.name: parts.dataset_folder(spec, data_dir) for spec in (IMAGENET, IMAGENET_V2)}
  final = finals[IMAGENET.name]
  known = (*image_files.PICTURES, *archives.SUFFIXES)
  sources = files.find_sources(source_paths, final, image_files.is_source, known)
  for finished in finals.values():
    if finished.exists() and not _is_made_of(finished, sources):
      parts.check_new(finished)
  folders.make_folder(final.parent)
  with (
    parts.writing_to(final.parent),
    folders.locked(final.with_name(f'{final.name}.lock')),
    archives.unpacking_beside(final) as unpacked,
  ):
    images = image_files.find_images(sources, unpacked)
    images, left_out = _divided(images, round(1 / validation_fraction))
    progress = progress or Progress(disable=True)
    task = progress.add_task('preparing', total=sum(image.size for image in images))
    given = _by_dataset(images)
    if all(finals[spec.name].exists() for spec in given):
      parts.check_new(finals[next(iter(given)).name])
    for spec, own in given.items():
      if not finals[spec.name].exists():  # Else a run that was stopped has finished it.
        conversion = _Conversion(spec, finals[spec.name], own, _names(images))
        conversion.run(sources, left_out, lambda size: progress.advance(task, size))
      left_out = []
  return finals[next(iter(given)).name]


def _is_made_of(final: Path, sources: files.Sources) -> bool:
  """Returns whether a finished data set was made of the same files."""
  report = parts.read_json(final / reports.FILE)
  return report.get('sources') == [{'path': folders.shown(path)} for path in sources.taken]


def _by_dataset(images: Sequence[Image]) -> dict[DatasetSpec, list[Image]]:
  """Returns the images of each data set that there are images of.

  Raises:
    UserError: One of its splits has none.
  """
  by_split: dict[str, list[Image]] = collections.defaultdict(list)
  for image in images:
    by_split[image.split].append(image)
  given = {
    spec: [image for split in spec.splits for image in by_split[split]]
    for spec in (IMAGENET, IMAGENET_V2)
  }
  for spec in [spec for spec, own in given.items() if own]:
    for split in spec.splits:
      if not by_split[split]:
        raise UserError(f'there are no images of the split {split}: {_expected(split)}')
  return {spec: own for spec, own in given.items() if own}


def _expected(split: str) -> str:
  """Returns, in words, which sources give a split."""
  archive, expected = next((n, e) for n, e in image_files.EXPECTED.items() if e.split == split)
  return (
    f'expected {archive} ({expected.images:,} images), or images as {split}/CLASS/NAME.jpg; name '
    'them too'
  )


def _names(images: Iterable[Image]) -> list[str]:
  """Returns the names of the classes, in the order of their numbers.

  Test images may have the numbers for names, as ImageNet-v2 has.

  Raises:
    UserError: There are fewer than two, or test images have others.
  """
  trained = {image.label for image in images if image.split != 'test'}
  tested = {image.label for image in images if image.split == 'test'}
  own = trained or tested
  if len(own) < 2:
    raise UserError(f'expected images of at least two classes, got {", ".join(own) or "none"}')
  is_numbered = all(map(str.isdecimal, own))
  if is_numbered and not trained:
    return [str(number) for number in range(max(map(int, own)) + 1)]
  names = sorted(own, key=int if is_numbered else os.fsencode)
  known = {*names, *map(str, range(len(names)))}
  if tested - known:
    raise UserError(
      f'test images have classes that others lack, such as {min(tested - known)}: give their '
      'folders the names of the classes, or their numbers'
    )
  return names


def _divided(images: list[Image], every: int) -> tuple[list[Image], list[LeftOut]]:
  """Returns the images with their splits, without copies, and what was left out.

  Archives of ImageNet are taken as they are.
  """
  given = {archives.stem(image.file) for image in images}
  if given <= {archives.stem(Path(name)) for name in image_files.EXPECTED}:
    return images, []
  images = sorted(images, key=image_files.sort_key)
  hashes = [hashlib.sha256(image.read()).hexdigest() for image in images]
  if all(image.split in (None, 'test') for image in images):
    return _divided_by_hash(images, hashes, every)
  evaluated = {h for h, image in zip(hashes, images, strict=True) if _split_of(image) != 'train'}
  kept, left_out = [], []
  for image, digest in zip(images, hashes, strict=True):
    if _split_of(image) == 'train' and digest in evaluated:
      left_out.append(LeftOut(image.name, LEAK))
    else:
      kept.append(_in_split(image, _split_of(image)))
  return kept, left_out


def _split_of(image: Image) -> str:
  return image.split or 'train'


def _divided_by_hash(
  images: list[Image], hashes: list[str], every: int
) -> tuple[list[Image], list[LeftOut]]:
  kept = [image for image in images if image.split == 'test']
  seen = {h for h, image in zip(hashes, images, strict=True) if image.split == 'test'}
  classes: dict[str, list[tuple[str, Image]]] = collections.defaultdict(list)
  left_out = []
  for digest, image in zip(hashes, images, strict=True):
    if image.split == 'test':
      continue
    if digest in seen:
      left_out.append(LeftOut(image.name, COPY))
      continue
    seen.add(digest)
    classes[image.label].append((digest, image))
  for own in classes.values():
    for number, (_, image) in enumerate(sorted(own, key=lambda pair: pair[0])):
      kept.append(_in_split(image, 'validation' if number % every == 1 else 'train'))
  return kept, left_out


def _in_split(image: Image, split: str) -> Image:
  return dataclasses.replace(image, split=split)


class _Conversion(shards.Conversion):
  """An image is a record."""

  UNIT = 'images'
  SHARD_BYTES = 2**27

  def __init__(self, spec: DatasetSpec, final: Path, images: Sequence[Image], names: list[str]):
    self.labels = {name: number for number, name in enumerate(names)}
    super().__init__(spec, final, images, repr(names))

  def convert(self, item: Image) -> shards.Converted:
    picture = pictures.as_jpeg(item.read())
    record = None if picture.jpeg is None else self._record(item, picture.jpeg)
    return shards.Converted(record, picture.note)

  def features(self) -> Any:
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
      {
        'image': tfds.features.Image(encoding_format='jpeg'),
        'label': tfds.features.ClassLabel(names=list(self.labels)),
        'file_name': tfds.features.Text(),
      }
    )

  def _record(self, image: Image, jpeg: bytes) -> bytes:
    import tensorflow as tf

    def of_bytes(value: bytes) -> tf.train.Feature:
      return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    label = self.labels[image.label] if image.label in self.labels else int(image.label)
    feature = {
      'image': of_bytes(jpeg),
      'label': tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
      'file_name': of_bytes(os.fsencode(image.name)),
    }
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    return example.SerializeToString(deterministic=True)
