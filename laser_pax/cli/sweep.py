"""`python -m laser_pax sweep`: trains the points of a search space, and says which is best."""

import pathlib
import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from laser_pax import folders
from laser_pax.cli import experiments
from laser_pax.sweeps import outcomes, plans, running, spaces
from laser_pax.sweeps.outcomes import Outcome
from laser_pax.sweeps.plans import Run
from laser_pax.sweeps.spaces import Sweep


def sweep(
  file: Annotated[str, typer.Argument(help='A search space, such as configs/sweeps/tiny_6.toml.')],
  out: Annotated[
    str | None, typer.Option(help='Folder of all runs; without it runs/NAME, by the file.')
  ] = None,
  results: Annotated[
    str | None, typer.Option(help='File of the results; without it OUT/results.jsonl.')
  ] = None,
  data: Annotated[str | None, typer.Option(help='Prepared data; as for `train`.')] = None,
  vocab: Annotated[str | None, typer.Option(help='Vocabulary; as for `train`.')] = None,
  dry_run: Annotated[
    bool, typer.Option('--dry-run', help='Print points and commands; train nothing.')
  ] = False,
) -> None:
  """Trains the points of a search space, one after another, and says which is best.

  Each point is a job folder of OUT. The same command goes on with a sweep that was stopped or
  killed. As a point ends, a line is added to the results. At the end come a table, a picture, and
  the best point as a config of your own. docs/sweeps.md describes the file.
  """
  space = spaces.read(file)
  folder = folders.resolve_local(out or f'runs/{space.name}')
  space = running.known(space, folder)
  classes = {name: experiments.load(name) for name in space.experiments}
  plans.check(space, classes)
  console = Console()
  flags = [f'--{k}={folders.resolve(v)}' for k, v in {'data': data, 'vocab': vocab}.items() if v]
  if dry_run:
    _print_plan(console, space, folder, flags)
    return
  place = running.Place(
    folder=folder,
    results=folders.resolve_local(results) if results else folder / 'results.jsonl',
    flags=flags,
    say=lambda line: console.print(line, markup=False),
    announce=lambda run: console.rule(f'{run.name}: {spaces.words(run.overrides)}'),
  )
  with running.claimed(space, folder) as space:
    lines = running.run_all(space, classes, place)
  console.rule('result')
  console.print(result_table(space, classes, lines))
  _report_failures(console, space, lines)


def result_table(space: Sweep, classes: Mapping[str, type], lines: Sequence[Outcome]) -> Table:
  """Returns the comparison: a row for each point, the best first, a column for each experiment."""
  metric = plans.metric(space, classes)
  figures = {name: outcomes.figures(space, name, lines) for name in space.experiments}
  table = Table(box=None)
  for column in ('point', *space.dimensions(), *map(plans.short, space.experiments)):
    table.add_column(column, justify='right')
  first = figures[space.experiments[0]]
  sign = 1 if metric.better == 'lower' else -1
  numbers = sorted(
    range(1, len(space.points) + 1),
    key=lambda n: (n not in first, sign * statistics.fmean(first.get(n, (0,)))),
  )
  if space.tune == spaces.NOTHING:
    numbers.sort()
  for n in numbers:
    values = [str(space.points[n - 1].get(name, '')) for name in space.dimensions()]
    cells = [_cell(figures[name].get(n)) for name in space.experiments]
    table.add_row(str(n), *values, *cells)
  table.caption = f'{metric.label}; {metric.better} is better'
  return table


def _cell(figures: tuple[float, ...] | None) -> str:
  """Returns the mean of a point's figures, and their standard deviation if there are several."""
  if figures is None:
    return '-'
  deviation = f' ± {statistics.stdev(figures):.4f}' if len(figures) > 1 else ''
  return f'{statistics.fmean(figures):.4f}{deviation}'


def _report_failures(console: Console, space: Sweep, lines: Sequence[Outcome]) -> None:
  for name, one in outcomes.of_runs(_all_runs(space), lines).items():
    if one.status != outcomes.COMPLETE:
      console.print(f'{name} {one.status}: {one.reason or "no finite number"}', markup=False)


def _all_runs(space: Sweep) -> list[Run]:
  numbers = range(1, len(space.points) + 1)
  return [run for name in space.experiments for run in plans.runs_of(space, name, numbers)]


def _print_plan(console: Console, space: Sweep, folder: pathlib.Path, flags: Sequence[str]) -> None:
  """Prints the command of each run."""
  for run in plans.planned(space, best=None):
    console.print(shlex.join(run.command(str(folder / run.name), flags)), soft_wrap=True)
