"""`python -m laser_pax bench`: times two experiments in turns on this machine's devices."""

import contextlib
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from laser_pax import folders
from laser_pax.cli import consoles, experiments
from laser_pax.errors import UserError
from laser_pax.experiment import overrides

if TYPE_CHECKING:
  from laser_pax.costs.measured_steps import Step
  from laser_pax.experiment.base import Experiment

# The width of the tables in a file or a pipe. Those of the longest names fit.
_WIDTH = 150


def bench(
  ctx: typer.Context,
  exp: Annotated[str | None, typer.Option(help='Experiment: C4Laser2B, ...')] = None,
  against: Annotated[
    str | None, typer.Option(help='The experiment to compare it with: C4Standard2B, ...')
  ] = None,
  rounds: Annotated[int, typer.Option(min=1, help='Turns of each.')] = 9,
  lengths: Annotated[
    str | None,
    typer.Option(
      help='Lengths of the attention alone, such as 1024,4096; without it 1, 2, 4, 8 times the '
      "experiment's."
    ),
  ] = None,
  out: Annotated[str, typer.Option(help='Folder of bench.jsonl and the pictures.')] = 'runs/bench',
) -> None:
  """Times the train steps of two experiments, and their attention alone, on this machine's devices.

  Both train one random batch, so no data is needed. They take turns, and their ratio is the median
  over the rounds, with its quartiles. A table is printed, and lines are added to OUT/bench.jsonl.
  --fdl.NAME=VALUE changes an attribute of both experiments, as for `aot`; an attribute that one
  alone has, such as NUMERICS, is changed there. --fdl.POD=cpu lets a CPU take an experiment that is
  planned for accelerators.
  """
  changed = overrides.of_flags(ctx.args)
  numbers = None if lengths is None else _lengths(lengths)
  if not exp or not against:
    raise UserError('which two experiments? --exp=C4Laser2B --against=C4Standard2B')
  names = [experiments.full_name(name) for name in (exp, against)]
  short = {name.rpartition('.')[2] for name in names}
  if len(short) == 1:
    raise UserError(f'--exp and --against are both named {short.pop()}: give two different names')
  folder = folders.resolve_local(out)
  classes = [experiments.import_class(name) for name in names]
  pair = _make(classes, changed)
  console = Console()
  if not console.is_terminal:
    console.width = _WIDTH
  with _telling_of_memory(pair):
    _measure(console, pair, changed, rounds, numbers, folder)


def _lengths(text: str) -> list[int]:
  """Reads --lengths.

  Raises:
    UserError: It is no list of positive numbers.
  """
  words = text.split(',')
  if not all(word.isdecimal() and int(word) for word in words):
    raise UserError(f'--lengths={text}: expected positive numbers, such as --lengths=1024,4096')
  return sorted({int(word) for word in words})


def _make(classes: list[type], changed: Mapping[str, Any]) -> list['Experiment']:
  """Makes the experiments, changes them, and checks that this machine's devices can train them.

  Raises:
    UserError: An experiment is PAX's own; or an attribute or a value does not fit.
  """
  from laser_pax.costs import measured_steps
  from laser_pax.experiment.base import Experiment

  for cls in classes:
    if not issubclass(cls, Experiment):
      raise UserError(f'{cls.__name__} is no experiment of laser_pax: derive it from one of them')
  pair = [cls() for cls in classes]
  for name, value in changed.items():
    # An attribute that neither has is set on both, so that the check can name a similar one.
    having = [experiment for experiment in pair if hasattr(type(experiment), name)] or pair
    for experiment in having:
      setattr(experiment, name, value)
  for experiment in pair:
    measured_steps.check(experiment)
  return pair


def _measure(
  console: Console,
  pair: list['Experiment'],
  changed: Mapping[str, Any],
  num_rounds: int,
  lengths: list[int] | None,
  folder: pathlib.Path,
) -> None:
  """Measures the steps and the attention alone; adds the lines, and prints the tables."""
  from laser_pax.costs import bench_lines, measured_attention, measured_steps

  batch = measured_steps.common_batch(*pair)
  folders.make_folder(folder)
  file = folder / bench_lines.FILE
  names = [type(experiment).__name__ for experiment in pair]
  about = bench_lines.about(bench_lines.next_run(file), names, changed)
  say = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
  say(f'{" against ".join(names)} on {about["devices"]} x {about["device"]}')
  lines = []

  with consoles.open_records(file) as records:

    def add(line: dict) -> None:
      lines.append(about | line)
      records.write(json.dumps(lines[-1]) + '\n')

    steps = [_compiled(say, experiment, batch) for experiment in pair]
    measured = measured_steps.measure(steps, num_rounds)
    for step, one in zip(steps, measured, strict=True):
      add(bench_lines.step_line(step, one, base=measured[-1]))
    console.print(bench_lines.step_table(lines))
    paths = {name: step.path for name, step in zip(names, steps, strict=True)}
    if reason := _why_not_alone(paths):
      say(f'the attention alone is not measured: {reason}')
    else:
      path, positions = steps[0].path, _positions(pair[0], steps[0].path)
      chosen = lengths or measured_attention.default_lengths(path)
      for one in measured_attention.measure(paths, chosen, positions, num_rounds):
        add(bench_lines.attention_line(one, names))
      console.print(bench_lines.attention_table(lines))
  picture = folder / f'bench-{about["run"]}.png'
  bench_lines.plot(lines, picture)
  say(f'each round: {file}, run {about["run"]}; picture: {picture}')


def _compiled(say: Callable[[str], None], experiment: 'Experiment', batch: Any) -> 'Step':
  """Compiles an experiment's step, and says what it is."""
  from laser_pax.costs import measured_steps, reports
  from laser_pax.layers import attention_paths

  step = measured_steps.Step(experiment, batch)
  name = type(experiment).__name__
  say(f'{name}: {reports.describe(experiment.layout())}, compiled in {step.compile_seconds:.0f} s')
  if step.path is not None:
    say(f'{name}: attention: {step.path.text(attention_paths.EXPERIMENT_SETTINGS)}')
  return step


def _why_not_alone(paths: Mapping[str, Any]) -> str | None:
  """Returns why the attention of an experiment cannot be measured alone, or None."""
  for name, path in paths.items():
    if path is None:
      return f'{name} has no layer of fused attention'
    if path.case is None:
      return f'{name} takes {path.text()}'
  return None


def _positions(experiment: 'Experiment', path: Any) -> int:
  """Returns the positions that one device attends over at once in a train step."""
  replica, data, _ = experiment.mesh()
  return experiment.eval_batch_size() // (replica * data) * path.case.lengths[0]


@contextlib.contextmanager
def _telling_of_memory(pair: list['Experiment']) -> Iterator[None]:
  """Raises a UserError if a device has too little memory."""
  import jax

  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    sizes = f'GLOBAL_BATCH_SIZE {pair[0].GLOBAL_BATCH_SIZE}, MICRO_BATCHES '
    sizes += ' and '.join(str(experiment.micro_batches()) for experiment in pair)
    raise UserError(
      f'{jax.devices()[0].device_kind} has too little memory ({str(e).splitlines()[0][:200]}); got '
      f'{sizes}: give a smaller --fdl.GLOBAL_BATCH_SIZE, more --fdl.MICRO_BATCHES, or fewer '
      '--lengths'
    ) from e
