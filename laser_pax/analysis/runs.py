"""Finished runs, read from the progress.jsonl of `python -m laser_pax train`, and their plot."""

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Sequence

from laser_pax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Run:
  """One run.

  Attributes:
    name: Name to show.
    train: Training loss by step, in nats per token.
    evaluations: Loss on the whole validation split by step, in nats per token.
    units_per_second: Median number of units (tokens, images) per second.
    minutes: Minutes of training and evaluations, without imports and the first compilation.
  """

  name: str
  train: dict[int, float]
  evaluations: dict[int, float]
  units_per_second: float
  minutes: float

  @property
  def test_loss(self) -> float:
    """Loss on the validation split at the last evaluation, in nats per token."""
    return self.evaluations[max(self.evaluations)]


def read_run(name: str, job_log_dir: pathlib.Path) -> Run:
  """Reads a run from its progress.jsonl.

  A resumed run may have several records of one step. The last of them counts.

  Args:
    name: Name to show.
    job_log_dir: Folder of the run.

  Raises:
    UserError: The folder has no progress.jsonl, or the file has no evaluation.
  """
  file = pathlib.Path(job_log_dir) / 'progress.jsonl'
  if not file.exists():
    raise UserError(f'{file} does not exist: train with `python -m laser_pax train` first')
  train, evaluations, rates, minutes = {}, {}, [], 0.0
  last_seconds = None
  for line in file.read_text().splitlines():
    record = json.loads(line)
    # Each process counts seconds from its own start, and writes its first record after the step has
    # compiled. So the time before a process's first record does not count.
    if last_seconds is not None and record['seconds'] >= last_seconds:
      minutes += (record['seconds'] - last_seconds) / 60
    last_seconds = record['seconds']
    if record['kind'] == 'train':
      train[record['step']] = record['loss']
      rate = next(v for k, v in record.items() if k.endswith('_per_second'))
      if rate is not None:
        rates.append(rate)
    else:
      evaluations[record['step']] = record['loss']
  if not evaluations or not rates:
    raise UserError(f'{file} has no evaluation yet: let the run end')
  return Run(name, train, evaluations, statistics.median(rates), minutes)


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


def plot_runs(runs: Sequence[Run], unigram_entropy: float, out: pathlib.Path) -> None:
  """Draws the losses of runs, and below them the differences from the first run.

  Training losses are lines, and evaluations are points.

  Args:
    runs: One to four runs.
    unigram_entropy: Loss of a model that knows only token frequencies, in nats per token.
    out: PNG or SVG file to write.
  """
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  figure, (losses, differences) = plt.subplots(
    2, figsize=(7, 5), height_ratios=(3, 1), sharex=True, layout='constrained'
  )
  base = runs[0]
  for run, color in zip(runs, ('#3a6ea5', '#d1495b', '#66a182', '#edae49'), strict=False):
    losses.plot(*smooth(run.train), color=color, label=f'{run.name}, training')
    label = f'{run.name}, test: {run.test_loss:.4f} at the end'
    losses.plot(*zip(*run.evaluations.items(), strict=True), 'o', color=color, label=label)
    if run is not base:
      for points, style in ((run.train, '-'), (run.evaluations, 'o')):
        against = base.train if style == '-' else base.evaluations
        common = {s: points[s] - against[s] for s in points if against.get(s) and points[s]}
        drawn = smooth(common) if style == '-' else (list(common), list(common.values()))
        differences.plot(*drawn, style, color=color)
  losses.axhline(unigram_entropy, color='0.5', ls=':', label=f'unigram: {unigram_entropy:.2f}')
  differences.axhline(0, color='0.5', ls=':')
  top = max(unigram_entropy, *(max(run.evaluations.values()) for run in runs))
  bottom = min(run.test_loss for run in runs)
  losses.set(ylabel='loss (nats a token)', ylim=(bottom - 0.3, top + 0.7))
  differences.set(xlabel='step', ylabel=f'minus\n{base.name}')
  losses.legend(frameon=False, fontsize=8)
  for axes in (losses, differences):
    axes.spines[['top', 'right']].set_visible(False)
  out.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(out, dpi=150)
  plt.close(figure)
