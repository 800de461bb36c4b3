"""Pictures of what `python -m laser_pax analyse` measured, and of power laws."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from laser_pax.analysis import power_law
from laser_pax.analysis.lines import LASER, NORMS, STANDARD, Line

COLORS = {STANDARD: '#3a6ea5', LASER: '#d1495b'}
_OTHER_COLORS = ('#66a182', '#edae49', '#8d6a9f', '#4f5d75')
_SMALL = ('0.001', '1e-07')


def shares(lines: Sequence[Line]) -> dict[int, dict[str, float]]:
  """Returns the share of probabilities below 1e-3 and 1e-7 at each step, over all layers and heads.

  Args:
    lines: Lines of one job.
  """
  by_step: dict[int, list[Line]] = {}
  for line in lines:
    if line['kind'] == 'attention':
      by_step.setdefault(line['step'], []).append(line)
  return {
    step: {name: float(np.mean([x['share_below'][name] for x in group])) for name in _SMALL}
    for step, group in sorted(by_step.items())
  }


def plot_probabilities(jobs: Mapping[str, Sequence[Line]], out: pathlib.Path) -> bool:
  """Draws the distribution of the probabilities by layer at the last step, and shares by step.

  Args:
    jobs: The lines of each job, by its name.
    out: PNG or SVG file to write.

  Returns:
    Whether there was something to draw.
  """
  jobs = _of_kind(jobs, 'attention')
  if not jobs:
    return False
  colors = _colors(jobs)
  figure, axes = _panels(len(jobs) + 1, 3.4)
  for panel, (name, lines) in zip(axes, jobs.items(), strict=False):
    last = [line for line in lines if line['step'] == lines[-1]['step']]
    for line, color in zip(last, _shades(len(last), colors[name]), strict=True):
      thresholds = [float(x) for x in line['share_below']]
      heads = np.array(list(line['share_below'].values()))  # [E, N]
      panel.plot(thresholds, heads.mean(1), color=color, label=f'layer {line["layer"]}')
      if len(last) <= 8:
        panel.fill_between(thresholds, heads.min(1), heads.max(1), color=color, alpha=0.1, lw=0)
    panel.set(xscale='log', ylim=(0, 1), xlabel='attention probability')
    panel.set_title(f'{name}, step {last[0]["step"]:,}', fontsize=9)
    if len(last) <= 8:
      panel.legend(frameon=False, fontsize=7)
  axes[0].set_ylabel('share of visible pairs below')
  for name, lines in jobs.items():
    by_step = shares(lines)
    for threshold, style in zip(_SMALL, ('o-', 's--'), strict=True):
      values = [x[threshold] for x in by_step.values()]
      label = f'{name}, below {float(threshold):g}'
      axes[-1].plot(list(by_step), values, style, ms=4, color=colors[name], label=label)
  axes[-1].set(xlabel='step', ylim=(0, 1), ylabel='share of all visible pairs')
  axes[-1].legend(frameon=False, fontsize=7)
  _save(figure, out)
  return True


def plot_gradients(jobs: Mapping[str, Sequence[Line]], out: pathlib.Path) -> bool:
  """Draws the norms of gradients by layer under both attentions, at the last step of each job.

  Args:
    jobs: The lines of each job, by its name.
    out: PNG or SVG file to write.

  Returns:
    Whether there was something to draw.
  """
  jobs = _of_kind(jobs, 'gradients')
  if not jobs:
    return False
  figure, axes = _panels(len(NORMS), 2.7, len(jobs))
  titles = dict(zip(NORMS, ('logits', r'$W_q$', r'$W_k$', r'$W_v$'), strict=True))
  for row, (name, lines) in zip(np.reshape(axes, (len(jobs), -1)), jobs.items(), strict=True):
    last = [line for line in lines if line['step'] == lines[-1]['step']]
    for panel, norm in zip(row, NORMS, strict=True):
      for form, color in COLORS.items():
        group = [line for line in last if line['attention'] == form]
        values = [layer_norm(line, norm) for line in group]
        panel.plot([line['layer'] for line in group], values, 'o-', ms=4, color=color, label=form)
      panel.set_yscale('log')
      panel.tick_params(axis='y', which='both', labelsize=7)
      panel.set_title(f'gradient of {titles[norm]}', fontsize=9)
      panel.set_xlabel('layer')
      panel.xaxis.get_major_locator().set_params(integer=True)
    row[0].set_ylabel(f'{name}\nstep {last[0]["step"]:,}, norm', fontsize=8)
    row[0].legend(frameon=False, fontsize=7, title='the same weights under', title_fontsize=7)
  _save(figure, out)
  return True


def layer_norm(line: Line, norm: str) -> float:
  """Returns a layer's norm of one of `NORMS`, over its heads."""
  return float(np.linalg.norm(line[norm]))


