"""`python -m laser_pax vocab`: trains a SentencePiece vocabulary of T5's layout."""

from typing import Annotated

import typer

from laser_pax import folders


def vocab(
  data: Annotated[
    str,
    typer.Option(help='data folder made by `prepare c4`, source file, or folder of source files'),
  ],
  out: Annotated[str, typer.Option(help='the model file to write; never overwritten')],
  size: Annotated[
    int, typer.Option(min=4, max=2**24, help='number of pieces, control pieces included')
  ] = 32_000,
  sentences: Annotated[
    int,
    typer.Option(
      min=1,
      max=2**31 - 1,
      help='number of first sentences to train on, each of at most 4,192 bytes',
    ),
  ] = 500_000,
  character_coverage: Annotated[
    float,
    typer.Option(
      min=0.5, max=1.0, help='share of all characters that get pieces; the rest become unknown'
    ),
  ] = 0.9995,
) -> None:
  """Trains a unigram vocabulary on the train split: pad 0, eos 1, unk 2, no bos."""
  from laser_pax.data import records, vocabulary
  from laser_pax.data.datasets import C4
  from laser_pax.data.prepare import documents, files

  folder, model = folders.resolve_local(data), folders.resolve_local(out)
  vocabulary.check_new_file(model)
  if (folder / C4.folder).exists():
    texts = records.read_texts(folder, 'train')
  else:
    sources = files.find_sources([folder]).taken
    texts = (document.text for file in sources for document in documents.read_documents(file))
  vocabulary.train_vocabulary(
    texts, model, size=size, sentences=sentences, character_coverage=character_coverage
  )
  typer.echo(f'{model}: {vocabulary.vocabulary_size(model):,} pieces')
