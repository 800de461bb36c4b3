"""The TPU compiler, libtpu, in a cache folder of its own.

Where libtpu can be imported and there is no TPU, jax hangs for minutes as it looks for one. So it
is never installed beside what trains, and only a process that compiles for a TPU knows its path.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from laser_pax import folders
from laser_pax.errors import UserError

VERSION = '0.0.11.4'  # Of jax 0.5.3, as requirements-tpu.txt has it.
_SHA256 = 'cc18baad71d303737b2fe60cc1d6e50857119cb7ce6fab0b74eb102b3bded94e'
_MEGABYTES = 131


def library() -> pathlib.Path:
  """Returns where libtpu.so is: TPU_LIBRARY_PATH, or the cache's.

  Raises:
    UserError: it is not there.
  """
  named = os.environ.get('TPU_LIBRARY_PATH')
  path = pathlib.Path(named) if named else _folder() / 'libtpu' / 'libtpu.so'
  if not path.is_file():
    raise UserError(
      f'the TPU compiler is not on this machine ({path}); fetch it once, {_MEGABYTES} MB, into a '
      'folder of its own: python -m laser_pax aot --fetch'
    )
  return path


def fetch() -> pathlib.Path:
  """Downloads libtpu with pip into the cache, unless it is there, and returns its path.

  Raises:
    UserError: pip could not get it.
  """
  target = _folder()
  if (target / 'libtpu' / 'libtpu.so').is_file():
    return target / 'libtpu' / 'libtpu.so'
  target.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=target.parent) as folder:
    requirement = pathlib.Path(folder) / 'requirement.txt'
    requirement.write_text(f'libtpu=={VERSION} --hash=sha256:{_SHA256}\n')
    new = pathlib.Path(folder) / 'new'
    command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
    command += ['--no-deps', '--require-hashes', '--no-compile', '--target', str(new)]
    command += ['--requirement', str(requirement)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
      reason = re.findall(r'ERROR: (.*)', done.stderr) or done.stderr.strip().splitlines()[-1:]
      raise UserError(f'pip could not fetch libtpu {VERSION}: {" ".join(reason)}')
    shutil.rmtree(target, ignore_errors=True)  # Half a folder, of a fetch that was cut off.
    new.rename(target)
  return library()


def use() -> None:
  """Lets this process, which must not have used jax yet, compile for TPUs; it runs on the CPU.

  Raises:
    UserError: libtpu is not on this machine.
  """
  path = library()
  os.environ['TPU_LIBRARY_PATH'] = str(path)
  os.environ['TPU_SKIP_MDS_QUERY'] = '1'  # Not on a TPU machine: there is no metadata to ask for.
  os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'  # No chip is held, so others may compile as well.
  os.environ['JAX_PLATFORMS'] = 'cpu'


def _folder() -> pathlib.Path:
  return folders.cache_dir() / f'libtpu-{VERSION}'
