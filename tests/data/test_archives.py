"""Archives: none is taken for another, and damage is told."""

import gzip
import os
import tarfile

import pytest

from laser_pax.data.prepare import archives
from laser_pax.errors import UserError


def archive(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  file = path.parent / 'file.txt'
  file.write_bytes(content)
  with tarfile.open(path, 'w:gz') as tar:
    tar.add(file, 'folder/file.txt')
  file.unlink()
  return path


def contents(path, unpacked):
  found = []
  for plain, member in archives.read(path, unpacked):
    with plain.open('rb') as file:
      file.seek(member.offset)
      found.append((member.name, file.read(member.size)))
  return found


def test_archives_of_one_name_keep_their_own_contents(tmp_path):
  first = archive(tmp_path / 'a' / 'data.tar.gz', b'first')
  second = archive(tmp_path / 'b' / 'data.tar.gz', b'second')
  with archives.unpacking_beside(tmp_path / 'final') as unpacked:
    for _ in range(2):
      assert contents(first, unpacked) == [('folder/file.txt', b'first')]
      assert contents(second, unpacked) == [('folder/file.txt', b'second')]
  assert not unpacked.exists()


def test_an_archive_that_was_fetched_again_is_read_again(tmp_path):
  path = archive(tmp_path / 'data.tar.gz', b'old')
  assert contents(path, tmp_path) == [('folder/file.txt', b'old')]
  archive(path, b'new')
  os.utime(path, (1, 1))
  assert contents(path, tmp_path) == [('folder/file.txt', b'new')]


@pytest.mark.parametrize('damage', ['cut', 'changed', 'no gzip', 'no tar'])
def test_damage_is_told(tmp_path, damage):
  path = archive(tmp_path / 'data.tar.gz', os.urandom(10_000))
  data = bytearray(path.read_bytes())
  if damage == 'cut':
    data = data[:-2_000]
  elif damage == 'changed':
    data[15:400] = b'\x07' * 385
  elif damage == 'no gzip':
    data = b'text' * 100
  else:
    data = gzip.compress(b'text' * 1_000)
  path.write_bytes(data)
  with pytest.raises(UserError, match='data.tar.gz: a damaged archive, or not whole'):
    contents(path, tmp_path)
