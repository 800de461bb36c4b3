"""The TPU compiler, libtpu, in a cache folder of its own.

If libtpu can be imported on a machine without a TPU, jax hangs for minutes while it looks for one.
So libtpu is not installed in the environment that trains. Only a process that compiles for a TPU
knows its path.
"""

import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

from laser_pax import folders
from laser_pax.errors import UserError


class Release(NamedTuple):
  """A release of libtpu.

  Attributes:
    version: Its version.
    megabytes: The size of its wheel.
    sha256: The hash of its wheel, of each version of Python that has a wheel of its own.
  """

  version: str
  megabytes: int
  sha256: tuple[str, ...]


# The release that each jax asks for. That of the pinned one is also in requirements-tpu.txt.
_RELEASES = {
  '0.5.3': Release(
    '0.0.11.4', 131, ('cc18baad71d303737b2fe60cc1d6e50857119cb7ce6fab0b74eb102b3bded94e',)
  ),
  '0.10.2': Release(  # Python 3.11.
    '0.0.42.1', 213, ('4d9975c446f594b0b517510b3db2fc9df65acd9a08f253c638fff5eb6bce163e',)
  ),
  '0.12.0.1': Release(  # Python 3.12 and 3.13.
    '0.0.50.1',
    214,
    (
      '47bf18e64eeb4a190f5bbfb22815193ee25462de67420deb377b749ae133b167',
      'da3cb290d5a9b202dcbe95330523a017fe7090fb527c501e6b7820415827baa6',
    ),
  ),
}
# That of the installed jax. A jax without one here gets the pinned one's, which may not serve it.
RELEASE = _RELEASES.get(importlib.metadata.version('jax'), _RELEASES['0.5.3'])


def library() -> pathlib.Path:
  """Returns the path of libtpu.so: TPU_LIBRARY_PATH, else the file in the cache.

  Raises:
    UserError: The file does not exist.
  """
  variable = os.environ.get('TPU_LIBRARY_PATH')
  path = pathlib.Path(variable) if variable else _folder() / 'libtpu' / 'libtpu.so'
  if not path.is_file():
    raise UserError(
      f'the TPU compiler is not on this machine ({path}); fetch it once, {RELEASE.megabytes} MB, '
      'into a folder of its own: python -m laser_pax aot --fetch'
    )
  return path


def fetch() -> pathlib.Path:
  """Downloads libtpu with pip into the cache, unless it is there, and returns its path.

  One of several processes downloads it, and the others wait.

  Raises:
    UserError: pip could not download it.
  """
  target = _folder()
  if not _is_complete(target):
    target.parent.mkdir(parents=True, exist_ok=True)
    with folders.locked(target.with_name(f'{target.name}.lock')):
      if not _is_complete(target):
        _download(target)
  return target / 'libtpu' / 'libtpu.so'


def _is_complete(target: pathlib.Path) -> bool:
  return (target / 'libtpu' / 'libtpu.so').is_file()


def _download(target: pathlib.Path) -> None:
  """Has pip put libtpu into a folder, which appears only when it is complete."""
  with tempfile.TemporaryDirectory(dir=target.parent) as folder:
    requirement = pathlib.Path(folder) / 'requirement.txt'
    hashes = ' '.join(f'--hash=sha256:{sha256}' for sha256 in RELEASE.sha256)
    requirement.write_text(f'libtpu=={RELEASE.version} {hashes}\n')
    new = pathlib.Path(folder) / 'new'
    command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
    command += ['--no-deps', '--require-hashes', '--no-compile', '--target', str(new)]
    command += ['--requirement', str(requirement)]
    pip = subprocess.run(command, capture_output=True, text=True)
    if pip.returncode:
      reason = re.findall(r'ERROR: (.*)', pip.stderr) or pip.stderr.strip().splitlines()[-1:]
      raise UserError(f'pip could not fetch libtpu {RELEASE.version}: {" ".join(reason)}')
    shutil.rmtree(target, ignore_errors=True)  # An interrupted download may have left a part.
    new.rename(target)


def use() -> None:
  """Lets this process compile for TPUs. Its own computations run on the CPU.

  Call it before the process uses jax.

  Raises:
    UserError: libtpu is not on this machine.
  """
  path = library()
  os.environ['TPU_LIBRARY_PATH'] = str(path)
  os.environ['TPU_SKIP_MDS_QUERY'] = '1'  # This is no TPU machine, so it has no metadata server.
  os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = (
    '1'  # No chip is in use, so several processes may compile.
  )
  os.environ['JAX_PLATFORMS'] = 'cpu'


def _folder() -> pathlib.Path:
  return folders.cache_dir() / f'libtpu-{RELEASE.version}'
