"""Folders: how a name becomes a place, the cache, locks, and failures of storage in words."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from laser_pax.errors import UserError

# Failures of storage that are not the program's fault. Libraries put some of them in words alone.
_STORAGE_ERRORS = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EROFS,
  errno.EIO,
  errno.ESTALE,
  errno.ENOTCONN,
  errno.EACCES,
  errno.EPERM,
  errno.EFBIG,
)
# The schemes of buckets that PAX's libraries can read and write.
_BUCKETS = ('gs', 's3')
# These come from file systems that have no locks, such as some of Lustre and of NFS.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


def resolve(folder: os.PathLike | str) -> str:
  """Returns the one name of a folder: absolute, with `~` expanded. A bucket's name stays.

  Each program resolves the names that its user gives, once, before it uses them. Libraries
  disagree about `~` and about relative names.

  Args:
    folder: A folder or file, local or in a bucket (`gs://...`).

  Raises:
    UserError: The name is empty or no text in UTF-8, or `~` names no home.
  """
  name = os.fspath(folder)
  try:
    name.encode()
  except UnicodeEncodeError as e:
    raise UserError(f'{shown(name)}: the name is no text in UTF-8; name another') from e
  scheme, is_address, _ = name.partition('://')
  if not is_address:
    return os.fspath(resolve_local(name))
  if scheme not in _BUCKETS:
    raise UserError(f'{name}: expected a local folder or a bucket, {" or ".join(_BUCKETS)}://...')
  return name


def resolve_local(path: os.PathLike | str) -> Path:
  """Returns a local path, absolute, with `~` expanded. Its name may be any bytes.

  Raises:
    UserError: The name is empty or a bucket's, or `~` names no home.
  """
  name = os.fspath(path)
  if not name or '\0' in name:
    raise UserError(f'{name!r} names no file or folder; name one')
  if '://' in name:
    raise UserError(f'{name}: expected a local file or folder; name one of this machine')
  expanded = os.path.expanduser(name)
  if name.startswith('~') and expanded == name:
    raise UserError(f'{shown(name)}: there is no such home folder; write the whole path')
  return Path(os.path.abspath(expanded))


def shown(path: os.PathLike | str) -> str:
  """Returns a path in one line of printable UTF-8. Bytes that are not UTF-8 become U+FFFD."""
  name = os.fsencode(path).decode('utf-8', 'replace')
  return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def cache_dir() -> Path:
  """Returns the folder for files that can be made again: `~/.cache/laser_pax`.

  The environment variable `XDG_CACHE_HOME` replaces `~/.cache`.

  Raises:
    UserError: There is neither that variable nor a home folder.
  """
  root = _cache_root()
  if root is None:
    raise UserError(
      'this user has no home folder: set XDG_CACHE_HOME to a folder that can be written'
    )
  return root / 'laser_pax'


def _cache_root() -> Path | None:
  if cache := os.environ.get('XDG_CACHE_HOME'):
    return resolve_local(cache)
  home = os.path.expanduser('~')
  return None if home == '~' else Path(home) / '.cache'


def compiled_dir() -> Path:
  """Returns the folder for compiled programs, those of this kind of processor.

  A home folder may be shared by machines, of which one cannot run what another compiled for itself.
  """
  lines = Path('/proc/cpuinfo').read_text().splitlines() if Path('/proc/cpuinfo').exists() else []
  features = sorted(
    {line for line in lines if line.startswith(('flags', 'Features', 'model name'))}
  )
  key = hashlib.sha256('\n'.join([platform.machine(), *features]).encode()).hexdigest()[:8]
  return cache_dir() / 'compiled' / key


def make_folder(folder: Path) -> None:
  """Makes a folder unless it exists.

  Raises:
    UserError: The folder cannot be made, or no file can be written to it.
  """
  is_cache = folder.is_relative_to(_cache_root() or os.devnull)
  remedy = (
    'set XDG_CACHE_HOME to a folder that can be written' if is_cache else 'name another folder'
  )
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(f'{shown(folder)}: cannot make this folder ({e.strerror}); {remedy}') from e
  if not os.access(folder, os.W_OK | os.X_OK):
    raise UserError(f'{shown(folder)}: no permission to write here; {remedy}')


@contextlib.contextmanager
def locked(path: Path, refusal: str | None = None) -> Iterator[TextIO]:
  """Waits until no other process holds a lock file, and holds it in the `with` block.

  A file system may have no locks. Then this says so, and goes on without one.

  Args:
    path: The lock file, made if missing. It is yielded, open to write.
    refusal: What to say where another process holds it, instead of waiting.

  Raises:
    UserError: Another process holds it, and there is a `refusal`.
  """
  with path.open('a') as file:  # Not 'w': the text may be that of who holds it.
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
      file.truncate(0)
    except BlockingIOError as e:
      raise UserError(refusal) from e
    except OSError as e:
      if e.errno not in _NO_LOCKS:
        raise
      print(
        f'note: {shown(path)} cannot be locked ({e.strerror}); start no second process there',
        file=sys.stderr,
      )
    yield file


def storage_failure(error: BaseException) -> str | None:
  """Returns a failure of storage in words, such as 'No space left on device', or None.

  Args:
    error: What was raised. What caused it is looked at too, and the words of each: libraries raise
      errors of their own kinds.
  """
  seen: set[int] = set()
  while error is not None and id(error) not in seen:
    seen.add(id(error))
    number = error.errno if isinstance(error, OSError) else None
    for known in _STORAGE_ERRORS:
      if number == known or os.strerror(known) in str(error):
        return os.strerror(known)
    error = error.__cause__ or error.__context__
  return None
