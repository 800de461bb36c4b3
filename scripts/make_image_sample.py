"""Rebuilds laser_pax/data/sample/clipart.tar.gz from Debian's openclipart-png, byte for byte.

  apt-get download openclipart-png && dpkg-deb -x openclipart-png_*.deb package
  python scripts/make_image_sample.py package/usr/share/openclipart/png OUT

Twelve folders are twelve classes, of at most 220 pictures each. Pictures that are copies of others,
or above 256 KiB, are left out. Each is drawn on white, 64 x 64, as a JPEG file.
"""

import gzip
import hashlib
import io
import sys
import tarfile
from pathlib import Path

from PIL import Image

CLASSES = {
  'animals': 'animals',
  'arrows': 'shapes/arrows',
  'cards': 'recreation/games/cards',
  'flags': 'signs_and_symbols/flags',
  'food': 'food',
  'geography': 'geography',
  'icons': 'computer/icons',
  'office': 'office',
  'people': 'people',
  'stars': 'shapes/stars',
  'tools': 'tools',
  'transportation': 'transportation',
}
MOST_PICTURES, MOST_BYTES, SIDE = 220, 2**18, 64


def main(pictures: Path, out: Path) -> None:
  """Writes the archive to `out`."""
  out.mkdir(parents=True, exist_ok=True)
  data, seen = io.BytesIO(), set()
  with tarfile.open(fileobj=data, mode='w') as archive:
    for name, folder in CLASSES.items():
      for number, content in enumerate(_drawn(pictures / folder, seen)):
        member = tarfile.TarInfo(f'{name}/{number:03d}.jpg')
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
  # No time stamp and no file name in the header, so that a rebuild gives the same bytes.
  packed = io.BytesIO()
  with gzip.GzipFile(filename='', mode='wb', fileobj=packed, compresslevel=9, mtime=0) as file:
    file.write(data.getvalue())
  (out / 'clipart.tar.gz').write_bytes(packed.getvalue())


def _drawn(folder: Path, seen: set[str]) -> list[bytes]:
  """Returns the pictures of a class as JPEG files, spread over its folders."""
  kept = []
  for path in sorted(folder.rglob('*.png')):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest not in seen and path.stat().st_size <= MOST_BYTES:
      seen.add(digest)
      kept.append(path)
  step = max(1.0, len(kept) / MOST_PICTURES)
  chosen = [kept[int(i * step)] for i in range(min(len(kept), MOST_PICTURES))]
  return [_draw(path) for path in chosen]


def _draw(path: Path) -> bytes:
  picture = Image.open(path).convert('RGBA')
  picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
  page = Image.new('RGBA', (SIDE, SIDE), 'white')
  place = tuple((SIDE - size) // 2 for size in picture.size)
  page.alpha_composite(picture, place)
  data = io.BytesIO()
  page.convert('RGB').save(data, 'JPEG', quality=80, optimize=True)
  return data.getvalue()


if __name__ == '__main__':
  if len(sys.argv) != 3:
    sys.exit('usage: python scripts/make_image_sample.py FOLDER_OF_PICTURES OUT')
  main(Path(sys.argv[1]), Path(sys.argv[2]))
