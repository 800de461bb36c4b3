"""Finished runs, read from the progress.jsonl of `python -m laser_pax train`, and their plot."""

import dataclasses
import pathlib
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from laser_pax.errors import UserError
from laser_pax.experiment import progress


@dataclasses.dataclass(frozen=True)
class Run:
  """One run.

  Attributes:
    name: Name to show.
    split: Name to show of the evaluation split.
    train: Training loss by step.
    evaluations: Figure of the metric on the whole evaluation split, by step; None if not finite.
    units_per_second: Median number of units (tokens, images) per second.
    minutes: Minutes of training and evaluations, without imports and the first compilation.
    minutes_at: The same at each evaluation, by its step.
    skipped_steps: Steps that were skipped, as their gradients were not finite.
  """

  name: str
  split: str
  train: dict[int, float]
  evaluations: dict[int, float | None]
  units_per_second: float
  minutes: float
  minutes_at: dict[int, float] = dataclasses.field(default_factory=dict)
  skipped_steps: int = 0

  @property
  def last(self) -> float | None:
    """Figure of the metric at the last evaluation; None if it is no finite number."""
    return self.evaluations[max(self.evaluations)]


def read_run(
  name: str, job_log_dir: pathlib.Path, label: str = 'loss', split: str | None = None
) -> Run:
  """Reads a run from its progress.jsonl.

  A resumed run may have several records of one step. The last of them counts.

  Args:
    name: Name to show.
    job_log_dir: Folder of the run.
    label: Label of the metric in the records.
    split: The evaluation input to read; None if there is one alone.

  Raises:
    UserError: The folder has no progress.jsonl, or the file has no evaluation.
  """
  file = pathlib.Path(job_log_dir) / progress.FILE
  records = progress.read(job_log_dir, label, split)
  if records is None:
    raise UserError(f'{file} does not exist: train with `python -m laser_pax train` first')
  if not records.evaluations or not records.rates:
    raise UserError(f'{file} has no evaluation yet: let the run end')
  rate, minutes = statistics.median(records.rates), records.seconds / 60
  minutes_at = {step: seconds / 60 for step, seconds in records.seconds_at.items()}
  return Run(
    name,
    split or 'test',
    records.train,
    records.evaluations,
    rate,
    minutes,
    minutes_at,
    records.skipped_steps,
  )


class Reached(NamedTuple):
  """When a run reaches a figure.

  Attributes:
    step: Its step, between two evaluations by a straight line.
    minutes: Minutes until then.
  """

  step: float
  minutes: float


def shown(figure: float | None) -> str:
  """Returns a figure of a run as text."""
  return 'not finite' if figure is None else f'{figure:.4f}'


def best(run: Run, better: str) -> tuple[int, float] | None:
  """Returns the step and the figure of a run's best evaluation; None if none is finite.

  Args:
    run: The run.
    better: 'lower' or 'higher', as in the experiment's METRIC.
  """
  figures = {step: x for step, x in run.evaluations.items() if x is not None}
  if not figures:
    return None
  step = (min if better == 'lower' else max)(figures, key=figures.__getitem__)
  return step, figures[step]


def reached(run: Run, figure: float, better: str) -> Reached | None:
  """Returns when a run's evaluations first reach a figure; None if they never do.

  Args:
    run: The run.
    figure: The figure, such as another run's best.
    better: 'lower' or 'higher', as in the experiment's METRIC.
  """
  sign = 1 if better == 'lower' else -1
  previous = None
  for step in sorted(step for step, x in run.evaluations.items() if x is not None):
    missing = sign * (run.evaluations[step] - figure)
    here = step, run.minutes_at[step]
    if missing <= 0:
      if previous is None:
        return Reached(*here)
      missed, before = previous
      part = missed / (missed - missing)
      return Reached(*(b + part * (h - b) for b, h in zip(before, here, strict=True)))
    previous = missing, here
  return None


def smooth(losses: dict[int, float], window: int = 20) -> tuple[list[int], list[float]]:
  """Returns the steps, and for each the mean loss of the last `window` steps.

  Args:
    losses: Loss by step. Steps whose loss is None are left out.
    window: Number of steps in a mean.
  """
  steps = sorted(step for step, loss in losses.items() if loss is not None)
  values = [losses[step] for step in steps]
  means = [statistics.fmean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]
  return steps, means


def plot_runs(
  runs: Sequence[Run], label: str, chance: tuple[str, float] | None, out: pathlib.Path
) -> None:
  """Draws the runs' losses, the differences from the first run, and the metric if it is another.

  Lines are training, points are evaluations.

  Args:
    runs: One to four runs.
    label: Label of the metric.
    chance: Name and figure of what frequencies alone reach; None where it is not known.
    out: PNG or SVG file to write.
  """
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  is_loss = label == 'loss'
  heights = (3, 1) if is_loss else (3, 1, 3)
  figure, axes = plt.subplots(
    len(heights),
    figsize=(7, 1.25 * sum(heights)),
    height_ratios=heights,
    sharex=True,
    layout='constrained',
  )
  losses, differences, metric = axes[0], axes[1], axes[0 if is_loss else 2]
  for run, color in zip(runs, ('#3a6ea5', '#d1495b', '#66a182', '#edae49'), strict=False):
    losses.plot(*smooth(run.train), color=color, label=f'{run.name}, training')
    words = f'{run.name}, {run.split}: {shown(run.last)} at the end'
    metric.plot(*zip(*run.evaluations.items(), strict=True), 'o', color=color, label=words)
    if run is not runs[0]:
      pairs = [(run.train, runs[0].train, '-')]
      pairs += [(run.evaluations, runs[0].evaluations, 'o')] if is_loss else []
      for points, against, style in pairs:
        common = {s: points[s] - against[s] for s in points if against.get(s) and points[s]}
        drawn = smooth(common) if style == '-' else (list(common), list(common.values()))
        differences.plot(*drawn, style, color=color)
  if chance is not None:
    metric.axhline(chance[1], color='0.5', ls=':', label=f'{chance[0]}: {chance[1]:.2f}')
  differences.axhline(0, color='0.5', ls=':')
  if is_loss:
    figures = [x for run in runs for x in run.evaluations.values() if x is not None]
    top = max([*figures, *([chance[1]] if chance else [])])
    losses.set_ylim(min(figures) - 0.3, top + 0.7)
  else:
    metric.set_ylabel(label)
  losses.set_ylabel('loss (nats)')
  differences.set_ylabel(f'minus\n{runs[0].name}', fontsize=10 if len(runs[0].name) < 12 else 6)
  axes[-1].set_xlabel('step')
  for one in {losses, metric}:
    one.legend(frameon=False, fontsize=8)
  for one in axes:
    one.spines[['top', 'right']].set_visible(False)
  out.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(out, dpi=150)
  plt.close(figure)
