"""`python -m laser_pax sweep`: trains the points of a search space, and says which is best."""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from laser_pax import folders
from laser_pax.cli import experiments
from laser_pax.errors import UserError
from laser_pax.sweeps import outcomes, plans, plots, pod_lines, running, spaces, trainings, tuned
from laser_pax.sweeps.outcomes import Outcome
from laser_pax.sweeps.spaces import Sweep

if TYPE_CHECKING:
  from laser_pax.experiment.family import Metric


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
  parallel: Annotated[
    int, typer.Option(help='Points trained at once on a CPU, each on its share of the cores.')
  ] = 1,
  dry_run: Annotated[
    bool, typer.Option('--dry-run', help='Print points and commands; train nothing.')
  ] = False,
) -> None:
  """Trains the points of a search space, and says which is best.

  Each point is a job folder of OUT. The same command goes on with a sweep that was stopped or
  killed. As a point ends, a line is added to the results. At the end come a table, a picture, and
  the best point as a config of your own. docs/sweeps.md describes the file.
  """
  space = spaces.read(file)
  folder = folders.resolve_local(f'runs/{space.name}' if out is None else out)
  named = {'data': data, 'vocab': vocab}
  console = Console()
  place = running.Place(
    folder=folder,
    results=folder / 'results.jsonl' if results is None else folders.resolve_local(results),
    flags=[f'--{k}={folders.resolve(v)}' for k, v in named.items() if v is not None],
    say=lambda line: console.print(line, markup=False),
    begins=lambda run: console.print(f'{run.name}: {spaces.words(run.overrides)}', markup=False),
    ends=lambda run, one: console.print(f'{run.name}: {_in_words(one)}', markup=False),
  )
  # Whatever is wrong is refused before the experiments are loaded, which takes seconds.
  started = trainings.Trainings(parallel)
  space = running.known(space, folder, place.flags)
  outcomes.read(place.results)
  classes = {name: experiments.load(name) for name in space.experiments}
  plans.check(space, classes)
  if dry_run:
    _print_plan(console, space, classes, place)
    return
  with running.claimed(space, folder, place.flags) as space:
    lines = running.run_all(space, classes, place, started)
    _report(console, space, classes, place, lines)


def _report(
  console: Console,
  space: Sweep,
  classes: Mapping[str, type],
  place: running.Place,
  lines: Sequence[Outcome],
) -> None:
  """Prints the table, draws the picture, and writes the best point as a config."""
  folder = place.folder
  metric = plans.metric(space, classes)
  figures = {name: outcomes.figures(space, name, lines) for name in space.experiments}
  console.rule('result')
  console.print(result_table(space, figures, metric))
  newest = outcomes.of_runs(plans.every(space), lines)
  for name, one in newest.items():
    if one.status != outcomes.COMPLETE:
      console.print(f'{name}: {_in_words(one)}', markup=False)
  if space.dimensions() and any(figures.values()):
    picture = folder / f'{space.name}.png'
    plots.plot(space, figures, metric.label, picture)
    console.print(f'picture: {picture}', markup=False, soft_wrap=True)
  best = outcomes.best_points(space, lines, metric.better)
  if best:
    file, names = tuned.write(space, best, classes, folder)
    console.print(f'the best as a config: {file}; to train it:', markup=False, soft_wrap=True)
    for name in names:
      console.print(
        f'PYTHONPATH={shlex.quote(str(folder))}:$PYTHONPATH python -m laser_pax train '
        + shlex.join([f'--exp={file.stem}.{name}', f'--job_log_dir={folder / name}', *place.flags]),
        markup=False,
        soft_wrap=True,
      )
  if any(one.status == outcomes.FAILED for one in newest.values()):
    console.print('some failed: mend the reason, and give the same command again', markup=False)
    raise typer.Exit(1)


def result_table(
  space: Sweep, figures: Mapping[str, Mapping[int, tuple[float, ...]]], metric: 'Metric'
) -> Table:
  """Returns the comparison: a row for each point, a column for each experiment.

  The best point comes first, but points that are only compared keep their order.

  Args:
    space: The sweep.
    figures: Figures of each complete point, by experiment and number of the point.
    metric: The metric of the experiments.
  """
  table = Table(box=None, caption=f'{metric.label}: {metric.better} is better')
  for column in ('point', *space.dimensions(), *map(plans.short, space.experiments)):
    table.add_column(column, justify='right')
  numbers = [*range(1, len(space.points) + 1)]
  if space.tune != spaces.NOTHING:
    first, sign = figures[space.experiments[0]], 1 if metric.better == 'lower' else -1
    numbers.sort(key=lambda n: (n not in first, sign * statistics.fmean(first.get(n, (0,)))))
  for n in numbers:
    values = [str(space.points[n - 1].get(name, '')) for name in space.dimensions()]
    cells = [_cell(figures[name].get(n)) for name in space.experiments]
    table.add_row(str(n), *values, *cells)
  return table


def _cell(figures: tuple[float, ...] | None) -> str:
  """Returns the mean of a point's figures, and their standard deviation if there are several."""
  if figures is None:
    return '-'
  deviation = f' ± {statistics.stdev(figures):.4f}' if len(figures) > 1 else ''
  return f'{statistics.fmean(figures):.4f}{deviation}'


def _in_words(one: Outcome) -> str:
  """Returns what came out of a run: its figure, or what went wrong."""
  if one.status == outcomes.COMPLETE:
    return f'{one.metric} {one.figure:.4f}'
  return f'{one.status} after step {one.steps:,}: {one.reason or "no finite number"}'


def _print_plan(
  console: Console,
  space: Sweep,
  classes: Mapping[str, type],
  place: running.Place,
) -> None:
  """Prints the points, and a command for each run: here, or on the slice that it is planned for."""
  runs = plans.planned(space, best=None)
  table = Table(box=None)
  for column in ('point', *space.dimensions()):
    table.add_column(column, justify='right')
  for n, point in enumerate(space.points, start=1):
    table.add_row(str(n), *(str(point.get(name, '')) for name in space.dimensions()))
  console.print(table)
  pod = plans.resolved(runs[0], classes[runs[0].experiment]).pod()
  if pod.chip.platform == 'cpu':
    text = [shlex.join(run.command(str(place.folder / run.name), place.flags)) for run in runs]
  else:
    if place.flags:
      raise UserError(
        f'{" ".join(place.flags)}: a slice has its data from tpu_pod.conf: set DATA and VOCAB there'
      )
    text = pod_lines.lines(runs)
  for line in text:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
  if rest := [name for name in space.experiments if name not in plans.tuned(space)]:
    console.print(f'then, at the best point: {", ".join(rest)}', markup=False)
