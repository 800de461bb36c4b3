"""The stages through which corrupted files go: `prepare`, `vocab` and the input of a training.

A stage is a function of a folder and a generator. It returns what came of one drawn input, and
raises `Fault` if that is none of the two right ends: accepted with exactly what an independent
reader counts, or refused in one line that names the file.
"""

import collections
import functools
import gzip
import json
import pathlib
import random
import shutil
import struct
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import sentencepiece
import tensorflow as tf
from sentencepiece import sentencepiece_model_pb2

from laser_pax.cli import vocab as vocab_command
from laser_pax.data import records, sample, sources, text_lm, vocabulary, wordpiece
from laser_pax.data.datasets import C4
from laser_pax.data.prepare import c4, parts
from laser_pax.errors import UserError
from tests.faults import corruptions, oracle
from tests.support.small_texts import text

EVERY = 4  # Every fourth document is to validate on, where no file is named for that.
_VOCAB_SIZE = 48
_PIECES = [*wordpiece._RESERVED, *'abcdefghij', '##a', '##b', 'union', 'state', 'caf\u00e9']


class Fault(AssertionError):
  """An end that is not right."""


# The last corruption that was drawn: its kind and the file, to tell after a fault.
drawn = ('none', '')


class Outcome(NamedTuple):
  """What came of an input.

  Attributes:
    stage: Name of the stage.
    kind: How the file was corrupted.
    file: The name of that file.
    message: Why it was refused; empty where it was accepted.
  """

  stage: str
  kind: str
  file: str
  message: str = ''


def _require(is_right: bool, fault: str) -> None:
  if not is_right:
    raise Fault(fault)


def _attempt(run: Callable[[], object], *named: object) -> str:
  """Returns the message of a refusal, which must name one of `named`; '' without a refusal."""
  try:
    run()
  except UserError as e:
    message = str(e)
    _require('\n' not in message.strip(), f'several lines: {message!r}')
    _require(any(str(name) in message for name in named), f'names no file: {message!r}')
    return message
  return ''


def _sources(rng: random.Random) -> dict[str, bytes]:
  """Returns three small files of sources by name, of all suffixes in turn."""
  names = rng.sample(('a.txt', 'b.txt.gz', 'c.json', 'd.jsonl', 'e.json.gz', 'f.jsonl.gz'), 3)
  if rng.random() < 0.5:
    names[0] = f'validation-{names[0]}'
  files = {}
  for number, name in enumerate(names):
    texts = [f'{text(rng.randrange(999))} \u00e4\u20ac' for _ in range(8)]
    lines = [json.dumps({'text': t, 'timestamp': '2019'}, ensure_ascii=number > 0) for t in texts]
    data = '\n'.join([*(lines if '.json' in name else texts), '']).encode()
    files[name] = gzip.compress(data, mtime=0) if name.endswith('.gz') else data
  return files


def _spoil(files: dict[str, bytes], rng: random.Random) -> tuple[str, str, bytes | None]:
  """Returns the name of one file, a kind of corruption, and what the file becomes."""
  name, other = rng.sample(sorted(files), 2)
  return name, *_corrupt(name, files[name], files[other], rng)


def _corrupt(name: str, data: bytes, other: bytes, rng: random.Random) -> tuple[str, bytes | None]:
  global drawn
  kind, corrupted = corruptions.corrupt(data, other, rng)
  drawn = kind, name
  return kind, corrupted


def _write(folder: pathlib.Path, files: dict[str, bytes | None]) -> list[pathlib.Path]:
  folder.mkdir(parents=True, exist_ok=True)
  for name, data in files.items():
    (folder / name).unlink(missing_ok=True)
    if data is not None:
      (folder / name).write_bytes(data)
  return [folder / name for name in sorted(files)]


def _check_written(final: pathlib.Path, files: dict[str, bytes | None]) -> None:
  """Checks that a data set has what the independent reader expects."""
  splits, blank = oracle.expected(files, EVERY)
  for split, texts in splits.items():
    shards = sorted(final.glob(f'c4-{split}.tfrecord-*'))
    examples = [tf.train.Example.FromString(r) for path in shards for r in oracle.records(path)]
    found = [x.features.feature['text'].bytes_list.value[0].decode() for x in examples]
    _require(found == texts, f'{split}: wrote {len(found)} texts, expected {len(texts)}')
  counts = {split: len(texts) for split, texts in splits.items()}
  told = json.loads((final / 'report.json').read_text())['documents']
  right = {'in': blank + sum(counts.values()), 'blank': blank} | counts
  _require(told == right, f'counted {told}, expected {right}')


