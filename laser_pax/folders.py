"""The cache folder, and functions that make and lock folders."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from laser_pax.errors import UserError


def cache_dir() -> Path:
  """Returns the folder for files that can be made again: `~/.cache/laser_pax`.

  The environment variable `XDG_CACHE_HOME` replaces `~/.cache`.
  """
  return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'laser_pax'


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
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(f'{folder}: cannot make this folder ({e.strerror}); name another') from e
  if not os.access(folder, os.W_OK | os.X_OK):
    raise UserError(f'{folder}: no permission to write here; name another folder')


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
  """Waits until no other process holds a lock file, and holds it in the `with` block."""
  with path.open('w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield
