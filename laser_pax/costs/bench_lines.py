"""The results of `bench`: lines of JSON, and the tables and the picture that are made from them.

A line of kind 'step' is one experiment's train step, a line of kind 'attention' one pass of the
attention alone at one length. Both have what `about` returns. No line has a date.
"""

import json
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from rich.table import Table

from laser_pax.costs import machine, rounds
from laser_pax.costs.measured_steps import Measured, Step
from laser_pax.layers import attention_paths

FILE = 'bench.jsonl'
_GIB = 2**30
_COLORS = ('#d1495b', '#3a6ea5')


def next_run(file: pathlib.Path) -> int:
  """Returns the number of the next run whose lines are added to a file; the first is 1."""
  runs = [0]
  for line in file.read_text().splitlines() if file.exists() else []:
    try:
      runs.append(int(json.loads(line)['run']))
    except (ValueError, KeyError, TypeError):  # A line that was cut when the run was killed.
      continue
  return max(runs) + 1


def about(run: int, names: Sequence[str], changed: Mapping[str, Any]) -> dict:
  """Returns what all lines of a run begin with.

  Args:
    run: Number of the run in its file.
    names: Names of the two experiments, the one that is compared first.
    changed: Overrides, by name.
  """
  device = jax.devices()[0]
  return {
    'run': run,
    'pair': list(names),
    'overrides': {name: str(value) for name, value in changed.items()},
    'device': machine.processor() if device.platform == 'cpu' else device.device_kind,
    'platform': device.platform,
    'devices': jax.device_count(),
    'cores': machine.cores(),
    'versions': machine.versions(),
  }


def step_line(step: Step, measured: Measured, base: Measured) -> dict:
  """Returns an experiment's line; `ratio` is its time over that of `base`, round by round."""
  experiment, layout = step.experiment, step.experiment.layout()
  path = step.path
  return {
    'kind': 'step',
    'experiment': type(experiment).__name__,
    'parameters': step.parameters,
    'global_batch': experiment.GLOBAL_BATCH_SIZE,
    'unit': experiment.UNIT,
    'mesh': layout.mesh(),
    'micro_batches': layout.micro_batches,
    'checkpoint_policy': layout.checkpoint_policy.name,
    'attention': path and path.text(attention_paths.EXPERIMENT_SETTINGS),
    'steps_of_a_round': measured.steps,
    'seconds_per_step': statistics.median(measured.seconds),
    'rounds': measured.seconds,
    'units_per_second': measured.units_per_second(experiment),
    'mfu': measured.mfu(experiment, step.parameters),
    'peak_bytes': measured.peak_bytes,
    'program_bytes': step.program_bytes,
    'compile_seconds': step.compile_seconds,
    # JSON has no NaN and no infinity.
    'last_loss': measured.last_loss if math.isfinite(measured.last_loss) else None,
    'ratio': rounds.ratio(measured.seconds, base.seconds)._asdict(),
  }


def attention_line(measured: dict, names: Sequence[str]) -> dict:
  """Returns a line of the attention alone; `ratio` is the first experiment's over the second's."""
  first, second = (measured['rounds'][name] for name in names)
  return {'kind': 'attention', **measured, 'ratio': rounds.ratio(first, second)._asdict()}


def step_table(lines: Sequence[dict]) -> Table:
  """Returns the table of the train steps, from their lines."""
  steps = [line for line in lines if line['kind'] == 'step']
  unit, base = steps[0]['unit'], steps[-1]['experiment']
  table = Table(box=None, header_style='')
  table.add_column('train step')
  columns = ('ms', f'{unit}/s', 'MFU', 'peak, GiB', 'compiled, GiB', 'ratio (quartiles)')
  for column in columns:
    table.add_column(column, justify='right')
  for line in steps:
    table.add_row(
      line['experiment'],
      f'{1e3 * line["seconds_per_step"]:,.1f}',
      f'{line["units_per_second"]:,.0f}',
      '' if line['mfu'] is None else f'{line["mfu"]:.3f}',
      '' if line['peak_bytes'] is None else f'{line["peak_bytes"] / _GIB:.2f}',
      f'{line["program_bytes"] / _GIB:.2f}',
      '1' if line['experiment'] == base else _ratio_cell(line['ratio']),
    )
  return table


def attention_table(lines: Sequence[dict]) -> Table:
  """Returns the table of the attention alone, from its lines."""
  names = lines[0]['pair']
  table = Table(box=None, header_style='')
  table.add_column('attention alone')
  for column in ('rows x length', *(f'{name}, ms' for name in names), 'ratio (quartiles)'):
    table.add_column(column, justify='right')
  table.add_column('kernel')
  for line in lines:
    if line['kind'] == 'attention':
      table.add_row(
        line['pass'],
        f'{line["rows"]} x {line["length"]:,}',
        *(f'{1e3 * line["seconds"][name]:,.2f}' for name in names),
        _ratio_cell(line['ratio']),
        ', '.join(dict.fromkeys(line['kernel'].values())),
      )
  return table


def _ratio_cell(ratio: Mapping[str, Any]) -> str:
  return f'{ratio["median"]:.3f} ({ratio["low"]:.3f} to {ratio["high"]:.3f})'


def plot(lines: Sequence[dict], out: pathlib.Path) -> None:
  """Draws a step's time in each round; and the ratio of the attention alone by length.

  Args:
    lines: The lines of one run.
    out: PNG or SVG file to write.
  """
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  steps = [line for line in lines if line['kind'] == 'step']
  attention = [line for line in lines if line['kind'] == 'attention']
  panels = 2 if attention else 1
  figure, axes = plt.subplots(1, panels, figsize=(5.5 * panels, 4), layout='constrained')
  first = axes[0] if attention else axes
  for line, color in zip(steps, _COLORS, strict=True):
    numbers = range(1, len(line['rounds']) + 1)
    label, median = line['experiment'], 1e3 * line['seconds_per_step']
    first.plot(numbers, [1e3 * x for x in line['rounds']], 'o', color=color, label=label)
    first.axhline(median, color=color)
  first.set(xlabel='round', ylabel='ms a train step', ylim=(0, None))
  first.xaxis.get_major_locator().set_params(integer=True)
  if attention:
    _plot_ratios(axes[1], attention, steps)
  for one in axes if attention else [axes]:
    one.legend(frameon=False, fontsize=8)
    one.spines[['top', 'right']].set_visible(False)
  figure.suptitle(f'{lines[0]["devices"]} x {lines[0]["device"]}', fontsize=10)
  figure.savefig(out, dpi=150, metadata={'Software': None})
  plt.close(figure)


def _plot_ratios(axes, attention: Sequence[dict], steps: Sequence[dict]) -> None:
  """Draws the ratio of each pass against the length, with its quartiles."""
  for what, style in (('forward', 's--'), ('forward and backward', 'o-')):
    own = [line for line in attention if line['pass'] == what]
    middle = [line['ratio']['median'] for line in own]
    spread = [
      [abs(line['ratio'][side] - line['ratio']['median']) for line in own]
      for side in ('low', 'high')
    ]
    lengths = [line['length'] for line in own]
    axes.errorbar(lengths, middle, spread, fmt=style, color='#66a182', capsize=3, label=what)
  axes.axhline(steps[0]['ratio']['median'], color=_COLORS[0], label='train step')
  axes.axhline(1, color='0.5', ls=':')
  ticks = sorted({line['length'] for line in attention})
  axes.set_xscale('log', base=2)
  axes.set_xticks(ticks, [f'{t:,}' for t in ticks])
  axes.set(xlabel='length', ylabel=f'time over {steps[-1]["experiment"]}')
