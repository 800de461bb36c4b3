"""`python -m laser_pax eval`: lm_eval's tasks on a trained decoder, or on two of them in pairs."""

import enum
import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from laser_pax import folders
from laser_pax.cli.checkpoint import open_run
from laser_pax.errors import UserError

if TYPE_CHECKING:
  from lm_eval.api.task import Task

  from laser_pax.evaluation.tables import Difference, Result
  from laser_pax.experiment.base import Experiment
  from laser_pax.experiment.saved_models import Saved

_LONGEST_NAME = 60
_WIDTH = 120


class Suite(enum.StrEnum):
  """Suites of tasks."""

  PAPER = 'paper'


class Settings(NamedTuple):
  """What is asked of each model.

  Attributes:
    name: Name of the suite, or of the tasks.
    left_out: Tasks of the suite that are left out.
    shots: Solved examples before each prompt.
    limit: Greatest number of examples of a task, or None.
  """

  name: str
  left_out: Sequence[str]
  shots: int
  limit: int | None

  @property
  def stem(self) -> str:
    """The start of the names of the files that have the results."""
    name = self.name
    if len(name) > _LONGEST_NAME:
      name = f'{name[:40]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}'
    limit = '' if self.limit is None else f'_limit-{self.limit}'
    return f'{name}_{self.shots}-shot{limit}'


class Evaluated(NamedTuple):
  """A model and its results.

  Attributes:
    name: Name of its experiment.
    step: Its step.
    rows: Results of the tasks.
    note: How many prompts were cut, in words.
  """

  name: str
  step: int
  rows: 'Sequence[Result]'
  note: str


def evaluate(
  checkpoint: Annotated[str, typer.Option(help='Folder of a job, or of one of its checkpoints.')],
  exp: Annotated[str | None, typer.Option(help="Experiment [default: the job's].")] = None,
  suite: Annotated[
    Suite | None, typer.Option(help='Suite of tasks [default: paper, unless --tasks is given].')
  ] = None,
  tasks: Annotated[
    str | None, typer.Option(help="Tasks, groups or tags of lm_eval in place of a suite: 'a,b'.")
  ] = None,
  shots: Annotated[int, typer.Option(min=0, help='Solved examples before each prompt.')] = 1,
  limit: Annotated[
    int | None, typer.Option(min=1, help='Only the first examples of each task, for a trial.')
  ] = None,
  include: Annotated[
    str | None, typer.Option(help='Folder of task files of your own, and of data sets.')
  ] = None,
  out: Annotated[
    str | None, typer.Option(help='Folder of results and answers [default: JOB/eval_STEP].')
  ] = None,
  against: Annotated[
    str | None, typer.Option(help='Another checkpoint; shows the difference of the two in pairs.')
  ] = None,
) -> None:
  """Runs tasks of lm_eval on a checkpoint, and prints and saves a table.

  Answers are kept as they come, so the same command goes on where it was stopped.
  """
  if suite is not None and tasks is not None:
    raise UserError('give --suite or --tasks, not both')
  if importlib.util.find_spec('lm_eval') is None:
    raise UserError('eval needs lm_eval, which is not installed: run scripts/setup.sh eval')
  os.environ.setdefault('TQDM_DISABLE', '1')  # One bar is enough.
  runs = [open_run(exp, checkpoint)]
  if against is not None:
    runs.append(open_run(None, against, named_by='--against'))
  places = [_folder(saved, out) for _, saved in runs]
  if out is not None and against is not None:
    places[1] = places[0] / 'against'
  for experiment, _ in runs:
    _check_family(experiment)

  settings, loaded = _tasks(tasks, shots, limit, include)
  evaluated = [
    _evaluate(experiment, saved, loaded, settings, place)
    for (experiment, saved), place in zip(runs, places, strict=True)
  ]
  if against is not None:
    _show(evaluated, settings, places[0] / f'{settings.stem}_difference.txt')
    _save_differences(evaluated, settings, places[0])


