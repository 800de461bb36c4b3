"""The small replication: LASER and standard attention at three sizes, on real text.

  python -m benchmarks.replication            # trains and measures what has no line yet, then docs
  python -m benchmarks.replication --check    # trains one published run once more, and compares

It searches the learning rate by configs/sweeps/replication_search.toml, trains the runs of
configs/sweeps/replication.toml, and measures each model's attention. Each run's lines are kept in
docs/results as it ends, so a killed command goes on. Then it writes the tables and the picture of
docs/results.md.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import page
from laser_pax.analysis import lines, plots, power_law, runs, summary
from laser_pax.errors import UserError
from laser_pax.sweeps import outcomes, plans, spaces
from laser_pax.sweeps.outcomes import Outcome
from laser_pax.sweeps.plans import Run

SWEEPS = pathlib.Path(__file__).parents[1] / 'configs' / 'sweeps'
SEARCH, SPACE = SWEEPS / 'replication_search.toml', SWEEPS / 'replication.toml'
SEARCHED = page.RESULTS / 'replication_search.jsonl'
OUTCOMES = page.RESULTS / 'replication.jsonl'
MEASURED = page.RESULTS / 'replication_runs.jsonl'
PAGE = page.DOCS / 'results.md'
PICTURE = page.DOCS / 'pictures' / 'replication.png'
ATTENTIONS = {'C4StandardTiny': 'standard', 'C4LaserTiny': 'LASER'}
COLORS = {'standard': '#3a6ea5', 'LASER': '#d1495b'}
WINDOW = 20  # Steps in a mean of the training loss.
SMALL = ('0.001', '1e-07')
TOLERANCE = 1e-3  # In nats, for a run of another machine.


@dataclasses.dataclass(frozen=True)
class Trained:
  """A run, with what came out of it.

  Attributes:
    run: The run.
    outcome: Its line of `OUTCOMES`.
    measured: Its line of `MEASURED`.
  """

  run: Run
  outcome: Outcome
  measured: Mapping

  @property
  def attention(self) -> str:
    return ATTENTIONS[self.run.experiment]

  @property
  def parameters(self) -> int:
    """Parameters without embedding: attention and MLP have 4 and 2 HIDDEN / MODEL of width^2."""
    values = self.run.overrides
    width = values['MODEL_DIMS']
    return values['NUM_LAYERS'] * width * (4 * width + 2 * values['HIDDEN_DIMS'])


def sweep(file: pathlib.Path, results: pathlib.Path, out: pathlib.Path, parallel: int) -> None:
  """Trains what has no line yet."""
  command = [sys.executable, '-m', 'laser_pax', 'sweep', str(file), f'--results={results}']
  command += [f'--out={out / file.stem}', f'--parallel={parallel}']
  subprocess.run(command, check=True)


def measure(run: Run, job: pathlib.Path) -> dict:
  """Returns a run's curves, and what its attention does at the end."""
  read = runs.read_run(run.name, job)
  steps, means = runs.smooth(read.train, WINDOW)
  kept = {s: round(m, 5) for s, m in zip(steps, means, strict=True) if s % WINDOW == 0}
  checkpoint = job / 'checkpoints' / f'checkpoint_{max(read.train):08d}'
  subprocess.run([sys.executable, '-m', 'laser_pax', 'analyse', str(checkpoint)], check=True)
  of_layers = lines.read(job / 'analysis')
  own = [x for x in of_layers if x['kind'] == 'attention']
  gradients = [x for x in of_layers if x['kind'] == 'gradients']
  by_layer = {
    f'below {threshold}': [float(np.mean(x['share_below'][threshold])) for x in own]
    for threshold in SMALL
  }
  by_layer['std of V'] = [float(np.mean(x['value_std'])) for x in own]
  by_layer['gradient of logits, LASER over standard'] = [
    plots.layer_norm(_line(gradients, lines.LASER, x['layer']), 'logits')
    / plots.layer_norm(_line(gradients, lines.STANDARD, x['layer']), 'logits')
    for x in own
  ]
  return {
    'run': run.name,
    'train_loss': kept,
    'evaluations': read.evaluations,
    'gradients': {norm: summary.ratio(gradients, norm) for norm in lines.NORMS},
    'layers': {name: [round(x, 6) for x in values] for name, values in by_layer.items()},
  }


def _line(gradients: Sequence[lines.Line], attention: str, layer: int) -> lines.Line:
  (line,) = [x for x in gradients if (x['attention'], x['layer']) == (attention, layer)]
  return line


def read_measured() -> dict[str, dict]:
  """Returns the lines of `MEASURED` by their run's name."""
  text = MEASURED.read_text() if MEASURED.exists() else ''
  return {line['run']: line for line in map(json.loads, text.splitlines())}


def read_trained() -> list[Trained]:
  """Returns the runs whose lines are all there, in the order of the space."""
  all_runs = plans.every(spaces.read(SPACE))
  newest, measured = outcomes.of_runs(all_runs, outcomes.read(OUTCOMES)), read_measured()
  return [
    Trained(run, newest[run.name], measured[run.name])
    for run in all_runs
    if run.name in newest and run.name in measured
  ]


