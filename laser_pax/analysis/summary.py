"""Measurements in few words and rows, for the console and for the report."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from laser_pax.analysis import plots, runs
from laser_pax.analysis.lines import LASER, NORMS, STANDARD, Line


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
        row[f'{words} ratio'] = f'{ratio(gradients, norm):.3f}'
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


class Race(NamedTuple):
  """When a run reaches the best figure of another.

  Attributes:
    baseline: The run whose best figure counts.
    best: Its best figure.
    best_step: The step of its best figure.
    first: When it reached that figure.
    other: The run that is to reach it.
    others_best: That run's own best figure.
    second: When that run reached the baseline's best; None if it did not.
  """

  baseline: str
  best: float
  best_step: int
  first: runs.Reached
  other: str
  others_best: float
  second: runs.Reached | None


def race(baseline: runs.Run, other: runs.Run, better: str) -> Race | None:
  """Returns when a run reaches the best figure of another; None if one has no finite figure.

  Args:
    baseline: The run whose best figure counts.
    other: The run that is to reach it.
    better: 'lower' or 'higher', as in the metric of both.
  """
  bests = [runs.best(run, better) for run in (baseline, other)]
  if None in bests:
    return None
  (step, figure), (_, others_best) = bests
  return Race(
    baseline.name,
    figure,
    step,
    runs.reached(baseline, figure, better),
    other.name,
    others_best,
    runs.reached(other, figure, better),
  )


def told(race: Race, label: str) -> str:
  """Returns a race in a sentence.

  Args:
    race: The race.
    label: Label of the metric.
  """
  first, second = race.first, race.second
  best = f'{label} {race.best:.4f}, at step {race.best_step:,} after {first.minutes:.1f} minutes'
  start = f"{race.baseline}'s best {best}"
  if second is None:
    return f'{race.other} does not reach {start}: its own is {race.others_best:.4f}'
  return (
    f'{race.other} reaches {start}: at step {second.step:,.0f} after {second.minutes:.1f} minutes '
    f'({second.step / race.best_step:.1%} of the steps, '
    f'{second.minutes / max(first.minutes, 1e-9):.1%} of the time)'
  )
