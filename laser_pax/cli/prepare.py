"""`python -m laser_pax prepare`: turns source files into data sets."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help='Turns source files into data sets.', no_args_is_help=True)


@app.callback()
def _main() -> None:
  """Keeps `c4` a subcommand. Without this callback typer drops the name of a single command."""


@app.command('c4')
def prepare_c4(
  paths: Annotated[
    list[Path],
    typer.Argument(
      metavar='SOURCES...',
      help="allenai's c4-*.json.gz, other .json, .jsonl (plain or .gz) or .txt files, or folders",
    ),
  ],
  out: Annotated[
    Path | None,
    typer.Option(help='data folder [default: $LASER_PAX_DATA_DIR, else ~/.cache/laser_pax/data]'),
  ] = None,
  validation_fraction: Annotated[
    float, typer.Option(help='share of documents where no file is named *validation*')
  ] = 0.01,
) -> None:
  """Writes c4/en/3.0.1 with a train and a validation split. It resumes, and never overwrites."""
  from rich import console, progress

  from laser_pax.data import sources
  from laser_pax.data.prepare import c4

  columns = [
    progress.TextColumn('{task.description}'),
    progress.BarColumn(),
    progress.DownloadColumn(),
    progress.TransferSpeedColumn(),
    progress.TimeRemainingColumn(),
  ]
  out = out or sources.default_data_dir()
  with progress.Progress(*columns, console=console.Console(stderr=True)) as bar:
    folder = c4.prepare(paths, out, validation_fraction=validation_fraction, progress=bar)
  typer.echo(f'{folder}: done')
  typer.echo(f'next: {sources.vocab_command(str(out), str(out / "vocab.model"), 32_000)}')