def mean_and_error(values: Sequence[float]) -> str:
  """Returns the mean, and its standard error where there are two values or more."""
  mean = statistics.fmean(values)
  if len(values) < 2:
    return f'{mean:.4f}'
  return f'{mean:.4f} ± {statistics.stdev(values) / math.sqrt(len(values)):.4f}'


def _groups(trained: Sequence[Trained]) -> dict[int, dict[str, dict[int, Trained]]]:
  """Returns the runs by size, attention and seed; sizes that both attentions have."""
  groups: dict = {}
  for one in trained:
    of_size = groups.setdefault(one.parameters, {name: {} for name in ATTENTIONS.values()})
    of_size[one.attention][one.run.seed] = one
  return {size: of_size for size, of_size in groups.items() if all(of_size.values())}


def loss_table(trained: Sequence[Trained]) -> str:
  """Returns test losses of each size: means over seeds, and the difference of twins."""
  body = []
  for parameters, of_size in _groups(trained).items():
    standard, laser = of_size['standard'], of_size['LASER']
    losses = {
      name: [x.outcome.figure for x in of_seed.values()] for name, of_seed in of_size.items()
    }
    seeds = sorted(standard.keys() & laser.keys())
    differences = [laser[s].outcome.figure - standard[s].outcome.figure for s in seeds]
    body.append(
      [
        f'{parameters / 1e6:.2f}M',
        mean_and_error(losses['standard']),
        mean_and_error(losses['LASER']),
        mean_and_error(differences),
        f'{sum(d < 0 for d in differences)} of {len(seeds)}',
      ]
    )
  header = ['parameters', 'standard', 'LASER', 'LASER less standard', 'seeds with less']
  return page.rows(header, body)


def search_table() -> str:
  """Returns the test loss of each learning rate that was searched."""
  of_rate = {x.overrides['LEARNING_RATE']: x for x in outcomes.read(SEARCHED)}
  header = ['learning rate', *(f'{rate:g}' for rate in sorted(of_rate))]
  return page.rows(header, [['loss', *(f'{of_rate[r].figure:.4f}' for r in sorted(of_rate))]])


def attention_table(trained: Sequence[Trained]) -> str:
  """Returns what the attention does at the end, means over seeds and layers."""
  body = []
  for parameters, of_size in _groups(trained).items():
    for attention, of_seed in of_size.items():
      layers = [x.measured['layers'] for x in of_seed.values()]
      gradients = [x.measured['gradients'] for x in of_seed.values()]
      shares = [f'{statistics.fmean(np.mean(x[f"below {t}"]) for x in layers):.3f}' for t in SMALL]
      std = f'{statistics.fmean(np.mean(x["std of V"]) for x in layers):.2f}'
      ratios = [f'{statistics.fmean(x[norm] for x in gradients):.3f}' for norm in lines.NORMS]
      body.append([f'{parameters / 1e6:.2f}M', attention, *shares, std, *ratios])
  header = ['parameters', 'weights of', 'below 1e-3', 'below 1e-7', 'std of V']
  return page.rows([*header, 'logits', 'W_q', 'W_k', 'W_v'], body)


def fits(trained: Sequence[Trained]) -> tuple[dict[str, power_law.Fit], str]:
  """Returns the power law of each attention, or none and the reason."""
  if len(_groups(trained)) < len(spaces.read(SPACE).points):
    return {}, 'Not all sizes are trained yet.'
  try:
    return power_law.fit_each(points_of(trained)), ''
  except UserError as e:
    return {}, f'None is fitted: {e}'


def points_of(trained: Sequence[Trained]) -> list[power_law.Point]:
  """Returns the points of the power laws."""
  return [power_law.Point(x.parameters, x.outcome.figure, x.attention, x.run.seed) for x in trained]


def fit_table(laws: Mapping[str, power_law.Fit]) -> str:
  """Returns the power laws with their bands, and what LASER saves at each size."""
  body = []
  for name, law in laws.items():
    of_name = law.intervals()
    body.append(
      [f'{name}: A', _interval(of_name['A']), f'{name}: alpha', _interval(of_name['alpha'])]
    )
  for saving in power_law.savings(laws['standard'], laws['LASER']):
    at = f'at {saving.parameters / 1e6:.2f}M'
    body.append(
      [f'{at}: multiple', _interval(saving.multiple), f'{at}: saved', _interval(saving.saved)]
    )
  return page.rows(['', 'value, 95% band', '', 'value, 95% band'], body)


def _interval(x: power_law.Interval) -> str:
  return f'{x.value:.3g} [{x.low:.3g}, {x.high:.3g}]'


