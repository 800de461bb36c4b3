"""The report of some jobs: one page with curves, tables, settings and the paper's figures."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence

from laser_pax.analysis import html, paper, plots, runs, summary
from laser_pax.analysis.lines import Line
from laser_pax.experiment.family import Chance, Metric

PAGE = 'report.html'
_PACKAGES = ('laser_pax', 'jax', 'jaxlib', 'paxml', 'praxis', 'flax', 'numpy', 'tensorflow-cpu')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """What the report knows of a job.

  Attributes:
    run: Its run; the name of the run is the job's.
    experiment: Name of its experiment.
    attention: 'standard' or 'LASER'.
    metric: The metric that it is judged by.
    unit: The unit that training counts.
    settings: Rows of the settings, by name.
    overrides: Attributes that its command set, and their values.
    starts: When its training was started, and on which host, by its logs.
    lines: Lines of `analyse`.
    evaluations: Records of `eval`, in the order of their steps.
    chance: What frequencies alone reach; None where the data are not here.
    folder: Its folder.
  """

  run: runs.Run
  experiment: str
  attention: str
  metric: Metric
  unit: str
  settings: Mapping[str, str]
  overrides: Mapping[str, str]
  starts: Sequence[str]
  lines: Sequence[Line]
  evaluations: Sequence[Mapping]
  chance: Chance | None
  folder: str


def write(jobs: Sequence[Job], out: pathlib.Path) -> pathlib.Path:
  """Writes the page and its pictures, and returns the page's file.

  Args:
    jobs: The jobs, those of standard attention first.
    out: Folder of the page and of the pictures.
  """
  out.mkdir(parents=True, exist_ok=True)
  parts = [
    *_results(jobs, out),
    *_attention(jobs, out),
    *_downstream(jobs),
    *_paper(jobs),
    *_settings(jobs),
    *_environment(jobs),
  ]
  names = ' and '.join(dict.fromkeys(job.experiment for job in jobs))
  file = out / PAGE
  new = file.with_name(f'{PAGE}.new')
  new.write_text(html.page(f'Training of {names}', parts), encoding='utf-8')
  new.replace(file)
  return file


def _groups(jobs: Sequence[Job]) -> list[list[Job]]:
  """Returns the jobs that one metric judges, together."""
  groups: dict[tuple[str, str | None], list[Job]] = {}
  for job in jobs:
    groups.setdefault((job.metric.label, job.metric.split), []).append(job)
  return list(groups.values())


def _results(jobs: Sequence[Job], out: pathlib.Path) -> list[str]:
  parts = [html.heading('Results')]
  for number, group in enumerate(_groups(jobs)):
    parts.append(html.table([_result(job) for job in group]))
    metric = group[0].metric
    for job in group[1:]:
      if race := summary.race(group[0].run, job.run, metric.better):
        parts.append(html.paragraph(f'{summary.told(race, metric.label)}.'))
    picture = out / f'curves{number or ""}.png'
    runs.plot_runs([job.run for job in group], metric.label, group[0].chance, picture)
    parts.append(html.picture(picture, _curves_caption(group)))
  return parts


def _curves_caption(group: Sequence[Job]) -> str:
  against = f' Below: each run minus {group[0].run.name}.' if len(group) > 1 else ''
  return f'Lines: training loss, mean of 20 steps. Points: {group[0].run.split}.{against}'


def _result(job: Job) -> dict[str, str]:
  step, best = runs.best(job.run, job.metric.better) or (0, None)
  last = job.run.last
  derived = {
    name: runs.shown(None) if last is None else f'{derive(last):.4g}'
    for name, derive in job.metric.derived.items()
  }
  return {
    'job': job.run.name,
    'experiment': job.experiment,
    'attention': job.attention,
    'steps': f'{max(job.run.train, default=0):,}',
    f'{job.run.split} {job.metric.label}': runs.shown(last),
    **derived,
    'best': runs.shown(best),
    'at step': f'{step:,}' if best is not None else '',
    f'{job.unit}/s': f'{job.run.units_per_second:,.0f}',
    'minutes': f'{job.run.minutes:.1f}',
    'skipped steps': f'{job.run.skipped_steps:,}',
  }


def _attention(jobs: Sequence[Job], out: pathlib.Path) -> list[str]:
  lines = {job.run.name: job.lines for job in jobs if job.lines}
  if not lines:
    folder = jobs[0].folder
    return [
      html.heading('Attention'),
      html.note(f'Nothing was measured yet: python -m laser_pax analyse {folder}'),
    ]
  rows = summary.rows(lines)
  shares = [
    {
      'shares of probabilities': f'{row["job"]}, {row["attention"]}, step {row["step"]}',
      'below 1e-3': row['< 1e-3'],
      'below 1e-7': row['< 1e-7'],
      'mark': '[ours]',
    }
    for row in rows
  ]
  shares += [
    dict(zip(shares[0], (f'the paper: {x.item}', *x[1:]), strict=True)) for x in paper.SHARES
  ]
  captions = {
    'probabilities': 'Distribution of attention probabilities of visible pairs, by layer (band: '
    'least and greatest head), and shares of small ones by step.',
    'gradients': "Norms of the loss's gradient, by layer: the same weights and rows under both "
    'attentions.',
    'values': 'Spread of the columns of V over positions, by layer. Points: heads.',
  }
  parts = [html.heading('Attention'), html.table(shares), html.table(rows)]
  parts.append(
    html.note(
      "Ratios: norms of LASER's gradients over standard attention's, on the same weights and "
      'held-out rows; median over layers.'
    )
  )
  for kind, caption in captions.items():
    file = out / f'{kind}.png'
    if getattr(plots, f'plot_{kind}')(lines, file):
      parts.append(html.picture(file, caption))
  return parts


def _downstream(jobs: Sequence[Job]) -> list[str]:
  """Returns what `eval` gave, a row for each task."""
  rows = []
  for job in jobs:
    for record in job.evaluations:
      for task, figures in record['tasks'].items():
        error = figures['standard_error']
        value = f'{figures["value"]:.4f}' + ('' if error is None else f' ± {error:.4f}')
        row = {'job': job.run.name, 'step': f'{record["step"]:,}', 'task': task}
        rows.append(row | {'metric': figures['metric'], 'value': value})
  return [html.heading('Tasks'), html.table(rows)] if rows else []


def _paper(jobs: Sequence[Job]) -> list[str]:
  rows = []
  for figure in paper.RESULTS:
    standard, laser = (_here(jobs, figure, name) for name in figure.experiments or ('', ''))
    rows.append(
      {
        'item': figure.item,
        'LASER, paper': figure.laser,
        'standard, paper': figure.standard,
        'mark': figure.mark,
        'LASER, here': laser,
        'standard, here': standard,
      }
    )
  covered = {name for figure in paper.RESULTS if figure.metric for name in figure.experiments}
  other = [job.run.name for job in jobs if job.experiment not in covered or job.overrides]
  parts = [html.heading("The paper's figures")]
  if other:
    parts.append(
      html.note(
        f"{', '.join(other)}: not a run of the paper's, or judged by another figure. "
        "The paper's figures are for orientation, and not to be compared."
      )
    )
  return [*parts, html.table(rows)]


def _here(jobs: Sequence[Job], figure: paper.Figure, experiment: str) -> str:
  """Returns our figures of the paper's kind, of the jobs that have its experiment unchanged."""
  texts = []
  for job in jobs:
    if job.experiment == experiment and figure.metric and not job.overrides:
      derive = job.metric.derived.get(figure.metric, lambda x: x)
      texts.append(runs.shown(None if job.run.last is None else derive(job.run.last)))
  return '; '.join(texts)


