"""`python -m laser_pax quickstart`: trains LASER and standard attention on real text."""

import math
import os
import subprocess
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from laser_pax import folders
from laser_pax.analysis import runs
from laser_pax.data import sources
from laser_pax.errors import UserError

_TWINS = {'standard': 'C4StandardTiny', 'LASER': 'C4LaserTiny'}


def quickstart(
  out: Annotated[str, typer.Option(help='Folder of the two runs and the picture.')] = (
    'runs/quickstart'
  ),
  steps: Annotated[
    int | None, typer.Option(min=1, help='Number of steps; fewer are quicker.')
  ] = None,
) -> None:
  """Trains C4StandardTiny, then C4LaserTiny, and compares them. It takes ten minutes on two cores.

  Both start from the same weights and have the same schedule. Both see the same batches of the
  State of the Union addresses. A run that is complete is not trained again.
  """
  console = Console()
  folder = folders.resolve_local(out) / ('' if steps is None else f'{steps}-steps')
  # Without these variables the runs train on the sample.
  data_variables = (sources.DATA_DIR_VARIABLE, sources.VOCAB_VARIABLE)
  environment = {name: value for name, value in os.environ.items() if name not in data_variables}
  for kind, name in _TWINS.items():
    console.rule(f'{name} ({kind} attention)')
    command = [sys.executable, '-m', 'laser_pax', 'train', f'--job_log_dir={folder / name}']
    command += _experiment_flags(name, steps)
    code = subprocess.run(command, env=environment, check=False).returncode
    if code in (1, 2):  # It has said why.
      raise typer.Exit(code)
    if code:
      raise UserError(f'{name} ended with code {code}: give the same command again to go on')
  finished = [runs.read_run(kind, folder / name) for kind, name in _TWINS.items()]
  entropy = _unigram_entropy()
  picture = folder / 'quickstart.png'
  runs.plot_runs(finished, entropy, picture)
  console.rule('result')
  console.print(result_table(finished, entropy))
  console.print(f'loss curves: {picture}; each step: {folder}/*/progress.jsonl')


def _experiment_flags(name: str, steps: int | None) -> list[str]:
  """Returns the flags of `train` that name the experiment and its steps."""
  if steps is None:
    return [f'--exp={name}']
  shorter = {'NUM_TRAIN_STEPS': steps, 'WARMUP_STEPS': steps // 10}
  return [
    f'--fdl_config=laser_pax.configs.{name}',
    *(f'--fdl.{attribute}={value}' for attribute, value in shorter.items()),
  ]


def result_table(finished: list[runs.Run], unigram_entropy: float) -> Table:
  """Returns the comparison: a row for each run, and one for the unigram entropy."""
  table = Table(box=None)
  for column in ('attention', 'test loss', 'perplexity', 'tokens/s', 'minutes'):
    table.add_column(column, justify='left' if column == 'attention' else 'right')
  for run in finished:
    table.add_row(
      run.name,
      f'{run.test_loss:.4f}',
      f'{math.exp(run.test_loss):.2f}',
      f'{run.units_per_second:,.0f}',
      f'{run.minutes:.1f}',
    )
  table.add_row(
    'unigram entropy', f'{unigram_entropy:.4f}', f'{math.exp(unigram_entropy):.2f}', '', ''
  )
  return table


def _unigram_entropy() -> float:
  """Returns the loss of a model that knows only how frequent each word is, in nats a token."""
  from laser_pax.data import records, sample

  return records.unigram_entropy(sample.prepare_sample())