def _folder(saved: 'Saved', out: str | None) -> Path:
  """Returns the local folder of a model's results.

  Raises:
    UserError: The job is in a bucket, and no folder is named.
  """
  if out is None and '://' in saved.job:
    raise UserError(f'{saved.job} is in a bucket: name a local folder of results with --out=DIR')
  folder = folders.resolve_local(out or f'{saved.job}/eval_{saved.step:08d}')
  folders.make_folder(folder)
  return folder


def _check_family(experiment: 'Experiment') -> None:
  if not experiment.SCORES_TEXT:
    raise UserError(
      f'{type(experiment).__name__} is no decoder of text: eval takes those of C4, such as '
      'C4LaserTiny'
    )


def _tasks(
  names: str | None, shots: int, limit: int | None, include: str | None
) -> 'tuple[Settings, dict[str, Task]]':
  """Returns the settings, and the tasks with their data."""
  from laser_pax.evaluation import suite

  own = None if include is None else folders.resolve_local(include)
  if own is not None and not own.is_dir():
    raise UserError(f'--include={own}: there is no such folder')
  chosen, left_out = suite.members(own)
  if names is not None:
    chosen, left_out = [name for name in names.split(',') if name], []
  if not chosen:
    raise UserError('--tasks names no task: write --tasks=arc_easy,boolq')
  name = Suite.PAPER.value if names is None else '+'.join(chosen)
  return Settings(name, left_out, shots, limit), suite.load(chosen, own)


def _evaluate(
  experiment: 'Experiment',
  saved: 'Saved',
  tasks: 'Mapping[str, Task]',
  settings: Settings,
  folder: Path,
) -> Evaluated:
  """Evaluates one model, and prints and saves its table. Its weights are free afterwards."""
  from laser_pax.cli import bars
  from laser_pax.evaluation import generation, harness, tables
  from laser_pax.evaluation.restored import Restored

  tokenizer = generation.Tokenizer(experiment, saved)
  restored = Restored(experiment, saved)
  name = type(experiment).__name__
  with bars.requests_bar() as bar:
    counted = {}

    def advance(kind: str, answered: int, requests: int) -> None:
      if kind not in counted:
        counted[kind] = bar.add_task(f'{name}: {kind}', total=requests)
      bar.advance(counted[kind])

    model = harness.PaxModel(restored, tokenizer, generation.generate, advance)
    cache = folder / 'cache' / harness.cache_key(restored)
    evaluation = harness.evaluate(
      model, tasks, shots=settings.shots, limit=settings.limit, cache=cache
    )
  cut, prompts = harness.count_cut(model, evaluation)
  note = f'{cut:,} of {prompts:,} prompts had more than {experiment.SEQ_LEN:,} tokens'
  note += ': the last ones were kept' if cut else ''
  evaluated = Evaluated(name, saved.step, tables.results(evaluation), note)
  _show([evaluated], settings, folder / f'{settings.stem}.txt')
  _save(evaluated, evaluation, settings, folder)
  return evaluated


def _show(evaluated: Sequence[Evaluated], settings: Settings, file: Path) -> None:
  """Prints the table of one model, or that of two and their difference, and writes it to a file."""
  from rich import box
  from rich.console import Console
  from rich.table import Table

  first = evaluated[0]
  title = ' against '.join(f'{e.name}, step {e.step:,}' for e in evaluated)
  title = f'{title}: {settings.name}, {settings.shots}-shot'
  table = Table(title=title, title_justify='left', box=box.SIMPLE)
  for header in ('task', 'metric'):
    table.add_column(header, no_wrap=True)
  numbers = ['examples', *(e.name for e in evaluated)]
  numbers += ['difference [95% interval]', 'relative'] if len(evaluated) > 1 else []
  for header in numbers:
    table.add_column(header, justify='right', no_wrap=True)
  for row in _lines(evaluated):
    table.add_row(*row, end_section=row[0] == first.rows[-1].task)
  notes = [e.note if len(evaluated) == 1 else f'{e.name}: {e.note}' for e in evaluated]
  if settings.left_out:
    left_out = ', '.join(settings.left_out)
    notes.append(f'left out, because --include has no data for it: {left_out}')
  with file.open('w') as text:
    for console in (Console(), Console(file=text, width=_WIDTH)):
      console.width = max(console.width, _WIDTH)
      console.print(table)
      for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def _lines(evaluated: Sequence[Evaluated]) -> list[list[str]]:
  """Returns the table's lines: one for each task, and the mean."""
  from laser_pax.evaluation import tables

  lines = []
  for rows in zip(*(e.rows for e in evaluated), strict=True):
    row = rows[0]
    values = [_value(r.value, r.error, row.is_share) for r in rows]
    lines.append([row.task, row.metric, f'{row.count:,}', *values])
  means = [tables.mean(e.rows) for e in evaluated]
  if means[0] is not None:
    values = [_value(m.value, m.error, is_share=True) for m in means]
    lines.append([f'mean of {means[0].tasks}', '', '', *values])
  if len(evaluated) > 1:
    by_task, of_mean = tables.differences(*(e.rows for e in evaluated))
    every = [(by_task[row.task], row.is_share) for row in evaluated[0].rows] + [(of_mean, True)]
    for line, (difference, is_share) in zip(lines, every, strict=False):
      line += _difference(difference, is_share)
  return lines


