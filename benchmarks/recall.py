"""Associative recall: which attention solves it, and after how many steps.

  python -m benchmarks.recall [--seeds 5] [--jobs 2]     # all points that are not in the file yet
  python -m benchmarks.recall --check 3                  # three published points once more

A point is a variant of attention, a learning rate and a seed. Each writes one line of JSON when it
is finished. The command ends with the table and the picture of docs/recall.md, made from all
finished points of the setting. With options that change the setting
or the file it prints the table alone.

It runs on jax, numpy and optax alone, as a run is seconds long and PAX takes 20 s to start. Each
job is a process of one thread, so results do not depend on the number of cores.
benchmarks/recall_model.py has the task and the model.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import pathlib
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from benchmarks import page, recall_model
from benchmarks.recall_model import BETAS, STANDARD, TWINS, Setting
from laser_pax.costs import machine

RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
ONE_THREAD = '--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1'
KEPT_EVALUATIONS = 20
COLORS = dict(zip(BETAS, ('#3a6ea5', '#66a182', '#d1495b', '#7d4f9e', '#edae49'), strict=True))


@dataclasses.dataclass(frozen=True)
class Point:
  """One run.

  Attributes:
    variant: A name of BETAS.
    learning_rate: AdamW's, after the warm-up.
    seed: It draws the weights and the rows.
    setting: All sizes.
  """

  variant: str
  learning_rate: float
  seed: int
  setting: Setting

  def __str__(self) -> str:
    return f'{self.variant}, learning rate {self.learning_rate:g}, seed {self.seed}'


def about() -> dict[str, str]:
  """Returns what the bits of a result depend on."""
  return {
    'jax': jax.__version__,
    'device': jax.devices()[0].device_kind,
    'processor': machine.processor(),
  }


def result(point: Point) -> dict:
  """Runs a point and returns its line.

  `steps` is the step of the evaluation that found the task solved, or None. `curve` has some of
  the evaluations, with the last. `seconds` includes compiling, once a process and variant.
  """
  began = time.perf_counter()
  run = recall_model.run(point.setting, point.variant, point.learning_rate, point.seed)
  evaluations = [{name: _plain(x) for name, x in found.items()} for found in run]
  last = evaluations[-1]
  is_solved = last['accuracy'] >= point.setting.solved
  return {
    'variant': point.variant,
    'learning_rate': point.learning_rate,
    'seed': point.seed,
    'steps': last['step'] if is_solved else None,
    'accuracy': last['accuracy'],
    'seconds': round(time.perf_counter() - began, 1),
    **about(),
    'setting': dataclasses.asdict(point.setting),
    'curve': _thinned(evaluations),
  }


def _plain(x: object) -> float | int | list | None:
  """Returns numbers as JSON has them, of four digits; None for what is not finite."""
  if isinstance(x, int):
    return x
  numbers = np.asarray(x, np.float64)
  if numbers.ndim:
    return [_plain(number) for number in numbers]
  return float(f'{numbers:.4g}') if np.isfinite(numbers) else None


def _thinned(evaluations: list[dict]) -> list[dict]:
  stride = -(-len(evaluations) // KEPT_EVALUATIONS)
  return evaluations[::-1][::stride][::-1]


def read(file: pathlib.Path) -> dict[Point, dict]:
  """Returns the finished points and their lines."""
  known = {}
  for text in file.read_text().splitlines() if file.exists() else []:
    with contextlib.suppress(ValueError):  # A line that was cut when the command was killed.
      line = json.loads(text)
      known[point_of(line)] = line
  return known


def point_of(line: dict) -> Point:
  """Returns the point that a line is of."""
  run = (line[name] for name in ('variant', 'learning_rate', 'seed'))
  return Point(*run, Setting(**line['setting']))


def results(points: list[Point], jobs: int) -> Iterator[tuple[Point, dict]]:
  """Runs points, `jobs` at a time. Yields each as it ends."""
  if jobs == 1 or len(points) < 2:
    yield from ((point, result(point)) for point in points)
    return
  with multiprocessing.get_context('spawn').Pool(jobs) as pool:
    for line in pool.imap_unordered(result, points):
      yield point_of(line), line


def finish(points: list[Point], file: pathlib.Path, jobs: int) -> None:
  """Runs those of the points that the file lacks, and appends a line for each."""
  known = read(file)
  waiting = [point for point in points if point not in known]
  file.parent.mkdir(parents=True, exist_ok=True)
  for count, (point, line) in enumerate(results(waiting, jobs), 1):
    _append(file, json.dumps(line))
    print(f'{count} of {len(waiting)}: {point}: {_words(line)}', flush=True)


def _append(file: pathlib.Path, line: str) -> None:
  """Appends a line, after ending a cut one."""
  kept = file.read_bytes() if file.exists() else b''
  is_cut = bool(kept) and not kept.endswith(b'\n')
  with file.open('a') as out:
    out.write(f'\n{line}\n' if is_cut else f'{line}\n')


def _words(line: dict) -> str:
  if line['steps'] is None:
    return f'not solved, accuracy {line["accuracy"]:.3f}'
  return f'solved after {line["steps"]:,} steps'


def check(number: int, file: pathlib.Path, jobs: int) -> bool:
  """Runs points of the file once more, prints both results, and returns whether they are equal.

  The points are spread over those that have this jax and this processor.
  """
  known = {p: line for p, line in read(file).items() if about().items() <= line.items()}
  if not known:
    raise SystemExit(
      f'--check needs points of {file} that ran on this machine and jax: {about()}. It has none. '
      'Run points here first.'
    )
  chosen = np.linspace(0, len(known) - 1, min(number, len(known))).round().astype(int)
  points = [list(known)[i] for i in chosen]
  are_equal = True
  for point, line in results(points, jobs):
    is_equal = all(line[name] == known[point][name] for name in ('steps', 'accuracy', 'curve'))
    are_equal &= is_equal
    said = 'equal' if is_equal else 'DIFFERENT'
    print(f'{point}: published {_words(known[point])}; now {_words(line)}: {said}', flush=True)
  return are_equal


# The table and the picture.


def summary(lines: Iterable[dict]) -> dict[tuple[str, float], list[float]]:
  """Returns, by variant and learning rate, the steps of each seed: infinite if not solved."""
  steps = {}
  for line in lines:
    by = line['variant'], line['learning_rate']
    steps.setdefault(by, []).append(line['steps'] or float('inf'))
  return {by: sorted(steps[by]) for by in sorted(steps)}


def table(lines: list[dict]) -> str:
  """Returns a table: for each variant and rate the seeds that solve, and the median of steps."""
  steps = summary(lines)
  rates = sorted({rate for _, rate in steps})
  variants = [name for name in BETAS if any(name == variant for variant, _ in steps)]
  body = [[v, *(_cell(steps.get((v, rate), [])) for rate in rates)] for v in variants]
  return page.rows(['attention', *(f'{rate:g}' for rate in rates)], body)


def _cell(steps: list[float]) -> str:
  if not steps:
    return ''
  solved, median = sum(np.isfinite(steps)), statistics.median(steps)
  return f'{solved}/{len(steps)}' + (f', {median:,.0f}' if np.isfinite(median) else '')


def settings_table(known: dict[Point, dict]) -> str:
  """Returns a table of standard attention in all settings of the file: how ours was chosen."""
  settings = dict.fromkeys(point.setting for point in known)
  body = []
  for setting in sorted(settings, key=lambda s: (s.pairs, s.dims)):
    steps = summary(x for p, x in known.items() if (p.setting, p.variant) == (setting, STANDARD))
    for (_, rate), of_seeds in steps.items():
      sizes = (setting.pairs, setting.dims, setting.heads)
      body.append([*map(str, sizes), f'{rate:g}', _cell(of_seeds)])
  return page.rows(['pairs', 'dims', 'heads', 'learning rate', 'solved, median steps'], body)


def best_rate(lines: list[dict]) -> float:
  """Returns standard attention's best learning rate: most seeds solve, then fewest steps."""
  steps = summary(line for line in lines if line['variant'] == STANDARD)
  rank = lambda by: (-np.mean(np.isfinite(steps[by])), statistics.median(steps[by]))  # noqa: E731
  return min(steps, key=rank)[1]