def plot_values(jobs: Mapping[str, Sequence[Line]], out: pathlib.Path) -> bool:
  """Draws the spread of values by layer and head, at the last step of each job.

  Args:
    jobs: The lines of each job, by its name.
    out: PNG or SVG file to write.

  Returns:
    Whether there was something to draw.
  """
  jobs = _of_kind(jobs, 'attention')
  if not jobs:
    return False
  colors = _colors(jobs)
  figure, axes = _panels(2, 3.4)
  fields = {'value_std': 'standard deviation', 'value_range': 'range'}
  for panel, (field, words) in zip(axes, fields.items(), strict=True):
    for place, (name, lines) in enumerate(jobs.items()):
      last = [line for line in lines if line['step'] == lines[-1]['step']]
      color, shift = colors[name], 0.15 * (place - (len(jobs) - 1) / 2)
      for line in last:
        heads = line[field]
        panel.plot([line['layer'] + shift] * len(heads), heads, '.', color=color, alpha=0.5)
      means = [np.mean(line[field]) for line in last]
      panel.plot([line['layer'] + shift for line in last], means, '-', color=color, label=name)
    panel.set(xlabel='layer', ylabel=f'{words} of a column of V', ylim=(0, None))
    panel.xaxis.get_major_locator().set_params(integer=True)
  axes[0].legend(frameon=False, fontsize=8)
  _save(figure, out)
  return True


def plot_power_laws(
  points: Sequence[power_law.Point], fits: Mapping[str, power_law.Fit], out: pathlib.Path
) -> None:
  """Draws each variant's points, power law and 95% band.

  Args:
    points: All points.
    fits: The fit of each variant.
    out: PNG or SVG file to write.
  """
  figure, (panel,) = _panels(1, 5.5)
  draw_power_laws(panel, points, fits)
  _save(figure, out)


def draw_power_laws(
  panel: Any, points: Sequence[power_law.Point], fits: Mapping[str, power_law.Fit]
) -> None:
  """Draws the same on a panel of a picture."""
  others = iter(_OTHER_COLORS)
  for variant, law in fits.items():
    color = COLORS.get(variant) or next(others, '0.4')
    own = [p for p in points if p.variant == variant]
    sizes = np.geomspace(law.sizes[0] / 1.5, law.sizes[-1] * 1.5, 60)
    low, high = np.percentile(law.losses(sizes), power_law.BAND, axis=0)
    panel.fill_between(sizes, low, high, color=color, alpha=0.15, lw=0)
    limit = f'{law.limit:.3g} + ' if law.has_limit else ''
    label = f'{variant}: {limit}{law.factor:.3g} N^-{law.exponent:.3g}'
    panel.plot(sizes, law.loss(sizes), color=color, label=label)
    panel.plot([p.parameters for p in own], [p.loss for p in own], 'o', ms=4, color=color)
  panel.set(xscale='log', yscale='log', xlabel='parameters', ylabel='loss (nats)')
  panel.legend(frameon=False, fontsize=8)


def _of_kind(jobs: Mapping[str, Sequence[Line]], kind: str) -> dict[str, list[Line]]:
  """Returns the lines of a kind by step and layer, of the jobs that have any."""
  order = lambda x: (x['step'], x['layer'])  # noqa: E731
  chosen = {
    name: sorted((x for x in lines if x['kind'] == kind), key=order) for name, lines in jobs.items()
  }
  return {name: lines for name, lines in chosen.items() if lines}


def _colors(jobs: Mapping[str, Sequence[Line]]) -> dict[str, str]:
  """Returns a color for each job: that of its attention, unless another job has it."""
  result, others = {}, iter(_OTHER_COLORS)
  for name, lines in jobs.items():
    own = COLORS[lines[0]['attention']]
    result[name] = next(others) if own in result.values() else own
  return result


def _shades(count: int, color: str) -> list[Any]:
  """Returns shades of a color, from pale for the first layer to the full color for the last."""
  from matplotlib import colors

  full = np.array(colors.to_rgb(color))
  return [tuple(1 - (1 - full) * (0.35 + 0.65 * (i + 1) / count)) for i in range(count)]


def _panels(columns: int, width: float, rows: int = 1) -> tuple[Any, Any]:
  """Returns a figure, and its panels in the order of rows."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  size = (width * columns, 3.2 * rows)
  figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout='constrained')
  for panel in axes.flat:
    panel.spines[['top', 'right']].set_visible(False)
  return figure, axes.flatten()


def _save(figure: Any, out: pathlib.Path) -> None:
  from matplotlib import pyplot as plt

  out.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(out, dpi=150)
  plt.close(figure)
