"""`python -m laser_pax vocab`: trains a SentencePiece vocabulary of T5's layout."""

from pathlib import Path
from typing import Annotated

import typer


def vocab(
  data: Annotated[
    Path,
    typer.Option(help='data folder made by `prepare c4`, source file, or folder of source files'),
  ],
  out: Annotated[Path, typer.Option(help='the model file to write; never overwritten')],
  size: Annotated[int, typer.Option(help='number of pieces, control pieces included')] = 32_000,
  sentences: Annotated[
    int,
    typer.Option(help='number of first sentences to train on, each of at most 4,192 bytes'),
  ] = 500_000,
) -> None:
  """Trains a unigram vocabulary on the train split: pad 0, eos 1, unk 2, no bos."""
  from laser_pax.data import records, vocabulary
  from laser_pax.data.datasets import C4
  from laser_pax.data.prepare import documents

  data, out = data.expanduser(), out.expanduser()
  vocabulary.check_new_file(out)
  if (data / C4.folder).exists():
    texts = records.read_texts(data, 'train')
  else:
    files = documents.find_sources([data])
    texts = (document.text for file in files for document in documents.read_documents(file))
  vocabulary.train_vocabulary(texts, out, size=size, sentences=sentences)
  typer.echo(f'{out}: {vocabulary.vocabulary_size(out):,} pieces')
