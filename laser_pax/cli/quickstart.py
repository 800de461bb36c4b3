"""`python -m laser_pax quickstart`: trains LASER and standard attention on real data."""

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from laser_pax import folders
from laser_pax.analysis import runs
from laser_pax.cli import experiments
from laser_pax.data import sources
from laser_pax.errors import UserError

if TYPE_CHECKING:
  from laser_pax.experiment.base import Experiment

# The Tiny pairs, standard attention first.
_PAIRS = {
  'text': ('C4StandardTiny', 'C4LaserTiny'),
  'bert': ('WikipediaStandardBertTiny', 'WikipediaLaserBertTiny'),
  'vision': ('ImageNetStandardViTTiny', 'ImageNetLaserViTTiny'),
  'speech': ('LibriSpeechStandardConformerTiny', 'LibriSpeechLaserConformerTiny'),
}
_KINDS = ('standard', 'LASER')


def quickstart(
  out: Annotated[str, typer.Option(help='Folder of the two runs and the picture.')] = (
    'runs/quickstart'
  ),
  steps: Annotated[
    int | None, typer.Option(min=1, help='Number of steps; fewer are quicker.')
  ] = None,
  family: Annotated[str, typer.Option(help=f'Which pair: {" or ".join(_PAIRS)}.')] = 'text',
) -> None:
  """Trains a Tiny pair, standard attention and then LASER, and compares them.

  Both start from the same weights and have the same schedule. Both see the same batches: of the
  State of the Union addresses, of clip art, or of spoken prompts, which are fetched. A run that is
  complete is not trained again. On two cores the text takes ten minutes.
  """
  if family not in _PAIRS:
    raise UserError(f'--family={family}: expected one of {", ".join(_PAIRS)}')
  console = Console()
  folder = folders.resolve_local(out) / ('' if steps is None else f'{steps}-steps')
  twins = dict(zip(_KINDS, _PAIRS[family], strict=True))
  for variable in (sources.DATA_DIR_VARIABLE, sources.VOCAB_VARIABLE):
    os.environ.pop(variable, None)  # Without them all is done on the sample.
  for kind, name in twins.items():
    console.rule(f'{name} ({kind} attention)')
    command = [sys.executable, '-m', 'laser_pax', 'train', f'--job_log_dir={folder / name}']
    command += _experiment_flags(name, steps)
    code = subprocess.run(command, check=False).returncode
    if code in (1, 2):  # It has said why.
      raise typer.Exit(code)
    if code:
      raise UserError(f'{name} ended with code {code}: give the same command again to go on')
  experiment = experiments.load(twins['LASER'])().on()
  metric, label, chance = experiment.METRIC, experiment.METRIC.label, experiment.chance()
  finished = [
    runs.read_run(kind, folder / name, label, metric.split) for kind, name in twins.items()
  ]
  picture = folder / f'quickstart_{family}.png'
  runs.plot_runs(finished, label, chance, picture)
  console.rule('result')
  console.print(result_table(finished, experiment, chance))
  console.print(f'loss curves: {picture}; each step: {folder}/*/progress.jsonl', markup=False)


def _experiment_flags(name: str, steps: int | None) -> list[str]:
  """Returns the flags of `train` that name the experiment and its steps."""
  if steps is None:
    return [f'--exp={name}']
  shorter = {'NUM_TRAIN_STEPS': steps, 'WARMUP_STEPS': steps // 10}
  return [
    f'--fdl_config=laser_pax.configs.{name}',
    *(f'--fdl.{attribute}={value}' for attribute, value in shorter.items()),
  ]


def result_table(
  finished: list[runs.Run], experiment: 'Experiment', chance: tuple[str, float]
) -> Table:
  """Returns the comparison: a row for each run, and one for what frequencies alone reach."""
  metric = experiment.METRIC
  table = Table(box=None)
  columns = (
    f'{finished[0].split} {metric.label}',
    *metric.derived,
    f'{experiment.UNIT}/s',
    'minutes',
  )
  for column in ('attention', *columns):
    table.add_column(column, justify='left' if column == 'attention' else 'right')

  def figures(value: float) -> list[str]:
    return [f'{value:.4f}', *(f'{derive(value):.2f}' for derive in metric.derived.values())]

  for run in finished:
    rate, minutes = f'{run.units_per_second:,.0f}', f'{run.minutes:.1f}'
    table.add_row(run.name, *figures(run.last), rate, minutes)
  table.add_row(chance[0], *figures(chance[1]), '', '')
  return table
