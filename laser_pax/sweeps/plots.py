"""The picture of a sweep: the figure against each dimension."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from laser_pax.sweeps import plans
from laser_pax.sweeps.spaces import Sweep

_COLORS = ('#3a6ea5', '#d1495b', '#66a182', '#edae49')
_COLUMNS = 4


def plot(
  sweep: Sweep, figures: Mapping[str, Mapping[int, Sequence[float]]], label: str, out: pathlib.Path
) -> None:
  """Draws one panel a dimension: a point's mean figure over its seeds, and each seed, paler.

  Args:
    sweep: The sweep, of one dimension or more.
    figures: Figures of each complete point, by experiment and number of the point.
    label: Label of the metric.
    out: PNG or SVG file to write.
  """
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  names = sweep.dimensions()
  columns = min(len(names), _COLUMNS)
  rows = -(-len(names) // columns)
  size = (max(4.5, 3 * columns), 3 * rows)
  figure, axes = plt.subplots(
    rows, columns, figsize=size, sharey=True, squeeze=False, layout='constrained'
  )
  for panel, name in zip(axes.flat, names, strict=False):
    for experiment, color in zip(sweep.experiments, _COLORS * len(sweep.experiments), strict=False):
      _draw(panel, sweep, name, figures[experiment], color, plans.short(experiment))
    panel.set_xlabel(name)
    panel.spines[['top', 'right']].set_visible(False)
  for panel in axes.flat[len(names) :]:
    panel.set_visible(False)
  for row in axes:
    row[0].set_ylabel(label)
  axes.flat[0].legend(frameon=False, fontsize=8)
  out.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(out, dpi=150)
  plt.close(figure)


def _draw(
  panel: Any,
  sweep: Sweep,
  name: str,
  figures: Mapping[int, Sequence[float]],
  color: str,
  label: str,
) -> None:
  """Draws one experiment in the panel of one dimension."""
  points = {n: sweep.points[n - 1][name] for n in figures if name in sweep.points[n - 1]}
  is_numeric = all(type(value) in (int, float) for value in points.values())
  x = {n: value if is_numeric else str(value) for n, value in points.items()}
  if is_numeric and points and min(points.values()) > 0:
    panel.set_xscale('log' if max(points.values()) >= 10 * min(points.values()) else 'linear')
  means = [statistics.fmean(figures[n]) for n in x]
  panel.plot([*x.values()], means, 'o', color=color, label=label)
  for n, value in x.items():
    if len(figures[n]) > 1:
      panel.plot([value] * len(figures[n]), figures[n], '.', color=color, alpha=0.4)
