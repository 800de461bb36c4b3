"""A prepared data set read without PAX: its texts, and the unigram baseline."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sentencepiece
from etils import epath

from laser_pax.data import sources, vocabulary
from laser_pax.data.datasets import DatasetSpec
from laser_pax.errors import UserError


def read_texts(data_dir: str | Path, dataset: DatasetSpec, split: str) -> Iterator[str]:
  """Yields the documents of a split in a fixed order. It reads 16 shards at a time.

  Args:
    data_dir: Folder that holds the data set's folder.
    dataset: A data set whose records have a field `text`.
    split: One of its splits.

  Raises:
    UserError: A file is missing or damaged, or a text is not UTF-8.
  """
  import tensorflow_datasets as tfds

  from laser_pax.data import damage

  builder = damage.open_builder(f'{data_dir}/{dataset.folder}')
  # The shards come in a shuffled order, so that the first documents represent the whole split.
  config = tfds.ReadConfig(shuffle_seed=0, try_autocache=False, add_tfds_id=True)
  texts = builder.as_dataset(split=split, shuffle_files=True, read_config=config)
  with damage.told(lambda: builder.info.splits[split].filepaths):
    for record in texts:
      try:
        yield record['text'].numpy().decode()
      except UnicodeDecodeError as e:
        file, _, number = record['tfds_id'].numpy().decode().rpartition('__')
        raise UserError(
          f'{builder.data_path}/{file}: the text of its record {number}, counted from 0, is not '
          f'UTF-8 ({e.reason}); prepare the data again'
        ) from e


def check_row(source: sources.Source, dataset: DatasetSpec, seq_len: int) -> None:
  """Checks that the train split fills a row.

  Args:
    source: Data and vocabulary.
    dataset: The data set.
    seq_len: T, the tokens of a row.

  Raises:
    UserError: It does not.
  """
  model = epath.Path(source.vocab).read_bytes()
  encode = sentencepiece.SentencePieceProcessor(model_proto=model).encode
  tokens = 0
  for text in read_texts(source.data_dir, dataset, dataset.splits[0]):
    tokens += len(encode(text)) + 1
    if tokens >= seq_len:
      return
  raise UserError(
    f'the train split in {source.data_dir} has {tokens} tokens, a row needs SEQ_LEN = {seq_len}: '
    f'prepare more text, or set SEQ_LEN to {tokens} or less'
  )


def unigram_entropy(
  source: sources.Source, dataset: DatasetSpec, *, documents: int = 10_000
) -> float:
  """Returns the loss of a model that knows only how frequent each token is [ours].

  The loss is `-1/M sum_j log q(y_j)`, and the model `q(w) = (c_w + 1) / (N + V)`. The second
  split has the M tokens y. The train split has N tokens, and c_w of them are w. V is the size of
  the vocabulary. Each document ends with EOS.

  Args:
    source: Data and vocabulary.
    dataset: The data set.
    documents: Greatest number of documents to read from each split.

  Returns:
    The loss in nats per token.
  """
  processor = sentencepiece.SentencePieceProcessor(model_file=source.vocab)
  size = processor.vocab_size()

  def count(split: str) -> np.ndarray:
    counts = np.zeros(size, np.int64)
    for text in itertools.islice(read_texts(source.data_dir, dataset, split), documents):
      counts += np.bincount([*processor.encode(text), vocabulary.EOS_ID], minlength=size)
    return counts

  train, validation = map(count, dataset.splits)
  log_q = np.log(train + 1) - np.log(train.sum() + size)
  return float(-(validation * log_q).sum() / validation.sum())
