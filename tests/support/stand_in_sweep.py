"""`python -m laser_pax sweep` whose trainings are those of stand_in_training.py."""

import os
import pathlib
import sys

from laser_pax import cli

_PYTHON = sys.executable


def python(folder: pathlib.Path) -> str:
  """Returns an executable, in `folder`, whose `-m laser_pax train` is the stand-in."""
  script = pathlib.Path(__file__).with_name('stand_in_training.py')
  file, new = folder / 'python', folder / f'python-{os.getpid()}'
  new.write_text(f'#!/bin/sh\nshift 3\nexec {_PYTHON} -S {script} "$@"\n')
  new.chmod(0o755)
  new.replace(file)
  return str(file)


if __name__ == '__main__':
  sys.executable = python(pathlib.Path(os.environ['STAND_IN_FOLDER']))
  cli.main(['sweep', *sys.argv[1:]])
