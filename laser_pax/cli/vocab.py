"""`python -m laser_pax vocab`: trains a vocabulary, SentencePiece of T5's layout or WordPiece."""

import enum
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from laser_pax import folders
from laser_pax.errors import UserError


class Kind(enum.StrEnum):
  """Kinds of vocabularies."""

  SENTENCEPIECE = 'sentencepiece'
  WORDPIECE = 'wordpiece'


# Numbers of pieces that the experiments have.
_SIZES = {Kind.SENTENCEPIECE: 32_000, Kind.WORDPIECE: 30_522}


def vocab(
  data: Annotated[
    str,
    typer.Option(help='data folder made by `prepare`, source file, or folder of source files'),
  ],
  out: Annotated[str, typer.Option(help='the file to write; never overwritten')],
  kind: Annotated[
    Kind,
    typer.Option(help='sentencepiece for C4 and LibriSpeech; wordpiece, in lower case, for BERT'),
  ] = Kind.SENTENCEPIECE,
  dataset: Annotated[
    str | None,
    typer.Option(help='which data set of the folder, such as librispeech [default: the only one]'),
  ] = None,
  size: Annotated[
    int | None,
    typer.Option(
      min=4,
      max=2**24,
      help='number of pieces, control pieces included [default: 32,000; of wordpiece 30,522]',
    ),
  ] = None,
  sentences: Annotated[
    int,
    typer.Option(
      min=1,
      max=2**31 - 1,
      help='number of first sentences to train on, each of at most 4,192 bytes',
    ),
  ] = 500_000,
  character_coverage: Annotated[
    float | None,
    typer.Option(
      min=0.5,
      max=1.0,
      help='share of all characters that get pieces of sentencepiece; the rest become unknown '
      '[default: 0.9995]',
    ),
  ] = None,
) -> None:
  """Trains a vocabulary on the train split. The same texts give the same vocabulary.

  It reads no source file that `prepare` would evaluate on by its name.

  SentencePiece: unigram, with pad 0, eos 1, unk 2, no bos. WordPiece: BERT's layout.
  """
  from laser_pax.data import vocabulary, wordpiece

  file, pieces = folders.resolve_local(out), size or _SIZES[kind]
  if kind == Kind.WORDPIECE and character_coverage is not None:
    raise UserError('--character-coverage is of sentencepiece alone: leave it out')
  vocabulary.check_new_file(file)
  texts = _texts(folders.resolve_local(data), dataset, kind)
  if kind == Kind.WORDPIECE:
    wordpiece.make_vocab(vocabulary.first_sentences(texts, sentences), file, size=pieces)
  else:
    coverage = character_coverage or vocabulary.CHARACTER_COVERAGE
    vocabulary.train_vocabulary(
      texts, file, size=pieces, sentences=sentences, character_coverage=coverage
    )
  typer.echo(f'{file}: {pieces:,} pieces')


def _texts(folder: Path, name: str | None, kind: Kind) -> Iterator[str]:
  """Returns the documents to train on, of a prepared data set with text or of source files.

  Raises:
    UserError: The folder has several such data sets, or not the one that is named. Or all of its
      files are to evaluate on.
  """
  from laser_pax.data import datasets, records
  from laser_pax.data.prepare import files, parts, wikipedia

  prepared = [
    spec for spec in datasets.specs() if spec.is_text() and (folder / spec.folder).exists()
  ]
  if name is not None or len(prepared) > 1:
    names = ', '.join(spec.name for spec in prepared) or 'no data set with text'
    prepared = [spec for spec in prepared if spec.name == name]
    if not prepared:
      raise UserError(f'{folder} holds {names}: name one of them with --dataset, got {name}')
  if prepared:
    return records.read_texts(folder, prepared[0], prepared[0].splits[0])
  is_evaluation = wikipedia.is_evaluation if kind == Kind.WORDPIECE else parts.is_validation
  sources = files.without_leaks(wikipedia.find_sources([folder]), is_evaluation).taken
  train = [file for file in sources if not is_evaluation(file)]
  if not train:
    raise UserError(f'{folder}: all of its {len(sources)} files are to evaluate on: name others')
  return (document.text for file in train for document in wikipedia.read_source(file))
