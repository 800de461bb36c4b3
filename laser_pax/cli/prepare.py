"""`python -m laser_pax prepare`: turns source files into data sets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from laser_pax import folders

_Out = Annotated[
  str | None,
  typer.Option(help='data folder [default: $LASER_PAX_DATA_DIR, else ~/.cache/laser_pax/data]'),
]
_Fraction = Annotated[
  float, typer.Option(help='share of documents to evaluate on, where no file is named for that')
]

app = typer.Typer(help='Turns source files into data sets.')


@app.command('c4')
def prepare_c4(
  paths: Annotated[
    list[str],
    typer.Argument(
      metavar='SOURCES...',
      help="allenai's c4-*.json.gz, other .json, .jsonl or .txt files, plain or .gz, or folders",
    ),
  ],
  out: _Out = None,
  validation_fraction: _Fraction = 0.01,
) -> None:
  """Writes c4/en/3.0.1 with a train and a validation split. It resumes, and never overwrites."""
  from laser_pax.data import sources
  from laser_pax.data.prepare import c4

  data_dir = _prepare(c4.prepare, paths, out, validation_fraction=validation_fraction)
  typer.echo(f'next: {sources.vocab_command(data_dir, f"{data_dir}/vocab.model", 32_000)}')


@app.command('wikipedia')
def prepare_wikipedia(
  paths: Annotated[
    list[str],
    typer.Argument(
      metavar='SOURCES...',
      help="MLPerf's part-*-of-* and eval.txt, a dump *-pages-articles*.xml, plain or .bz2, or "
      'whatever `prepare c4` takes',
    ),
  ],
  vocab: Annotated[
    str,
    typer.Option(
      help="WordPiece vocabulary of BERT's layout: MLPerf's vocab.txt, or one made by "
      '`vocab --kind=wordpiece`'
    ),
  ],
  out: _Out = None,
  validation_fraction: _Fraction = 0.01,
  copies: Annotated[
    int, typer.Option(min=1, help='how often a document comes, each time with other masks')
  ] = 10,
  seed: Annotated[int, typer.Option(help='seed of lengths, pairs and masks')] = 12_345,
) -> None:
  """Writes records for BERT, in MLPerf's layout. It resumes, and never overwrites.

  If one of MLPerf's parts is among the sources, all must be (500), and eval.txt (10,000 articles,
  32,851,144 bytes). All other files, such as vocab.txt, are then left out.
  """
  from laser_pax.data.prepare import wikipedia

  _prepare(
    wikipedia.prepare,
    paths,
    out,
    vocab=folders.resolve(vocab),
    validation_fraction=validation_fraction,
    copies=copies,
    seed=seed,
  )


@app.command('imagenet')
def prepare_imagenet(
  paths: Annotated[
    list[str],
    typer.Argument(
      metavar='SOURCES...',
      help="ImageNet's own archives, or folders or .tar files of class folders of images",
    ),
  ],
  out: _Out = None,
  validation_fraction: Annotated[
    float, typer.Option(help='share of images to evaluate on, where no folder is named for that')
  ] = 0.1,
) -> None:
  """Writes imagenet2012/5.1.0, and imagenet_v2 of test images. It resumes, and never overwrites.

  ImageNet's own archives are ILSVRC2012_img_train.tar (147,897,477,120 bytes, 1,281,167 images),
  ILSVRC2012_img_val.tar (6,744,924,160 bytes, 50,000 images) with ILSVRC2012_devkit_t12.tar.gz, and
  imagenetv2-matched-frequency.tar.gz (10,000 images). Their bytes and images are counted.
  """
  from laser_pax.data.prepare import imagenet

  _prepare(imagenet.prepare, paths, out, validation_fraction=validation_fraction)


@app.command('librispeech')
def prepare_librispeech(
  paths: Annotated[
    list[str],
    typer.Argument(
      metavar='SOURCES...',
      help="LibriSpeech's archives, or folders SUBSET/SPEAKER/CHAPTER of its files",
    ),
  ],
  out: _Out = None,
) -> None:
  """Writes librispeech/default/2.1.1, a split for each subset. It resumes, and never overwrites.

  The archives are train-clean-100.tar.gz (6.3 GB, 28,539 utterances), train-clean-360.tar.gz (23
  GB, 104,014), train-other-500.tar.gz (30 GB, 148,688), dev-clean.tar.gz (2,703), dev-other.tar.gz
  (2,864), test-clean.tar.gz (2,620) and test-other.tar.gz (2,939). Their utterances are counted.
  """
  from laser_pax.data import sources
  from laser_pax.data.datasets import LIBRISPEECH
  from laser_pax.data.prepare import librispeech

  data_dir = _prepare(librispeech.prepare, paths, out)
  vocab = f'{data_dir}/vocab-1024.model'
  typer.echo(f'next: {sources.vocab_command(data_dir, vocab, 1_024, LIBRISPEECH)}')


@app.command('superglue')
def prepare_superglue(
  paths: Annotated[
    list[str],
    typer.Argument(
      metavar='SOURCES...',
      help="SuperGLUE's archives, or folders BoolQ, CB, ... of train.jsonl, val.jsonl, test.jsonl",
    ),
  ],
  out: _Out = None,
) -> None:
  """Writes super_glue/TASK/1.0.2 for each task. It resumes, and never overwrites.

  The archives are combined.zip, or BoolQ.zip (9,427 rows to train on, 3,270 to evaluate on), CB.zip
  (250, 56), COPA.zip (400, 100), MultiRC.zip (27,243, 4,848), ReCoRD.zip (100,730, 10,000), RTE.zip
  (2,490, 277), WiC.zip (5,428, 638) and WSC.zip (554, 104). Their rows are counted.
  """
  from laser_pax.data.prepare import superglue

  _prepare(superglue.prepare, paths, out)


def _prepare(
  prepare: Callable[..., Path | list[Path]], paths: list[str], out: str | None, **options
) -> str:
  """Prepares data sets with a bar, says what became of the sources, and returns their folder."""
  from laser_pax.cli import bars
  from laser_pax.data import sources
  from laser_pax.data.prepare import reports

  data_dir = sources.default_data_dir() if out is None else folders.resolve(out)
  with bars.bytes_bar() as bar:
    prepared = prepare(paths, data_dir, progress=bar, **options)
  for folder in prepared if isinstance(prepared, list) else [prepared]:
    for line in reports.lines(json.loads((folder / reports.FILE).read_text('utf-8'))):
      typer.echo(line)
    typer.echo(f'{folder}: done')
  return data_dir
