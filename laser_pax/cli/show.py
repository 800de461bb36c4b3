"""`python -m laser_pax show EXP`: one experiment's resolved facts."""

import inspect
from typing import Annotated

import typer

from laser_pax.cli import experiments


def show(exp: Annotated[str, typer.Argument(help='Experiment, e.g. C4Laser2B.')]) -> None:
  """Prints one experiment's facts: parameters, tokens, FLOPs, memory of the state, schedule."""
  experiment = experiments.load(exp)().on()
  from rich.console import Console
  from rich.table import Table
  from rich.text import Text

  from laser_pax.pods.facts import facts

  f = facts(experiment)
  table = Table(show_header=False, box=None)
  rows = {
    'parameters': f'{f.parameters:,}',
    'layers, width, MLP hidden': (
      f'{experiment.NUM_LAYERS}, {experiment.MODEL_DIMS:,}, {experiment.HIDDEN_DIMS:,}'
    ),
    'heads': f'{experiment.num_heads()} of {experiment.DIMS_PER_HEAD}',
    'vocabulary': f'{experiment.VOCAB_SIZE:,}',
    'attention': _attentions(experiment),
    'activations, parameters': f'{_dtype(experiment.FPROP_DTYPE)}, float32',
    'global batch': f'{experiment.GLOBAL_BATCH_SIZE:,} x {experiment.SEQ_LEN:,} tokens',
    'steps': f'{experiment.NUM_TRAIN_STEPS:,}',
    'tokens': f'{f.tokens:,} ({f.tokens / f.parameters:,.1f} a parameter)',
    'FLOPs of a step': f'{f.flops_per_step:.4g}',
    'FLOPs of the training': f'{f.flops_per_step * experiment.NUM_TRAIN_STEPS:.4g}',
    'pod': f'{experiment.POD}, {f.devices} chip(s)',
    'mesh [replica, data, mdl]': f'{list(f.mesh)}',
    'layers keep, parts of a batch': (
      f'{experiment.layout().checkpoint_policy.name}, {experiment.micro_batches()}'
    ),
    'state per device': _bytes(f.state_bytes_per_device),
    'optimiser': (
      f'AdamW, betas {experiment.ADAM_BETA1} and {experiment.ADAM_BETA2}, epsilon '
      f'{experiment.ADAM_EPSILON}, weight decay {experiment.WEIGHT_DECAY}, gradients clipped to '
      f'{experiment.CLIP_GRADIENT_NORM_TO_VALUE}'
    ),
    'learning rate': (
      f'0 to {experiment.LEARNING_RATE} in {experiment.WARMUP_STEPS:,} steps, then by a cosine to '
      f'0 at step {experiment.NUM_TRAIN_STEPS:,}'
    ),
    'evaluation, checkpoint': (
      f'every {experiment.EVAL_INTERVAL_STEPS:,} and {experiment.CHECKPOINT_EVERY_N_STEPS:,} steps'
    ),
  }
  for name, value in rows.items():
    table.add_row(Text(name), Text(value))
  console = Console()
  console.print(f'[bold]{f.name}[/bold]')
  console.print(inspect.getdoc(type(experiment)), markup=False)
  console.print()
  console.print(table)


def _attentions(experiment) -> str:
  """The classes of attention in the resolved model."""
  from fiddle import daglish

  names = {
    value.__fn_or_cls__.__name__
    for value, _ in daglish.iterate(experiment.task().model)
    if 'Attention' in getattr(getattr(value, '__fn_or_cls__', None), '__name__', '')
    and 'Projection' not in value.__fn_or_cls__.__name__
  }
  return ', '.join(sorted(names))


def _dtype(dtype) -> str:
  import jax.numpy as jnp

  return jnp.dtype(dtype).name


def _bytes(number: int) -> str:
  return f'{number / 2**30:.3f} GiB' if number >= 2**27 else f'{number / 2**20:.1f} MiB'
