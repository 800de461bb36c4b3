"""Converts text into TFRecords for masked language models, in MLPerf's layout for BERT.

A record is a row of at most 512 tokens, [CLS] A [SEP] B [SEP], of which some are masked. A and B
are sentences of one document that follow each other, or of two documents: see `make_rows`.

| key | shape | |
|---|---|---|
| input_ids | 512 | tokens, some masked; 0 is padding |
| input_mask | 512 | 1 for a token, 0 for padding |
| segment_ids | 512 | 0 for A, 1 for B, 0 for padding |
| masked_lm_positions | 76 | places of the masked tokens, ascending; 0 is padding |
| masked_lm_ids | 76 | what they were |
| masked_lm_weights | 76 | 1 for a masked token, 0 for padding |
| next_sentence_labels | 1 | 1 if B does not follow A |

The train split is in part-00000-of-NNNNN and so on, the other in eval_10k.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from rich.progress import Progress

from laser_pax.data import wordpiece
from laser_pax.data.datasets import WIKIPEDIA
from laser_pax.data.prepare import documents, files, mediawiki, mlperf, parts
from laser_pax.errors import UserError

# The sizes of MLPerf's records.
TOKENS, PREDICTIONS = 512, 76
# MLPerf evaluates on this many records, taken at a constant stride.
EVAL_RECORDS = 10_000
EVAL_FILE = 'eval_10k'
# A shard is closed at this size of its text. Its documents and records are held in memory, at some
# 20 bytes a character.
SHARD_CHARS = 2**25
VOCAB = 'the vocabulary'  # A reason to leave a file out.

_MASKED_SHARE = 0.15
_SHORT_SHARE = 0.1  # So many documents are cut to rows of a random shorter length.
# A sentence ends with a mark, maybe a quote or bracket, then white space and a capital or a digit.
_SENTENCE_END = re.compile(r'(?<=[.!?])["\')\]]*\s+(?=["\'(\[]*[A-Z0-9])')


def prepare(
  source_paths: Sequence[str | Path],
  data_dir: str | Path,
  *,
  vocab: str | Path,
  validation_fraction: float = 0.01,
  copies: int = 10,
  seed: int = 12_345,
  progress: Progress | None = None,
) -> Path:
  """Writes `data_dir/wikipedia/mlperf/1.0.0`: records to train on, to evaluate on, and vocab.txt.

  Sources are MLPerf's own text files (mlperf.py), dumps of MediaWiki (mediawiki.py), and all that
  `prepare c4` takes. In MLPerf's files a line is a sentence, and a blank line ends a document. In
  others, text is cut into sentences. If one of MLPerf's parts is there, all must be, and eval.txt;
  other files are then left out. The vocabulary's own file is never a source.

  Args:
    source_paths: Files and folders, see `files.find_sources`.
    data_dir: Local folder for data sets, made if missing.
    vocab: WordPiece vocabulary of BERT's layout.
    validation_fraction: Share of documents to evaluate on, where no file's name has `validation` or
      begins with `eval`.
    copies: How often a document comes, each time with other masks.
    seed: Seed of lengths, pairs and masks.
    progress: Progress bar, which counts bytes of the sources.

  Returns:
    The folder of the finished data set.

  Raises:
    UserError: As for `c4.prepare`; or the vocabulary is of another layout, or MLPerf's release is
      not complete.
  """
  final = parts.dataset_folder(WIKIPEDIA, data_dir)
  sources = find_sources(source_paths, final, vocab)
  mlperf.check_complete(sources)
  parts.check_new(final)
  tokenizer = wordpiece.Tokenizer(vocab)
  progress = progress or Progress(disable=True)
  conversion = _Conversion(
    WIKIPEDIA, final, sources, validation_fraction, progress, tokenizer, copies, seed
  )
  conversion.run()
  return final


def find_sources(
  paths: Sequence[str | Path], own: Path | None = None, vocab: str | Path | None = None
) -> files.Sources:
  """Finds the source files (see `files.find_sources`).

  Args:
    paths: Source files and folders.
    own: Folder that is being written.
    vocab: The vocabulary's file, which is left out.

  Raises:
    UserError: As for `files.find_sources`; or nothing is there beside the vocabulary.
  """
  sources = files.find_sources(paths, own, is_source)
  own_vocab = Path(vocab) if vocab is not None else None
  if own_vocab is not None and own_vocab.exists():  # One in a bucket is no source.
    same = {path for path in sources.taken if path.samefile(own_vocab)}
    sources = files.without(sources, same, VOCAB)
  if not sources.taken:
    raise UserError(f'{own_vocab}: the only file, and it is the vocabulary: name texts too')
  return mlperf.without_rest(sources)


def is_source(path: Path) -> bool:
  """Whether a file's name is that of a source."""
  return mlperf.is_part(path) or mediawiki.is_dump(path) or files.suffix_of(path) is not None