def _settings(jobs: Sequence[Job]) -> list[str]:
  names = list(dict.fromkeys(name for job in jobs for name in job.settings))
  rows = [
    {'setting': name} | {job.run.name: job.settings.get(name, '') for job in jobs} for name in names
  ]
  marked = [i for i, row in enumerate(rows) if len(set(list(row.values())[1:])) > 1]
  parts = [html.heading('Settings'), html.table(rows, marked)]
  if len(jobs) > 1:
    parts.append(html.note('Marked: what differs.'))
  return parts


def _environment(jobs: Sequence[Job]) -> list[str]:
  rows = [{'of this report': 'Python', '': platform.python_version()}]
  for name in _PACKAGES:
    try:
      rows.append({'of this report': name, '': importlib.metadata.version(name)})
    except importlib.metadata.PackageNotFoundError:
      continue
  rows.append({'of this report': 'machine', '': f'{platform.machine()}, {os.cpu_count()} cores'})
  starts = [
    {'job': job.run.name, 'folder': job.folder, 'training started': '; '.join(job.starts) or '?'}
    for job in jobs
  ]
  return [html.heading('Environment'), html.table(rows), html.table(starts)]


def read_evaluations(folder: pathlib.Path) -> list[dict]:
  """Returns the records that `python -m laser_pax eval` left in a job's folder."""
  records = []
  for file in sorted(folder.glob('eval_*/*.json')):
    try:
      record = json.loads(file.read_text())
    except ValueError:
      continue
    if {'tasks', 'step', 'experiment'} <= set(record):
      records.append(record)
  return records
