"""The folder of an export: made at once and whole, read and checked without PAX's imports."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from laser_pax import folders
from laser_pax.data import vocabulary
from laser_pax.errors import UserError
from laser_pax.evaluation import weight_names
from laser_pax.evaluation.reference import numpy_forward
from laser_pax.experiment import jobs, overrides

CONFIG, TOKENIZER = 'config.json', 'tokenizer.model'


def check_new(out: pathlib.Path) -> None:
  """Checks that a folder is not there, or is empty.

  Raises:
    UserError: It has content, or is a file.
  """
  if out.exists() and not (out.is_dir() and not any(out.iterdir())):
    raise UserError(f'{folders.shown(out)}: exists already and is never overwritten; name another')


@contextlib.contextmanager
def new_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a folder to fill, which gets its name when the `with` block ends.

  Args:
    out: The folder's name.

  Raises:
    UserError: As for `check_new`; or the folder cannot be made.
  """
  check_new(out)
  partial = out.with_name(f'{out.name}.{os.getpid()}.partial')
  folders.make_folder(partial)
  try:
    yield partial
    partial.rename(out)  # Another process may have filled it: then this fails.
  finally:
    shutil.rmtree(partial, ignore_errors=True)


class Exported(NamedTuple):
  """The contents of an export.

  Attributes:
    folder: Its folder.
    config: The contents of config.json.
    weights: The weights by name. They stay in their files until they are used.
  """

  folder: pathlib.Path
  config: Mapping[str, Any]
  weights: Mapping[str, np.ndarray]

  @property
  def run(self) -> jobs.Run:
    """The run that trained the weights."""
    origin = self.config['laser_pax']
    parts = (line.partition('=') for line in origin['overrides'])
    return jobs.Run(origin['experiment'], {name: overrides.read(value) for name, _, value in parts})


def read_export(folder: pathlib.Path) -> Exported:
  """Opens an export.

  Raises:
    UserError: The folder holds none, or a file is not whole, or the weights are not float32, or the
      vocabulary does not have as many pieces as the model.
  """
  shown = folders.shown(folder)
  try:
    config = json.loads((folder / CONFIG).read_text())
    origin = config['laser_pax']
    shapes = weight_names.shapes(config)
    if not {'experiment', 'overrides', 'step'} <= origin.keys():
      raise KeyError('laser_pax')
  except FileNotFoundError as e:
    raise UserError(f'{shown}: has no {CONFIG}; expected a folder that `export` made') from e
  except (ValueError, KeyError, AttributeError, TypeError) as e:
    raise UserError(f'{shown}/{CONFIG} is not that of an export: {e!r}') from e
  try:
    weights = numpy_forward.read_weights(folder)
  except (ValueError, KeyError, TypeError) as e:
    reason = 'a file of weights is cut short, or not of float32'
    raise UserError(f'{shown}: {reason} ({e}); export it again') from e
  if not (folder / TOKENIZER).is_file():
    raise UserError(f'{shown}: has no {TOKENIZER}, the vocabulary; export it again')
  weight_names.check({name: w.shape for name, w in weights.items()}, shapes, shown)
  vocabulary.check_size(folder / TOKENIZER, config['vocab_size'], f'{shown}/{TOKENIZER}')
  return Exported(folder, config, weights)
