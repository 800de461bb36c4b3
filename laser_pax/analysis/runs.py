"""Finished runs, from the progress.jsonl that `python -m laser_pax train` writes, and a plot."""

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
    name: To show.
    train: Loss in nats a token, by step.
    evaluations: Loss on the whole validation split, by step.
    units_per_second: Tokens, or whatever training counts: the median over the run.
    minutes: Of training and evaluations, imports and the first compile left out.
  """

  name: str
  train: dict[int, float]
  evaluations: dict[int, float]
  units_per_second: float
  minutes: float

  @property
  def test_loss(self) -> float:
    """Loss on the validation split at the last evaluation."""
    return self.evaluations[max(self.evaluations)]


def read_run(name: str, job_log_dir: pathlib.Path) -> Run:
  """Reads a run's record.

  Of several records of one step, as a resumed run leaves them, the last holds.

  Args:
    name: To show.
    job_log_dir: The run's folder.

  Raises:
    UserError: the folder holds no record, or none of an evaluation.
  """
  file = pathlib.Path(job_log_dir) / 'progress.jsonl'
  if not file.exists():
    raise UserError(f'{file} does not exist: train with `python -m laser_pax train` first')
  train, evaluations, rates, minutes = {}, {}, [], 0.0
  last_seconds = None
  for line in file.read_text().splitlines():
    record = json.loads(line)
    # Each process counts its seconds from its own start; the first record comes when the step has
    # compiled.
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
  """Returns steps, and the mean loss of the `window` steps up to each."""
  steps = sorted(step for step, loss in losses.items() if loss is not None)
  values = [losses[step] for step in steps]
  means = [statistics.fmean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]
  return steps, means


def plot_runs(runs: Sequence[Run], unigram_entropy: float, out: pathlib.Path) -> None:
  """Draws the runs' losses, training as lines and evaluations as points, and their differences.

  Args:
    runs: To draw; below, each but the first is drawn as its difference from the first.
    unigram_entropy: Of the text, in nats a token: what knowing frequencies alone would reach.
    out: A PNG or SVG file.
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