def shown_rates(lines: list[dict]) -> list[float]:
  """Returns standard attention's best learning rate, and the next higher one."""
  best = best_rate(lines)
  return sorted({line['learning_rate'] for line in lines if line['learning_rate'] >= best})[:2]


def explanation(lines: list[dict]) -> str:
  """Returns a table of small probabilities and logit gradients, in the middle and at the end.

  A cell has the median over seeds for each layer. Ratios are LASER's norm over standard
  attention's, on the same weights.
  """
  body = []
  cases = itertools.product(shown_rates(lines), TWINS, (True, False), ('middle', 'last'))
  for rate, variant, is_solved, place in cases:
    curves = [x['curve'] for x in _runs(lines, variant, rate) if bool(x['steps']) == is_solved]
    chosen = [curve[len(curve) // 2 if place == 'middle' else -1] for curve in curves]
    if chosen:
      outcome = f'{len(chosen)} solved' if is_solved else f'{len(chosen)} not solved'
      steps = f'{statistics.median(x["step"] for x in chosen):,.0f}'
      cells = [_of_layers(chosen, name, form) for name, form in _EXPLAINED.values()]
      body.append([variant, f'{rate:g}', outcome, steps, *cells])
  header = ['attention', 'learning rate', 'seeds', 'step']
  return page.rows([*header, *_EXPLAINED], body)


_EXPLAINED = {
  'below 1e-3': ('small', '.0%'),
  'spread of V': ('spread', '.1f'),
  'gradient, ratio': ('gradient of ', '.2f'),
  'gradient of logits below 1e-3, ratio': ('small gradient of ', '.1f'),
}


def _of_layers(evaluations: list[dict], name: str, form: str) -> str:
  """Returns the median of a number for each layer; of a ratio, where the name ends with ' of '."""
  medians = []
  for layer in range(len(evaluations[0]['small'])):
    if name.endswith(' of '):
      pairs = [[x[name + twin][layer] for twin in TWINS] for x in evaluations]
      numbers = [laser / standard for standard, laser in pairs if standard > 0]
    else:
      numbers = [x[name][layer] for x in evaluations]
    medians.append(format(statistics.median(numbers), form) if numbers else 'none')
  return ', '.join(medians)


def _runs(lines: list[dict], variant: str, rate: float) -> list[dict]:
  return [x for x in lines if (x['variant'], x['learning_rate']) == (variant, rate)]


def plot(lines: list[dict], out: pathlib.Path) -> None:
  """Draws seeds that solve the task and their steps by learning rate; losses at two rates."""
  import matplotlib

  matplotlib.use('agg')
  from matplotlib import pyplot as plt

  figure, axes = plt.subplots(2, 2, figsize=(10, 7.5), layout='constrained')
  _draw_rates(axes[0], lines)
  for panel, rate in zip(axes[1], shown_rates(lines), strict=False):
    for variant in TWINS:
      for i, line in enumerate(_runs(lines, variant, rate)):
        steps, losses = ([x[name] for x in line['curve']] for name in ('step', 'loss'))
        label = None if i else variant
        panel.plot(steps, losses, color=COLORS[variant], lw=1, alpha=0.7, label=label)
    panel.set(xlabel='step', ylabel='loss', title=f'learning rate {rate:g}: each seed')
    panel.title.set_fontsize(10)
    panel.legend(frameon=False)
  for panel in axes.flat:
    panel.spines[['top', 'right']].set_visible(False)
  out.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(out, dpi=110)
  plt.close(figure)


def _draw_rates(axes: Sequence, lines: list[dict]) -> None:
  """Draws the share of seeds on one panel; the steps of each seed and their median on another."""
  steps, limit = summary(lines), lines[0]['setting']['steps']
  variants = [name for name in BETAS if any(name == variant for variant, _ in steps)]
  for i, variant in enumerate(variants):
    of_rates = {rate: x for (name, rate), x in steps.items() if name == variant}
    shift = 1.05 ** (i - (len(variants) - 1) / 2)  # Side by side rather than one on the other.
    rates = [rate * shift for rate in of_rates]
    color = COLORS[variant]
    shares = [np.mean(np.isfinite(x)) for x in of_rates.values()]
    axes[0].plot(rates, shares, 'o-', color=color, markersize=4, label=variant)
    medians = [statistics.median(x) for x in of_rates.values()]
    axes[1].plot(rates, medians, '_-', color=color, markersize=9)
    for rate, of_seeds in zip(rates, of_rates.values(), strict=True):
      shown = np.minimum(of_seeds, 1.15 * limit)
      axes[1].plot([rate] * len(shown), shown, '.', color=color, alpha=0.4)
  axes[0].set(ylabel='share of seeds that solve the task', ylim=(-0.03, 1.03))
  axes[1].set(ylabel='steps until solved: seeds, median', yscale='log')
  axes[1].axhline(limit, color='grey', lw=0.8)
  place = {'xy': (0.01, 1.15 * limit), 'xycoords': ('axes fraction', 'data'), 'va': 'center'}
  axes[1].annotate('not solved', fontsize=8, **place)
  axes[0].legend(frameon=False)
  for panel in axes:
    panel.set(xscale='log', xlabel='learning rate')
    ticks = sorted({rate for _, rate in steps})
    panel.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
    panel.xaxis.minorticks_off()


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--out', type=pathlib.Path, default=page.RESULTS / 'recall.jsonl')
  parser.add_argument('--page', type=pathlib.Path, default=page.DOCS / 'recall.md')
  picture = page.DOCS / 'pictures' / 'recall.png'
  parser.add_argument('--picture', type=pathlib.Path, default=picture)
  parser.add_argument('--variants', nargs='+', choices=BETAS, default=list(BETAS))
  parser.add_argument('--rates', nargs='+', type=float, default=RATES)
  parser.add_argument('--seeds', type=int, default=5, help='Seeds of each point, from 0 on.')
  parser.add_argument('--jobs', type=int, default=2, help='Points at a time, a core each.')
  parser.add_argument('--check', type=int, help='Run so many finished points once more.')
  setting = parser.add_argument_group('setting')
  for field in dataclasses.fields(Setting):
    setting.add_argument(f'--{field.name}', type=field.type, default=field.default)
  return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
  """Runs what is left, then makes the table and the picture."""
  os.environ.setdefault('XLA_FLAGS', ONE_THREAD)  # The jobs inherit it.
  options = arguments(argv)
  if options.check is not None:
    raise SystemExit(0 if check(options.check, options.out, options.jobs) else 1)
  setting = Setting(**{x.name: getattr(options, x.name) for x in dataclasses.fields(Setting)})
  grid = itertools.product(range(options.seeds), options.rates, options.variants)
  points = [Point(variant, rate, seed, setting) for seed, rate, variant in grid]
  finish(points, options.out, options.jobs)
  known = read(options.out)
  print(table([line for point, line in known.items() if point.setting == setting]))
  if setting == Setting() and options.out == arguments([]).out:
    publish(known, options.page, options.picture)


def publish(known: dict[Point, dict], file: pathlib.Path, picture: pathlib.Path) -> None:
  """Writes the tables of a page, and the picture."""
  lines = [line for point, line in known.items() if point.setting == Setting()]
  page.replace('recall', table(lines), file)
  page.replace('explanation', explanation(lines), file)
  page.replace('settings', settings_table(known), file)
  plot(lines, picture)


if __name__ == '__main__':
  main()
