"""Where data and vocabulary are: one rule, checked in milliseconds, before TensorFlow is imported.

Data: PAX's flag `--tfds_data_dir`, else the attribute `DATA_DIR`, else `LASER_PAX_DATA_DIR`, else
`~/.cache/laser_pax/data`. Vocabulary: the attribute `VOCAB`, else `LASER_PAX_VOCAB`, else an error.
Where neither is named, the Tiny experiments take the sample that ships. `XDG_CACHE_HOME` moves
`~/.cache`, as everywhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from absl import flags
from etils import epath

from laser_pax.data import vocabulary
from laser_pax.errors import UserError

DATA_DIR_VARIABLE = 'LASER_PAX_DATA_DIR'
VOCAB_VARIABLE = 'LASER_PAX_VOCAB'

# The name under which TFDS and seqio know the data set, and its folder under the data folder.
DATASET = 'c4/en:3.0.1'
DATASET_FOLDER = 'c4/en/3.0.1'
SPLITS = ('train', 'validation')

# In a job's folder: whose run it holds, the experiment's name and then its overrides, one a line.
JOB_MARK = 'experiment.txt'

# Overrides of where and how a step is computed. A run goes on under others, on other chips.
_LAYOUT = ('POD', 'ICI_MESH_SHAPE', 'DCN_MESH_SHAPE', 'CHECKPOINT_POLICY', 'MICRO_BATCHES')


class Source(NamedTuple):
  """Data and vocabulary that exist and fit each other and the model.

  Attributes:
    data_dir: folder that holds `DATASET_FOLDER`, local or in a bucket.
    vocab: SentencePiece model, local or in a bucket.
  """

  data_dir: str
  vocab: str


class _Named(NamedTuple):
  """A path, and who named it."""

  path: str
  by: str


def job_mark(experiment: str, overrides: Iterable[str]) -> str:
  """Returns the text that marks a job's folder: the run, but for how it is laid out on chips.

  Args:
    experiment: The full name.
    overrides: `NAME=VALUE` of each.
  """
  kept = sorted(f'fdl.{o}' for o in overrides if o.partition('=')[0] not in _LAYOUT)
  return '\n'.join([experiment, *kept])


def find_source(data_dir: str | None, vocab: str | None, vocab_size: int) -> Source:
  """Finds the data and the vocabulary by the rule of this module, and checks both.

  Args:
    data_dir: the experiment's own data folder, or None.
    vocab: the experiment's own SentencePiece model, or None.
    vocab_size: number of pieces V that the model expects.

  Raises:
    UserError: if the data or the vocabulary is missing, or the vocabulary has not V pieces. The
      message says what was looked for, where, and the command that makes it.
  """
  data = _name_data(data_dir) or _Named(str(default_data_dir()), 'the default')
  model = _name_vocab(vocab)
  _check_data(data)
  if model is None:
    raise UserError(
      f'no vocabulary: neither the attribute VOCAB nor {VOCAB_VARIABLE} names a SentencePiece '
      f'model; make one with: {vocab_command(data.path, "vocab.model", vocab_size)}'
    )
  _check_vocab(model, data.path, vocab_size)
  return Source(data.path, model.path)


def find_source_or_sample(data_dir: str | None, vocab: str | None, vocab_size: int) -> Source:
  """As `find_source`, with the sample that ships where neither data nor vocabulary is named.

  Raises:
    UserError: as `find_source`.
  """
  if _name_data(data_dir) or _name_vocab(vocab):
    return find_source(data_dir, vocab, vocab_size)
  from laser_pax.data import sample

  source = sample.prepare_sample()
  _check_vocab(_Named(source.vocab, 'the sample'), source.data_dir, vocab_size)
  return source


def default_data_dir() -> Path:
  """Returns `LASER_PAX_DATA_DIR`, else `~/.cache/laser_pax/data`: where `prepare` writes."""
  if named := os.environ.get(DATA_DIR_VARIABLE):
    return Path(named).expanduser()
  return cache_dir() / 'data'


def cache_dir() -> Path:
  """Returns the folder for what can be made again: `~/.cache/laser_pax`."""
  return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'laser_pax'


def prepare_command(data_dir: str) -> str:
  """Returns the command that prepares data in `data_dir`."""
  return f'python -m laser_pax prepare c4 SOURCE... --out {data_dir}'


def vocab_command(data_dir: str, vocab: str, size: int) -> str:
  """Returns the command that trains a vocabulary on the data in `data_dir`."""
  return f'python -m laser_pax vocab --data {data_dir} --out {vocab} --size {size}'


def _name_data(attribute: str | None) -> _Named | None:
  # seqio obeys this flag of paxml.main above all else, so the check must look where it points.
  flag = flags.FLAGS['tfds_data_dir'].value if 'tfds_data_dir' in flags.FLAGS else None
  return _first(
    _Named(flag, '--tfds_data_dir'),
    _Named(attribute, 'DATA_DIR'),
    _Named(os.environ.get(DATA_DIR_VARIABLE), DATA_DIR_VARIABLE),
  )


def _name_vocab(attribute: str | None) -> _Named | None:
  return _first(_Named(attribute, 'VOCAB'), _Named(os.environ.get(VOCAB_VARIABLE), VOCAB_VARIABLE))


def _first(*candidates: _Named) -> _Named | None:
  for path, by in candidates:
    if path:
      return _Named(os.fspath(epath.Path(path).expanduser()), by)
  return None


def _check_data(data: _Named) -> None:
  info = epath.Path(data.path) / DATASET_FOLDER / 'dataset_info.json'
  try:
    splits = {split['name'] for split in json.loads(info.read_text())['splits']}
  except FileNotFoundError as e:
    raise UserError(
      f'no prepared data: looked for {DATASET_FOLDER}/dataset_info.json in {data.path} '
      f'(named by {data.by}); make it with: {prepare_command(data.path)}'
    ) from e
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise UserError(f'{info}: cannot be read as a TFDS data set ({e!r})') from e
  if missing := set(SPLITS) - splits:
    raise UserError(
      f'{info.parent}: expected the splits train and validation, lacks {", ".join(sorted(missing))}'
    )


def _check_vocab(model: _Named, data_dir: str, vocab_size: int) -> None:
  if not epath.Path(model.path).exists():
    raise UserError(
      f'no vocabulary: looked for a SentencePiece model at {model.path} (named by {model.by}); '
      f'make it with: {vocab_command(data_dir, model.path, vocab_size)}'
    )
  size = vocabulary.vocabulary_size(model.path)
  if size != vocab_size:
    raise UserError(
      f'{model.path} (named by {model.by}) has {size} pieces, but the model has VOCAB_SIZE = '
      f'{vocab_size}: set VOCAB_SIZE = {size}, or make another vocabulary with: '
      f'{vocab_command(data_dir, "OTHER.model", vocab_size)}'
    )
