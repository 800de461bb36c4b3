"""Measurements in few words and rows, for the console and for the report."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from laser_pax.analysis import plots, runs
from laser_pax.analysis.lines import LASER, NORMS, STANDARD, Line

if TYPE_CHECKING:
  from laser_pax.experiment.base import Metric


def rows(jobs: Mapping[str, Sequence[Line]]) -> list[dict[str, str]]:
  """Returns a row for each job and step, by the name of its columns.

  A ratio of gradients is LASER's norm over standard attention's, the median over layers.

  Args:
    jobs: The lines of each job, by its name.
  """
  result = []
  for name, lines in jobs.items():
    for step, share in plots.shares(lines).items():
      own = [x for x in lines if x['step'] == step and x['kind'] == 'attention']
      gradients = [x for x in lines if x['step'] == step and x['kind'] == 'gradients']
      row = {
        'job': name,
        'attention': own[0]['attention'],
        'step': f'{step:,}',
        '< 1e-3': f'{share["0.001"]:.4f}',
        '< 1e-7': f'{share["1e-07"]:.4f}',
        'std of V': f'{np.mean([x["value_std"] for x in own]):.3f}',
        'range of V': f'{np.mean([x["value_range"] for x in own]):.2f}',
      }
      for norm, words in zip(NORMS, ('logits', 'W_q', 'W_k', 'W_v'), strict=True):
        row[f'{words}: LASER/standard'] = f'{ratio(gradients, norm):.3f}'
      result.append(row)
  return result


def ratio(lines: Sequence[Line], norm: str) -> float:
  """Returns LASER's norm over standard attention's on the same weights, the median over layers.

  Args:
    lines: Lines of gradients, of one step.
    norm: One of `NORMS`.
  """
  norms = {(x['attention'], x['layer']): plots.layer_norm(x, norm) for x in lines}
  layers = {layer for _, layer in norms}
  return float(
    np.median([norms[LASER, layer] / max(norms[STANDARD, layer], 1e-300) for layer in layers])
  )


def reaching(baseline: runs.Run, other: runs.Run, metric: 'Metric') -> str:
  """Returns a sentence: when a run reaches the best figure of another.

  Args:
    baseline: The run whose best figure counts.
    other: The run that is to reach it.
    metric: The metric of both.
  """
  step, figure = runs.best(baseline, metric.better)
  first = runs.reached(baseline, figure, metric.better)
  second = runs.reached(other, figure, metric.better)
  best = f'{metric.label} {figure:.4f}, at step {step:,} after {first.minutes:.1f} minutes'
  if second is None:
    _, own = runs.best(other, metric.better)
    return f"{other.name} does not reach {baseline.name}'s best {best}: its own is {own:.4f}"
  return (
    f"{other.name} reaches {baseline.name}'s best {best}: at step {second.step:,.0f} after "
    f'{second.minutes:.1f} minutes ({second.step / step:.1%} of the steps, '
    f'{second.minutes / max(first.minutes, 1e-9):.1%} of the time)'
  )