def prepare(folder: pathlib.Path, rng: random.Random) -> Outcome:
  """Prepares three sources, of which one is corrupted; after a refusal, the good ones."""
  good = _sources(rng)
  name, kind, data = _spoil(good, rng)
  bad = good | {name: data}

  def run() -> None:
    c4.prepare(_write(folder / 'in', bad), folder / 'out', validation_fraction=1 / EVERY)

  message = _attempt(run, folder / 'in', 'the sources give')
  try:
    oracle.expected(bad, EVERY)
  except oracle.RefusedError as e:
    _require(bool(message), f'accepted, though {e}')
  else:
    _require(not message, f'refused: {message}')
  final = folder / 'out' / C4.folder
  if message:
    _require(not final.exists(), 'a refused data set is there')
    c4.prepare(_write(folder / 'in', good), folder / 'out', validation_fraction=1 / EVERY)
    bad = good
  _check_written(final, bad)
  return Outcome('prepare', kind, name, message)


def vocab(folder: pathlib.Path, rng: random.Random) -> Outcome:
  """Reads a corrupted vocabulary of one of two layouts, or trains one on a corrupted source."""
  return rng.choice((_sentencepiece, _wordpiece, _train))(folder, rng)


@functools.cache
def _model() -> bytes:
  with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder) / 'v.model'
    texts = [text(number) for number in range(200)]
    vocabulary.train_vocabulary(texts, out, size=_VOCAB_SIZE, sentences=999)
    return out.read_bytes()


def _sentencepiece(folder: pathlib.Path, rng: random.Random) -> Outcome:
  kind, data = _corrupt('v.model', _model(), '\n'.join(_PIECES).encode(), rng)
  (path,) = _write(folder, {'v.model': data})
  source = sources.Source(str(folder), str(path))
  message = _attempt(lambda: sources.check_vocab(source, _VOCAB_SIZE), path)
  _require(bool(message) or bool(data), 'accepted, though it is empty')
  if not message:
    pieces = sentencepiece_model_pb2.ModelProto.FromString(data).pieces
    _require(len(pieces) == _VOCAB_SIZE, f'accepted with {len(pieces)} pieces')
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    ids = [i for number in range(9) for i in processor.encode(f'{text(number)} \u00bd\u00e4')]
    _require(all(0 <= i < _VOCAB_SIZE for i in ids), f'gives ids up to {max(ids)}')
  return Outcome('vocab', kind, 'v.model', message)


def _wordpiece(folder: pathlib.Path, rng: random.Random) -> Outcome:
  good = ('\n'.join(_PIECES) + '\n').encode()
  kind, data = _corrupt('vocab.txt', good, text(7).encode(), rng)
  (path,) = _write(folder, {'vocab.txt': data})
  message = _attempt(lambda: wordpiece.read_vocab(path), path)
  try:
    lines = (data or b'').decode().removesuffix('\n').split('\n')
    pieces = [line.removesuffix('\r') for line in lines]
    is_layout = all(pieces[i] == piece for i, piece in wordpiece._SPECIAL.items())
    is_right = is_layout and len(set(pieces)) == len(pieces)
  except (UnicodeDecodeError, IndexError):
    is_right = False
  if message:
    _require(not is_right, f'refused: {message}')
  else:
    _require(is_right and wordpiece.read_vocab(path) == pieces, 'read other pieces than its lines')
    ids = [i for row in wordpiece.Tokenizer(path).encode(['union b\u00e4d caf\u00e9']) for i in row]
    _require(all(0 <= i < len(pieces) for i in ids), f'gives ids up to {max(ids)}')
  return Outcome('vocab', kind, 'vocab.txt', message)


