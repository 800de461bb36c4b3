"""Finished runs, read from the progress.jsonl of `python -m laser_pax train`, and their plot."""

import dataclasses
import pathlib
import statistics
from collections.abc import Sequence

from laser_pax.errors import UserError
from laser_pax.experiment import progress


@dataclasses.dataclass(frozen=True)
class Run:
  """One run.

  Attributes:
    name: Name to show.
    split: Name to show of the evaluation split.
    train: Training loss by step.
    evaluations: Figure of the metric on the whole evaluation split, by step.
    units_per_second: Median number of units (tokens, images) per second.
    minutes: Minutes of training and evaluations, without imports and the first compilation.
  """

  name: str
  split: str
  train: dict[int, float]
  evaluations: dict[int, float]
  units_per_second: float
  minutes: float

  @property
  def last(self) -> float:
    """Figure of the metric at the last evaluation."""
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
  return Run(name, split or 'test', records.train, records.evaluations, rate, minutes)


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
  runs: Sequence[Run], label: str, chance: tuple[str, float], out: pathlib.Path
) -> None:
  """Draws the runs' losses, the differences from the first run, and the metric if it is another.

  Lines are training, points are evaluations.

  Args:
    runs: One to four runs.
    label: Label of the metric.
    chance: Name and figure of what frequencies alone reach.
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
    words = f'{run.name}, {run.split}: {run.last:.4f} at the end'
    metric.plot(*zip(*run.evaluations.items(), strict=True), 'o', color=color, label=words)
    if run is not runs[0]:
      pairs = [(run.train, runs[0].train, '-')]
      pairs += [(run.evaluations, runs[0].evaluations, 'o')] if is_loss else []
      for points, against, style in pairs:
        common = {s: points[s] - against[s] for s in points if against.get(s) and points[s]}
        drawn = smooth(common) if style == '-' else (list(common), list(common.values()))
        differences.plot(*drawn, style, color=color)
  metric.axhline(chance[1], color='0.5', ls=':', label=f'{chance[0]}: {chance[1]:.2f}')
  differences.axhline(0, color='0.5', ls=':')
  if is_loss:
    top = max(chance[1], *(max(run.evaluations.values()) for run in runs))
    losses.set_ylim(min(run.last for run in runs) - 0.3, top + 0.7)
  else:
    metric.set_ylabel(label)
  losses.set_ylabel('loss (nats)')
  differences.set_ylabel(f'minus\n{runs[0].name}')
  axes[-1].set_xlabel('step')
  for one in {losses, metric}:
    one.legend(frameon=False, fontsize=8)
  for one in axes:
    one.spines[['top', 'right']].set_visible(False)
  out.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(out, dpi=150)
  plt.close(figure)