def is_evaluation(path: Path) -> bool:
  """Whether a file's name says that it is to evaluate on."""
  return parts.is_validation(path) or path.name.lower().startswith('eval')


def read_source(
  path: Path, open_file: Callable[[Path], BinaryIO] = documents.open_bytes
) -> Iterator[documents.Document]:
  """Yields the documents of a source file.

  Args:
    path: The file; its name says what it is.
    open_file: As in `documents.read_documents`.

  Raises:
    UserError: As in `documents.read_documents`.
  """
  if mediawiki.is_dump(path):
    return mediawiki.read_articles(path, open_file)
  if mlperf.is_text(path):
    return documents.read_blocks(path, open_file)
  return documents.read_documents(path, open_file)


def sentences(document: documents.Document) -> list[str]:
  """Returns the sentences of a document: its lines, cut where a sentence seems to end."""
  lines = (line.strip() for line in document.text.splitlines())
  return [s for line in lines if line for s in _SENTENCE_END.split(line) if s.strip()]


class Row(NamedTuple):
  """One row of tokens.

  Attributes:
    first: Tokens of A.
    second: Tokens of B.
    is_random: Whether B does not follow A.
  """

  first: list[int]
  second: list[int]
  is_random: bool


def make_rows(
  document: list[list[int]], others: list[list[list[int]]], rng: random.Random
) -> Iterator[Row]:
  """Cuts a document into rows of A and B.

  Sentences are gathered until a row is full, or nothing is left. A random number of them is A. In
  half of the cases B is what follows; in the other half it is from a random document, and the
  sentences that follow A come again in the next row. In 90% of documents a row is full at 509
  tokens, else at a random number from 2 on. What is too long is cut at a random end, token by
  token.

  Args:
    document: Its sentences, tokens each.
    others: Documents for B. It may contain the document itself.
    rng: Source of randomness.

  Yields:
    Rows, each with at least one token in A and in B.

  Source: RECIPES of MLPerf's BERT, with our own code.
  """
  most = TOKENS - 3
  target = rng.randint(2, most) if rng.random() < _SHORT_SHARE else most
  chunk: list[list[int]] = []
  place = 0
  while place < len(document):
    chunk.append(document[place])
    place += 1
    if place < len(document) and sum(map(len, chunk)) < target:
      continue
    cut = rng.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
    first = [token for sentence in chunk[:cut] for token in sentence]
    is_random = len(chunk) == 1 or rng.random() < 0.5
    if is_random:
      second = _random_text(document, others, target - len(first), rng)
      place -= len(chunk) - cut
    else:
      second = [token for sentence in chunk[cut:] for token in sentence]
    _shorten(first, second, most, rng)
    if first and second:
      yield Row(first, second, is_random)
    chunk = []


def _random_text(
  document: list[list[int]], others: list[list[list[int]]], length: int, rng: random.Random
) -> list[int]:
  """Returns at least `length` tokens from a random place of another document, if it has them."""
  for _ in range(10):
    other = rng.choice(others)
    if other is not document:
      break
  tokens: list[int] = []
  for sentence in other[rng.randrange(len(other)) :]:
    tokens += sentence
    if len(tokens) >= length:
      break
  return tokens


def _shorten(first: list[int], second: list[int], most: int, rng: random.Random) -> None:
  """Removes tokens, from a random end of the longer text each time, until both fit."""
  while len(first) + len(second) > most:
    longer = first if len(first) > len(second) else second
    longer.pop(0 if rng.random() < 0.5 else -1)


def make_record(row: Row, vocab_size: int, rng: random.Random) -> dict[str, list[int]]:
  """Masks a row: 15% of its tokens, of which 80% become [MASK], 10% random, and 10% stay.

  Args:
    row: The row.
    vocab_size: V, the number of pieces.
    rng: Source of randomness.

  Returns:
    The record's lists, padded.
  """
  tokens = [wordpiece.CLS, *row.first, wordpiece.SEP, *row.second, wordpiece.SEP]
  first_length = len(row.first) + 2
  candidates = [i for i, t in enumerate(tokens) if t not in (wordpiece.CLS, wordpiece.SEP)]
  count = min(PREDICTIONS, max(1, round(_MASKED_SHARE * len(tokens))))
  places = sorted(rng.sample(candidates, min(count, len(candidates))))
  masked = list(tokens)
  for place in places:
    chance = rng.random()
    if chance < 0.8:
      masked[place] = wordpiece.MASK
    elif chance < 0.9:
      masked[place] = rng.randrange(vocab_size)
  return {
    'input_ids': _padded(masked, TOKENS),
    'input_mask': _padded([1] * len(tokens), TOKENS),
    'segment_ids': _padded([0] * first_length + [1] * (len(tokens) - first_length), TOKENS),
    'masked_lm_positions': _padded(places, PREDICTIONS),
    'masked_lm_ids': _padded([tokens[i] for i in places], PREDICTIONS),
    'masked_lm_weights': _padded([1] * len(places), PREDICTIONS),
    'next_sentence_labels': [int(row.is_random)],
  }


