"""One rule for the places of data and vocabulary, checked before TensorFlow is imported.

Data: PAX's flag `--tfds_data_dir`, else the attribute `DATA_DIR`, else `LASER_PAX_DATA_DIR`, else
`~/.cache/laser_pax/data`. Vocabulary: the attribute `VOCAB`, else `LASER_PAX_VOCAB`, else an error.
If none of these is set, the Tiny experiments use the sample that ships (sample/).
"""

from __future__ import annotations

import json
import os
import shlex
from typing import NamedTuple

from absl import flags
from etils import epath

from laser_pax import folders
from laser_pax.data import vocabulary
from laser_pax.data.datasets import DatasetSpec
from laser_pax.errors import UserError

DATA_DIR_VARIABLE = 'LASER_PAX_DATA_DIR'
VOCAB_VARIABLE = 'LASER_PAX_VOCAB'


class Source(NamedTuple):
  """A data folder and a vocabulary that exist and fit the model.

  Attributes:
    data_dir: Folder that contains the data set's folder, local or in a bucket.
    vocab: SentencePiece model, local or in a bucket.
  """

  data_dir: str
  vocab: str


class Named(NamedTuple):
  """A path, and what named it.

  Attributes:
    path: The path.
    named_by: The flag, attribute or variable.
  """

  path: str
  named_by: str


def find_source(
  dataset: DatasetSpec, data_dir: str | None, vocab: str | None, vocab_size: int
) -> Source:
  """Finds the data and the vocabulary by the rule of this module, and checks both.

  Args:
    dataset: The data set.
    data_dir: The experiment's own data folder, or None.
    vocab: The experiment's own SentencePiece model, or None.
    vocab_size: V, the number of pieces that the model expects.

  Raises:
    UserError: The data or the vocabulary is missing, or the vocabulary does not have V pieces. The
      message names the missing file, where it was looked for, and the command that makes it.
  """
  data = find_data_dir(data_dir)
  model = _name_vocab(vocab)
  check_prepared(dataset, data)
  if model is None:
    raise UserError(
      f'no vocabulary: neither the attribute VOCAB nor {VOCAB_VARIABLE} names a SentencePiece '
      f'model; make one with: {vocab_command(data.path, "vocab.model", vocab_size, dataset)}'
    )
  _check_vocab(model, data.path, vocab_size, dataset)
  return Source(data.path, model.path)


def find_data_dir(attribute: str | None) -> Named:
  """Returns the data folder by the rule of this module. It need not exist.

  Args:
    attribute: The experiment's own data folder, or None.
  """
  return _name_data(attribute) or Named(default_data_dir(), 'the default')


def is_named(data_dir: str | None, vocab: str | None) -> bool:
  """Returns whether an attribute, a flag or the environment names data or a vocabulary.

  Args:
    data_dir: The experiment's own data folder, or None.
    vocab: The experiment's own SentencePiece model, or None.
  """
  return bool(_name_data(data_dir) or _name_vocab(vocab))


def check_prepared(dataset: DatasetSpec, data: Named) -> None:
  """Checks that a data set is prepared, with all of its splits.

  Args:
    dataset: The data set.
    data: The data folder.

  Raises:
    UserError: It is not; the message has the command that makes it.
  """
  info = epath.Path(data.path) / dataset.folder / 'dataset_info.json'
  try:
    splits = {split['name'] for split in json.loads(info.read_text())['splits']}
  except FileNotFoundError as e:
    raise UserError(
      f'no prepared data: looked for {dataset.folder}/dataset_info.json in {data.path} '
      f'(named by {data.named_by}); make it with: {dataset.prepare_command(data.path)}'
    ) from e
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise UserError(
      f'{info}: cannot be read as a TFDS data set ({e!r}); remove its folder and make it again '
      f'with: {dataset.prepare_command(data.path)}'
    ) from e
  if missing := set(dataset.splits) - splits:
    raise UserError(
      f'{info.parent}: expected the splits {" and ".join(dataset.splits)}, lacks '
      f'{", ".join(sorted(missing))}; remove this folder and make it again with: '
      f'{dataset.prepare_command(data.path)}'
    )


def check_vocab(source: Source, vocab_size: int) -> None:
  """Checks that a vocabulary exists and has as many pieces as the model.

  Args:
    source: Data and vocabulary.
    vocab_size: V, the number of pieces that the model expects.

  Raises:
    UserError: The vocabulary is missing, or does not have V pieces. The message has the command
      that makes one.
  """
  _check_vocab(Named(source.vocab, 'the sample'), source.data_dir, vocab_size)


def default_data_dir() -> str:
  """Returns the folder that `prepare` writes: `LASER_PAX_DATA_DIR`, else the cache's `data`."""
  if folder := os.environ.get(DATA_DIR_VARIABLE):
    return folders.resolve(folder)
  return str(folders.cache_dir() / 'data')


def vocab_command(data_dir: str, vocab: str, size: int, dataset: DatasetSpec | None = None) -> str:
  """Returns the command that trains a vocabulary on the data in `data_dir`.

  Args:
    data_dir: The data folder.
    vocab: The file to write.
    size: V, the number of pieces.
    dataset: The data set, where it wants options of its own.
  """
  data_dir, vocab = shlex.quote(data_dir), shlex.quote(vocab)
  command = f'python -m laser_pax vocab --data {data_dir} --out {vocab} --size {size}'
  return f'{command} {dataset.vocab_options}' if dataset and dataset.vocab_options else command


def first_named(*candidates: Named) -> Named | None:
  """Returns the first of some paths that is named at all, made absolute; None without one."""
  for path, named_by in candidates:
    if path:
      return Named(folders.resolve(path), named_by)
  return None


def exists(path: str) -> bool:
  """Returns whether a path exists, local or in a bucket."""
  return epath.Path(path).exists()


def same_contents(path: str, other: str) -> bool:
  """Returns whether two files have the same bytes."""
  return epath.Path(path).read_bytes() == epath.Path(other).read_bytes()


def _name_data(attribute: str | None) -> Named | None:
  # For seqio this flag of paxml.main comes before all else, so the check must use its folder.
  flag = flags.FLAGS['tfds_data_dir'].value if 'tfds_data_dir' in flags.FLAGS else None
  return first_named(
    Named(flag, '--tfds_data_dir'),
    Named(attribute, 'DATA_DIR'),
    Named(os.environ.get(DATA_DIR_VARIABLE), DATA_DIR_VARIABLE),
  )


def _name_vocab(attribute: str | None) -> Named | None:
  return first_named(
    Named(attribute, 'VOCAB'), Named(os.environ.get(VOCAB_VARIABLE), VOCAB_VARIABLE)
  )


def _check_vocab(
  model: Named, data_dir: str, vocab_size: int, dataset: DatasetSpec | None = None
) -> None:
  if not epath.Path(model.path).exists():
    raise UserError(
      f'no vocabulary: looked for a SentencePiece model at {model.path} (named by '
      f'{model.named_by}); make it with: {vocab_command(data_dir, model.path, vocab_size, dataset)}'
    )
  size = vocabulary.vocabulary_size(model.path)
  if size != vocab_size:
    raise UserError(
      f'{model.path} (named by {model.named_by}) has {size} pieces, but the model has VOCAB_SIZE = '
      f'{vocab_size}: set VOCAB_SIZE = {size}, or make another vocabulary with: '
      f'{vocab_command(data_dir, "OTHER.model", vocab_size, dataset)}'
    )
