"""Tar archives as files that can be read at any place. Gzipped ones are unpacked once."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from laser_pax import folders
from laser_pax.errors import UserError

SUFFIXES = ('.tar', '.tar.gz', '.tgz')


class Member(NamedTuple):
  """A file in an archive.

  Attributes:
    name: Its name there.
    offset: Where its bytes begin.
    size: Number of its bytes.
  """

  name: str
  offset: int
  size: int


def read_at(path: Path, offset: int, size: int) -> bytes:
  """Returns bytes of a file, such as those of a member of a plain archive."""
  with path.open('rb') as file:
    file.seek(offset)
    return file.read(size)


def stem(path: Path) -> str:
  """Returns the name of an archive without its suffix."""
  return re.sub(r'(\.tar|\.tar\.gz|\.tgz)$', '', path.name, flags=re.IGNORECASE)


@contextlib.contextmanager
def unpacking_beside(final: Path) -> Iterator[Path]:
  """Gives a folder for unpacked archives, beside a data set, and removes it if all went well."""
  folder = final.with_name(f'{final.name}.unpacked')
  folder.mkdir(exist_ok=True)
  yield folder
  shutil.rmtree(folder)


def read(path: Path, folder: Path) -> Iterator[tuple[Path, Member]]:
  """Yields the files of an archive, each with the plain archive in which it lies.

  Args:
    path: The archive. If it is gzipped, it is unpacked, once.
    folder: Folder to unpack to.

  Raises:
    UserError: The archive is damaged or cut.
  """
  try:
    plain = _unzipped(path, folder)
    for member in members(plain):
      yield plain, member
  except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, OSError) as e:
    raise UserError(
      f'{folders.shown(path)}: a damaged archive, or not whole ({e}); fetch it again'
    ) from e


def _unzipped(path: Path, folder: Path) -> Path:
  if path.name.lower().endswith('.tar'):
    return path
  # Another archive of the same name, and one that was fetched again, has another folder.
  status = path.stat()
  key = f'{path} {status.st_size} {status.st_mtime_ns}'.encode()
  plain = folder / hashlib.sha256(key).hexdigest()[:8] / f'{stem(path)}.tar'
  if not plain.exists():
    plain.parent.mkdir(exist_ok=True)
    partial = plain.with_suffix('.partial')
    with gzip.open(path, 'rb') as source, partial.open('wb') as target:
      shutil.copyfileobj(source, target, 2**20)
    partial.replace(plain)
  return plain


def members(path: Path) -> Iterator[Member]:
  """Yields the files of a plain archive, and of the archives in it, from its headers alone.

  The members of an inner archive have its name as their first folder. Files whose names begin with
  a dot are passed over.

  Raises:
    EOFError: The archive is cut.
    tarfile.TarError: It is damaged.
  """
  with path.open('rb') as file:
    yield from _members(file, path.stat().st_size, 0, PurePosixPath())


def _members(file: BinaryIO, length: int, start: int, above: PurePosixPath) -> Iterator[Member]:
  with tarfile.open(fileobj=file, mode='r:') as archive:
    for member in archive:
      inner = PurePosixPath(member.name)
      if not member.isfile() or inner.name.startswith('.'):
        continue
      offset = start + member.offset_data
      if offset + member.size > length:
        raise EOFError(f'{member.name} is cut')
      if inner.suffix.lower() == '.tar':
        content = archive.extractfile(member)
        yield from _members(content, length, offset, PurePosixPath(inner.stem))
      else:
        yield Member(str(above / inner), offset, member.size)