def _padded(numbers: list[int], length: int) -> list[int]:
  return numbers + [0] * (length - len(numbers))


class _Conversion(parts.Conversion):
  """A document becomes several records."""

  def __init__(self, dataset, final, sources, fraction, progress, tokenizer, copies, seed):
    settings = f'{copies} {seed} {tokenizer.digest}'
    super().__init__(dataset, final, sources, fraction, progress, settings)
    self.tokenizer, self.copies, self.seed = tokenizer, copies, seed

  def is_validation(self, file: Path) -> bool:
    return is_evaluation(file)

  def read(self, path: Path, open_file: Any) -> Iterator[documents.Document]:
    return read_source(path, open_file)

  def open_part(self, number: int) -> _Records:
    return _Records(self, number)

  def finish(self, splits: dict[str, list[dict[str, Any]]]) -> None:
    train, evaluation = self.dataset.splits
    for i, shard in enumerate(splits[train]):
      name = f'part-{i:05d}-of-{len(splits[train]):05d}'
      if (self.work / shard['file']).exists():
        (self.work / shard['file']).replace(self.work / name)
    shards = [self.work / shard['file'] for shard in splits[evaluation]]
    if all(shard.exists() for shard in shards):
      _write_strided(shards, self.work / EVAL_FILE)
    for shard in shards:
      shard.unlink(missing_ok=True)
    self.tokenizer.write(self.work / 'vocab.txt')


def _write_strided(shards: list[Path], target: Path) -> None:
  """Writes at most EVAL_RECORDS records of all shards, taken at a constant stride."""
  import tensorflow as tf

  names = [str(shard) for shard in shards]
  count = sum(1 for _ in tf.data.TFRecordDataset(names).as_numpy_iterator())
  stride = max(1, count // EVAL_RECORDS)
  partial = target.with_suffix('.partial')
  with tf.io.TFRecordWriter(str(partial)) as writer:
    chosen = tf.data.TFRecordDataset(names).shard(stride, 0).take(EVAL_RECORDS)
    for record in chosen.as_numpy_iterator():
      writer.write(record)
  partial.replace(target)


class _Records:
  """Gathers a part's documents, and writes their records, a shard for each SHARD_CHARS of a split.

  B and the order of records come from the shard's own documents, so memory stays constant.
  """

  def __init__(self, conversion: _Conversion, number: int):
    self._conversion, self._number = conversion, number
    self._gathered: dict[str, _Gathered] = {}
    self.shards: list[dict[str, Any]] = []

  def write(self, split: str, document: documents.Document) -> None:
    gathered = self._gathered.setdefault(split, _Gathered())
    gathered.count += 1
    gathered.chars += len(document.text)
    tokens = self._conversion.tokenizer.encode(sentences(document))
    if kept := [sentence for sentence in tokens if sentence]:
      gathered.documents.append(kept)
    if gathered.chars >= SHARD_CHARS:
      self._write_shard(split)

  def close(self) -> None:
    for split in self._conversion.dataset.splits:
      if split in self._gathered:
        self._write_shard(split)

  def _write_shard(self, split: str) -> None:
    import tensorflow as tf

    conversion, gathered = self._conversion, self._gathered.pop(split)
    shard_number = sum(shard['split'] == split for shard in self.shards)
    place = f'{self._number}.{shard_number}' if shard_number else f'{self._number}'
    rng = random.Random(f'{conversion.seed} {split} {place}')
    name = f'part-{self._number:05d}-{split}-{shard_number:05d}.tfrecord'
    size, records = 0, []
    for _ in range(conversion.copies):
      for document in gathered.documents:
        for row in make_rows(document, gathered.documents, rng):
          records.append(_serialized(make_record(row, conversion.tokenizer.size, rng)))
    rng.shuffle(records)
    with tf.io.TFRecordWriter(str(conversion.work / name)) as writer:
      for record in records:
        writer.write(record)
        size += len(record)
    shard = {'file': name, 'split': split, 'documents': gathered.count, 'bytes': size}
    self.shards.append(shard | {'records': len(records)})


@dataclasses.dataclass
class _Gathered:
  """Documents of one split that are not written yet: their tokens, number and characters."""

  documents: list[list[list[int]]] = dataclasses.field(default_factory=list)
  count: int = 0
  chars: int = 0


def _serialized(record: dict[str, list[int]]) -> bytes:
  import tensorflow as tf

  weights = tf.train.FloatList(value=record['masked_lm_weights'])
  feature = {
    name: tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    for name, values in record.items()
  }
  feature['masked_lm_weights'] = tf.train.Feature(float_list=weights)
  example = tf.train.Example(features=tf.train.Features(feature=feature))
  return example.SerializeToString(deterministic=True)
