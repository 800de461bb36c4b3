"""`python -m laser_pax prepare`: turns source files into data sets."""

import json
from typing import Annotated

import typer

from laser_pax import folders

app = typer.Typer(help='Turns source files into data sets.')


@app.callback()
def _main() -> None:
  """Keeps `c4` a subcommand. Without this callback typer drops the name of a single command."""


@app.command('c4')
def prepare_c4(
  paths: Annotated[
    list[str],
    typer.Argument(
      metavar='SOURCES...',
      help="allenai's c4-*.json.gz, other .json, .jsonl or .txt files, plain or .gz, or folders",
    ),
  ],
  out: Annotated[
    str | None,
    typer.Option(help='data folder [default: $LASER_PAX_DATA_DIR, else ~/.cache/laser_pax/data]'),
  ] = None,
  validation_fraction: Annotated[
    float, typer.Option(help='share of documents where no file is named *validation*')
  ] = 0.01,
) -> None:
  """Writes c4/en/3.0.1 with a train and a validation split. It resumes, and never overwrites."""
  from laser_pax.cli import bars
  from laser_pax.data import sources
  from laser_pax.data.prepare import c4, reports

  data_dir = str(sources.default_data_dir()) if out is None else folders.resolve(out)
  with bars.bytes_bar() as bar:
    folder = c4.prepare(paths, data_dir, validation_fraction=validation_fraction, progress=bar)
  for line in reports.lines(json.loads((folder / reports.FILE).read_text('utf-8'))):
    typer.echo(line)
  typer.echo(f'{folder}: done')
  typer.echo(f'next: {sources.vocab_command(data_dir, f"{data_dir}/vocab.model", 32_000)}')
