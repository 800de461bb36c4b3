"""`python -m laser_pax show EXP`: shows one experiment's resolved facts."""

import inspect
from typing import TYPE_CHECKING, Annotated

import typer

from laser_pax.cli import experiments

if TYPE_CHECKING:
  from laser_pax.experiment.base import Experiment
  from laser_pax.layers.attention_paths import Path

_PLATFORMS = ('tpu', 'gpu', 'cpu')


def show(exp: Annotated[str, typer.Argument(help='Experiment, e.g. C4Laser2B.')]) -> None:
  """Prints one experiment's facts: parameters, tokens, FLOPs, memory of the state, schedule."""
  experiment = experiments.load(exp)().on()
  from rich.console import Console
  from rich.table import Table
  from rich.text import Text

  from laser_pax.costs.facts import facts
  from laser_pax.layers import attention_paths

  paths = []
  with attention_paths.telling(paths.append):
    f = facts(experiment)
  layout, steps, unit = experiment.layout(), experiment.NUM_TRAIN_STEPS, experiment.UNIT
  rows = {
    'parameters': f'{f.parameters:,}',
    **experiment.describe(),
    'attention': _attentions(experiment),
    **{f'attention on {platform}': _path_on(platform, paths) for platform in _PLATFORMS},
    'steps': f'{steps:,}',
    unit: f'{f.units:,} ({f.units / f.parameters:,.1f} a parameter)',
    'FLOPs of a step': f'{f.flops_per_step:.4g}',
    'FLOPs of the training': f'{f.flops_per_step * steps:.4g}',
    'pod': f'{experiment.POD}, {f.devices} chip(s)',
    'mesh [replica, data, mdl]': f'{list(f.mesh)}',
    'layers keep, parts of a batch': f'{layout.checkpoint_policy.name}, {layout.micro_batches}',
    'state per device': _bytes(f.state_bytes_per_device),
    'evaluation, checkpoint': (
      f'every {experiment.EVAL_INTERVAL_STEPS:,} and {experiment.CHECKPOINT_EVERY_N_STEPS:,} steps'
    ),
  }
  table = Table(show_header=False, box=None)
  for name, value in rows.items():
    table.add_row(Text(name), Text(value))
  console = Console()
  console.print(f'[bold]{f.name}[/bold]')
  console.print(inspect.getdoc(type(experiment)), markup=False)
  console.print()
  console.print(table)


def _attentions(experiment: 'Experiment') -> str:
  """Returns the names of the attention classes in the resolved model."""
  from fiddle import daglish

  from laser_pax.layers import swap

  nodes = (node for node, _ in daglish.iterate(experiment.task().model))
  names = {cls.__name__ for cls in map(swap.attention_class, nodes) if cls is not None}
  return ', '.join(sorted(names))


def _path_on(platform: str, paths: list['Path']) -> str:
  """Returns which attention serves on a platform, of the paths that the layers told."""
  from laser_pax.layers import attention_paths

  texts = [path.text(attention_paths.EXPERIMENT_SETTINGS, platform) for path in paths]
  return '; '.join(dict.fromkeys(texts)) or "the layer's own, which has no fused form"


def _bytes(number: int) -> str:
  return f'{number / 2**30:.3f} GiB' if number >= 2**27 else f'{number / 2**20:.1f} MiB'