def _value(value: float, error: float | None, is_share: bool) -> str:
  """Returns a metric and its standard error, shares in percent."""
  scale = 100 if is_share else 1
  return f'{scale * value:.2f}' + ('' if error is None else f' ± {scale * error:.2f}')


def _difference(difference: 'Difference', is_share: bool) -> list[str]:
  scale = 100 if is_share else 1
  text = f'{scale * difference.value:+.2f}'
  if difference.interval is not None:
    low, high = difference.interval
    text += f' [{scale * low:+.2f}, {scale * high:+.2f}]'
  relative = '' if difference.relative is None else f'{100 * difference.relative:+.1f}%'
  return [text.replace('[', r'\['), relative]


def _save(
  evaluated: Evaluated, evaluation: Mapping[str, Any], settings: Settings, folder: Path
) -> None:
  """Writes the results as JSON, and what each example gave as JSON lines."""
  from laser_pax.evaluation import tables

  results = {}
  for row in evaluated.rows:
    every = {k: v for k, v in evaluation['results'][row.task].items() if ',' in k}
    results[row.task] = {
      'metric': row.metric,
      'value': row.value,
      'standard_error': row.error,
      'examples': row.count,
      'version': evaluation['versions'].get(row.task),
      'shots': evaluation['n-shot'].get(row.task),
      'metrics': {k: v for k, v in every.items() if '_stderr,' not in k},
    }
  mean = tables.mean(evaluated.rows)
  record = {
    'experiment': evaluated.name,
    'step': evaluated.step,
    **settings._asdict(),
    'mean': None if mean is None else mean._asdict(),
    'tasks': results,
    'note': evaluated.note,
  }
  _write(folder / f'{settings.stem}.json', json.dumps(record, indent=1) + '\n')
  lines = [
    json.dumps({'task': row.task, 'example': i, row.metric: value})
    for row in evaluated.rows
    for i, value in enumerate(row.examples.tolist())
  ]
  _write(folder / f'{settings.stem}.examples.jsonl', ''.join(f'{line}\n' for line in lines))


def _save_differences(evaluated: Sequence[Evaluated], settings: Settings, folder: Path) -> None:
  """Writes the differences of two models as JSON."""
  from laser_pax.evaluation import tables

  by_task, of_mean = tables.differences(*(e.rows for e in evaluated))
  record = {
    'models': [{'experiment': e.name, 'step': e.step} for e in evaluated],
    **settings._asdict(),
    'resamples': tables.RESAMPLES,
    'seed': tables.SEED,
    'mean': None if of_mean is None else of_mean._asdict(),
    'tasks': {task: difference._asdict() for task, difference in by_task.items()},
  }
  _write(folder / f'{settings.stem}_difference.json', json.dumps(record, indent=1) + '\n')


def _write(file: Path, text: str) -> None:
  """Writes a file whole: a reader never sees a part of it."""
  new = file.with_name(f'{file.name}.new')
  new.write_text(text)
  new.replace(file)
