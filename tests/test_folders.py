"""Names of folders, locks, and failures of storage in words."""

import errno
import fcntl
import os
import pathlib

import pytest

from laser_pax import folders
from laser_pax.errors import UserError


def test_a_folder_has_one_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  (tmp_path / 'link').symlink_to(tmp_path / 'target')
  named = {
    '~/x': 'home/x',
    'x': 'x',
    './x/../y': 'y',
    pathlib.Path('a b'): 'a b',
    'link/x': 'link/x',
    'x/': 'x',
    str(tmp_path / 'x'): 'x',
  }
  for name, place in named.items():
    assert folders.resolve(name) == str(tmp_path / place)
    assert folders.resolve(folders.resolve(name)) == folders.resolve(name)
  assert folders.resolve('gs://bucket/~/x') == 'gs://bucket/~/x'


@pytest.mark.parametrize('name', ['', '~nobody-has-this-name/x', 'caf\udce9', 'a\0b'])
def test_what_names_no_folder_is_refused(name):
  with pytest.raises(UserError):
    folders.resolve(name)


@pytest.mark.parametrize(
  ('name', 'expected'),
  [(b'caf\xe9', 'caf\ufffd'), ('two\nlines', 'two\\nlines'), ('\x1b[31m', '\\x1b[31m'), ('é', 'é')],
)
def test_a_name_is_shown_in_one_line(name, expected):
  assert folders.shown(os.fsdecode(name)) == expected


def test_without_a_home_the_cache_needs_its_variable(monkeypatch, tmp_path):
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
  for need in (folders.cache_dir, folders.compiled_dir):
    with pytest.raises(UserError, match='set XDG_CACHE_HOME'):
      need()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert folders.cache_dir() == tmp_path / 'laser_pax'


def test_a_cache_that_cannot_be_made_is_told_with_its_variable(monkeypatch, tmp_path):
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  monkeypatch.setenv('HOME', str(tmp_path / 'file'))
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='XDG_CACHE_HOME'):
    folders.make_folder(folders.cache_dir() / 'data')
  with pytest.raises(UserError, match='name another folder'):
    folders.make_folder(tmp_path / 'file' / 'x')


@pytest.mark.parametrize('number', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_without_locks_it_says_so_and_goes_on(tmp_path, monkeypatch, capsys, number):
  def refuse(*_):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, 'flock', refuse)
  done = []
  with folders.locked(tmp_path / 'x.lock'):
    done.append(1)
  assert done and 'cannot be locked' in capsys.readouterr().err


def test_other_failures_of_a_lock_are_raised(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(errno.EIO, 'x')

  monkeypatch.setattr(fcntl, 'flock', refuse)
  with pytest.raises(OSError, match='x'), folders.locked(tmp_path / 'x.lock'):
    pass


def test_failures_of_storage_are_told_from_others():
  """Libraries raise them as their own, with the words alone, or as the cause of another."""
  chained = ValueError('cannot save')
  chained.__cause__ = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
  assert folders.storage_failure(OSError(errno.EROFS, '')) == 'Read-only file system'
  assert folders.storage_failure(ValueError('x: No space left on device; y')) == (
    'No space left on device'
  )
  assert folders.storage_failure(chained) == 'Disk quota exceeded'
  loop = ValueError('x')
  loop.__context__ = KeyError('y')
  loop.__context__.__context__ = loop
  for other in (loop, ValueError('a dog'), FileNotFoundError(errno.ENOENT, 'no such file')):
    assert folders.storage_failure(other) is None