def _train(folder: pathlib.Path, rng: random.Random) -> Outcome:
  good = _sources(rng)
  name, kind, data = _spoil(good, rng)
  bad = {n: d for n, d in (good | {name: data}).items() if d is not None}
  _write(folder / 'in', bad)
  train = functools.partial(vocabulary.train_vocabulary, size=_VOCAB_SIZE, sentences=999)

  def run() -> None:
    texts = vocab_command._texts(folder / 'in', None, vocab_command.Kind.SENTENCEPIECE)
    train(texts, folder / 'v.model')

  message = _attempt(run, folder / 'in', 'a vocabulary of')
  try:
    texts = _texts_to_train_on(bad)
  except oracle.RefusedError as e:
    _require(bool(message), f'accepted, though {e}')
    return Outcome('vocab', kind, name, message)
  other = _attempt(lambda: train(texts, folder / 'expected.model'), 'a vocabulary of')
  _require(message == other, f'expected {other or "a model"}, got {message or "a model"}')
  if not message:
    models = [(folder / file).read_bytes() for file in ('v.model', 'expected.model')]
    _require(models[0] == models[1], 'another model than that of the right texts')
  return Outcome('vocab', kind, name, message)


def _texts_to_train_on(files: dict[str, bytes]) -> list[str]:
  """Returns the texts of the files to train on. One without text is no fault here."""
  for data in files.values():
    if not data:  # All files are looked at first.
      raise oracle.RefusedError('an empty file')
  named = {data for name, data in files.items() if 'validation' in name}
  texts = []
  for name in sorted(files, key=str.encode):
    if 'validation' not in name and files[name] not in named:
      try:
        texts += oracle.read(name, files[name]).texts
      except oracle.RefusedError as e:
        if 'no document' not in str(e):
          raise
  return texts


class _Prepared(NamedTuple):
  """A good data set: its files by name, and how often its train split has each token."""

  files: dict[str, bytes]
  tokens: collections.Counter[int]


@functools.cache
def _prepared() -> _Prepared:
  with tempfile.TemporaryDirectory() as name:
    folder, lines = pathlib.Path(name), [json.dumps({'text': text(i)}) for i in range(24)]
    files = {f'{i}.jsonl': '\n'.join(lines[i::3]).encode() for i in range(3)}
    whole, parts.PART_BYTES = parts.PART_BYTES, 1  # Each source becomes a shard.
    try:
      final = c4.prepare(_write(folder / 'in', files), folder, validation_fraction=1 / EVERY)
    finally:
      parts.PART_BYTES = whole
    encode = sentencepiece.SentencePieceProcessor(model_file=str(sample.VOCAB)).encode
    splits, _ = oracle.expected(files, EVERY)
    tokens = collections.Counter(i for t in splits['train'] for i in [*encode(t), 1])
    return _Prepared({path.name: path.read_bytes() for path in final.iterdir()}, tokens)


def _is_whole(path: pathlib.Path) -> bool:
  """Whether TensorFlow takes a TFRecord file for a whole one: it passes over a cut header."""
  try:
    oracle.records(path, rest=11)
  except (AssertionError, struct.error):
    return False
  return True


def train(folder: pathlib.Path, rng: random.Random) -> Outcome:
  """Reads an epoch of a data set of which one file is corrupted, as a training does."""
  good = _prepared()
  name, kind, data = _spoil(good.files, rng)
  final = folder / C4.folder
  _write(final, good.files | {name: data})
  found: list[int] = []
  # Without the check at the start, the damage comes while the training runs. A shard that loses
  # its last records is seen at the start alone.
  is_checked = rng.random() < 0.7 or (data is not None and _is_whole(final / name))

  def run() -> None:
    source = sources.find_source(C4, str(folder), str(sample.VOCAB), 4_096)
    if is_checked:
      text_lm.check_files(source.data_dir, C4)
    records.check_row(source, C4, 1)
    places = dict(data_dir=source.data_dir, vocab=source.vocab)
    stream = text_lm.train_input(**places, batch_size=1, seq_len=1, seed=0).Instantiate()
    found.extend(int(stream.get_next_padded().labels[0, 0]) for _ in range(good.tokens.total()))

  message = _attempt(run, folder)
  _require(not message or data != good.files[name], f'refused a good file: {message}')
  _require(bool(message) or collections.Counter(found) == good.tokens, 'reads other tokens')
  shutil.rmtree(folder)
  return Outcome('train', kind, name, message)


STAGES = {'prepare': prepare, 'vocab': vocab, 'train': train}