def plot(trained: Sequence[Trained], laws: Mapping[str, power_law.Fit], out: pathlib.Path) -> None:
  """Draws the training losses, LASER's less standard attention's, and the power laws."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  figure, (losses, differences, law_panel) = plt.subplots(
    1, 3, figsize=(13, 4), layout='constrained'
  )
  groups = _groups(trained)
  for (parameters, of_size), style in zip(groups.items(), ('-', '--', ':'), strict=False):
    curves = {}
    for attention, of_seed in of_size.items():
      train = [x.measured['train_loss'] for x in of_seed.values()]
      steps = [int(s) for s in train[0]]
      curves[attention] = {
        x.run.seed: np.array(list(x.measured['train_loss'].values())) for x in of_seed.values()
      }
      mean = np.mean(list(curves[attention].values()), axis=0)
      label = f'{attention}, {parameters / 1e6:.1f}M'
      losses.plot(steps, mean, style, color=COLORS[attention], lw=1.2, label=label)
    seeds = sorted(curves['standard'].keys() & curves['LASER'].keys())
    gaps = np.array([curves['LASER'][s] - curves['standard'][s] for s in seeds])
    (line,) = differences.plot(steps, gaps.mean(0), label=f'{parameters / 1e6:.1f}M')
    if len(seeds) > 1:
      error = gaps.std(0, ddof=1) / math.sqrt(len(seeds))
      low, high = gaps.mean(0) - error, gaps.mean(0) + error
      differences.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, lw=0)
  differences.axhline(0, color='0.5', ls=':')
  if laws:
    plots.draw_power_laws(law_panel, points_of(trained), laws)
  else:
    _draw_losses(law_panel, groups)
  losses.set(xlabel='step', ylabel='training loss (nats), mean over seeds')
  differences.set(xlabel='step', ylabel='LASER less standard attention (nats)')
  for panel in (losses, differences, *(() if laws else (law_panel,))):
    panel.legend(frameon=False, fontsize=8)
    panel.spines[['top', 'right']].set_visible(False)
  figure.savefig(out, dpi=110)
  plt.close(figure)


def _draw_losses(panel: Any, groups: Mapping) -> None:
  """Draws the test losses over the sizes, each seed and the mean."""
  for attention, color in COLORS.items():
    of_sizes = {n: [x.outcome.figure for x in g[attention].values()] for n, g in groups.items()}
    means = [statistics.fmean(losses) for losses in of_sizes.values()]
    panel.plot([n / 1e6 for n in of_sizes], means, color=color, label=attention)
    for parameters, losses in of_sizes.items():
      panel.plot([parameters / 1e6] * len(losses), losses, 'o', color=color, ms=4, alpha=0.6)
  panel.set(xscale='log', xlabel='parameters without embedding (M)', ylabel='test loss (nats)')
  panel.set_xticks([n / 1e6 for n in groups], [f'{n / 1e6:.2f}' for n in groups])
  panel.minorticks_off()


def write_page(trained: Sequence[Trained]) -> None:
  """Writes tables and picture of docs/results.md."""
  page.replace('search', search_table(), PAGE)
  page.replace('losses', loss_table(trained), PAGE)
  page.replace('attention', attention_table(trained), PAGE)
  laws, reason = fits(trained)
  page.replace('fit', fit_table(laws) if laws else reason, PAGE)
  plot(trained, laws, PICTURE)
  hours = sum(x.outcome.seconds for x in trained) / 3600
  print(f'{len(trained)} runs, {hours:.1f} hours of training and evaluations in all')


def train(out: pathlib.Path, parallel: int) -> None:
  """Trains and measures what has no line yet. What an earlier call left is measured first."""
  measure_ended(out / SPACE.stem)
  sweep(SEARCH, SEARCHED, out, parallel)
  sweep(SPACE, OUTCOMES, out, parallel)
  measure_ended(out / SPACE.stem)


def measure_ended(jobs: pathlib.Path) -> None:
  """Measures the runs that have an outcome, but no measurement yet."""
  all_runs = plans.every(spaces.read(SPACE))
  ended, measured = outcomes.of_runs(all_runs, outcomes.read(OUTCOMES)), read_measured()
  for run in all_runs:
    if run.name in ended and run.name not in measured:
      job = jobs / run.name
      if not job.exists():  # It was trained on another machine.
        subprocess.run(run.command(str(job)), check=True)
      line = measure(run, job)
      with MEASURED.open('a') as file:
        file.write(json.dumps(line) + '\n')


def check() -> bool:
  """Trains the smallest LASER run of seed 0 once more; returns whether its loss is as published."""
  space = spaces.read(SPACE)
  run = next(r for r in plans.every(space) if ATTENTIONS[r.experiment] == 'LASER')
  published = outcomes.of_runs([run], outcomes.read(OUTCOMES))[run.name].figure
  with tempfile.TemporaryDirectory() as folder:
    subprocess.run(run.command(folder), check=True)
    again = runs.read_run(run.name, pathlib.Path(folder)).last
  distance = abs(again - published)
  print(f'{run.name}: published {published:.6f}, now {again:.6f}, distance {distance:.1e}')
  return distance <= TOLERANCE


def main() -> None:
  """Trains, measures, and writes the page; or checks one run."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--out', type=pathlib.Path, default='runs', help='folder of the trainings')
  parser.add_argument('--parallel', type=int, default=2, help='runs trained at once')
  parser.add_argument('--check', action='store_true', help='train one published run once more')
  flags = parser.parse_args()
  if flags.check:
    sys.exit(not check())
  train(flags.out, flags.parallel)
  write_page(read_trained())


if __name__ == '__main__':
  main()
