"""The images of the sources: ImageNet's own archives, and folders or archives of class folders.

An image is known by where its bytes lie: a file, an offset and a size. So archives are not
unpacked, but for those that are gzipped.

| source | split | class |
|---|---|---|
| ILSVRC2012_img_train.tar, or its inner n*.tar | train | the name of the inner archive |
| ILSVRC2012_img_val.tar | validation | by its number, from the devkit or a list of labels |
| imagenetv2-matched-frequency.tar.gz | test | the folder, a number |
| CLASS/image, in folders, .tar, .tar.gz | by a folder train, val or test above it | the folder |
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from laser_pax import folders
from laser_pax.data.prepare import archives, files
from laser_pax.errors import UserError

PICTURES = ('.jpg', '.jpeg', '.png')
DEVKIT = 'ILSVRC2012_devkit_t12.tar.gz'
LABELS = 'imagenet2012_validation_labels.txt'

_SPLITS = {'train': 'train', 'val': 'validation', 'validation': 'validation', 'test': 'test'}
_VALIDATION_IMAGE = re.compile(r'ILSVRC2012_val_(\d{8})\.JPEG')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expected:
  """What an archive of ImageNet must hold.

  Attributes:
    split: Its split.
    images: Number of its images.
    size: Its bytes, or None where that is not checked.
  """

  split: str
  images: int
  size: int | None = None


EXPECTED = {
  'ILSVRC2012_img_train.tar': Expected(split='train', images=1_281_167, size=147_897_477_120),
  'ILSVRC2012_img_val.tar': Expected(split='validation', images=50_000, size=6_744_924_160),
  'imagenetv2-matched-frequency.tar.gz': Expected(split='test', images=10_000),
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Image:
  """An image in a source.

  Attributes:
    split: The split that its place names, or None.
    label: Name of its class. In validation images of ImageNet it is their number.
    name: The name that its record gets.
    file: File that holds it.
    offset: Where it begins there.
    size: Its bytes.
  """

  split: str | None
  label: str
  name: str
  file: Path
  offset: int
  size: int

  def read(self) -> bytes:
    """Returns its bytes."""
    return archives.read_at(self.file, self.offset, self.size)


def is_source(path: Path) -> bool:
  """Whether a file's name is that of a source."""
  name = path.name.lower()
  return name.endswith((*archives.SUFFIXES, *PICTURES)) or path.name == LABELS


def find_images(sources: files.Sources, unpacked: Path) -> list[Image]:
  """Returns the images of the sources, with the classes of ImageNet's validation images.

  Args:
    sources: What the search found.
    unpacked: Folder for archives that are gzipped. They take their full size there.

  Raises:
    UserError: An archive is damaged or not whole, or there are no labels of validation images.
  """
  images: list[Image] = []
  for path in sources.taken:
    if path.name in (DEVKIT, LABELS):
      continue
    own = list(_images_of(path, unpacked))
    _check_count(path, len(own))
    images += own
  return _with_labels(images, sources.taken)


def _images_of(path: Path, unpacked: Path) -> Iterator[Image]:
  if not path.name.lower().endswith(archives.SUFFIXES):
    # The three last parts of a file's name: its split's folder, its class's, and its own.
    yield _image(PurePosixPath(*path.parts[-3:]), path, 0, path.stat().st_size)
    return
  _check_size(path)
  for plain, member in archives.read(path, unpacked):
    if member.name.lower().endswith(PICTURES):
      place = PurePosixPath(archives.stem(path)) / member.name
      yield _image(place, plain, member.offset, member.size)


def _image(place: PurePosixPath, file: Path, offset: int, size: int) -> Image:
  """Returns the image of a place, such as train/CLASS/NAME."""
  split, label, name = None, place.parts[-2] if len(place.parts) > 1 else '', place.name
  for part in place.parts[:-2]:
    split = _SPLITS.get(part.lower(), 'test' if part.startswith('imagenetv2') else split)
  has_class = len(place.parts) > 2 and place.parts[-3].lower() in _SPLITS
  match = _VALIDATION_IMAGE.fullmatch(place.name)
  if match and not has_class and not re.fullmatch(r'n\d{8}', label):
    split, label = 'validation', match[1]
  elif re.fullmatch(r'n\d{8}_\d+\.JPEG', name):
    split = split or 'train'
  else:
    name = f'{label}/{name}'
  return Image(split=split, label=label, name=name, file=file, offset=offset, size=size)


def _check_size(path: Path) -> None:
  expected = EXPECTED.get(path.name)
  size = path.stat().st_size
  if expected and expected.size and size != expected.size:
    raise UserError(
      f'{folders.shown(path)}: expected {expected.size:,} bytes, got {size:,}: fetch it again'
    )


def _check_count(path: Path, count: int) -> None:
  expected = EXPECTED.get(path.name)
  if expected and count != expected.images:
    raise UserError(
      f'{folders.shown(path)}: expected {expected.images:,} images, got {count:,}: fetch it again, '
      'or give its class folders in place of the archive'
    )


def _with_labels(images: Sequence[Image], sources: Sequence[Path]) -> list[Image]:
  """Returns the images, those of ImageNet's validation archive with the names of their classes."""
  if not any(_is_numbered(image) for image in images):
    return list(images)
  labels = next((f(p) for p in sources for n, f in _READERS.items() if p.name == n), None)
  if labels is None:
    raise UserError(
      f'validation images have no labels: expected {DEVKIT} (2.5 MB), or {LABELS}, a class such as '
      'n01440764 a line; name one of them too'
    )
  numbers = [int(image.label) for image in images if _is_numbered(image)]
  if max(numbers) > len(labels):
    raise UserError(f'{len(labels):,} labels for validation images up to number {max(numbers):,}')
  return [
    dataclasses.replace(image, label=labels[int(image.label) - 1]) if _is_numbered(image) else image
    for image in images
  ]


def _is_numbered(image: Image) -> bool:
  return _VALIDATION_IMAGE.fullmatch(image.name) is not None


def _read_devkit(path: Path) -> list[str]:
  """Returns the classes of the validation images, in order, from ImageNet's devkit."""
  import scipy.io

  try:
    with tarfile.open(path) as archive:
      contents = {
        PurePosixPath(member.name).name: archive.extractfile(member).read()
        for member in archive
        if member.isfile() and member.name.endswith(('meta.mat', 'validation_ground_truth.txt'))
      }
    synsets = scipy.io.loadmat(io.BytesIO(contents['meta.mat']), squeeze_me=True)['synsets']
    names = {int(row['ILSVRC2012_ID']): str(row['WNID']) for row in synsets}
    truth = contents['ILSVRC2012_validation_ground_truth.txt'].split()
    return [names[int(number)] for number in truth]
  except (tarfile.TarError, EOFError, KeyError, ValueError, OSError) as e:
    raise UserError(f'{folders.shown(path)}: no devkit of ImageNet ({e!r}); fetch it again') from e


def _read_labels(path: Path) -> list[str]:
  return path.read_text('utf-8').split()


_READERS = {DEVKIT: _read_devkit, LABELS: _read_labels}


def sort_key(image: Image) -> bytes:
  """Returns a key that orders images by their names' bytes."""
  return os.fsencode(image.name)
