"""Reports on the console: one report, two side by side, or a ranking of several layouts."""

import dataclasses
from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from laser_pax.costs import reports
from laser_pax.costs.reports import Report

_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
  """A number of a report, and its format.

  Attributes:
    name: Name of the number, with its unit.
    value: Function that reads the number from a report. It returns None if there is no number.
    form: Format specification, for the built-in `format`.
  """

  name: str
  value: Callable[[Report], float | None]
  form: str = '.2f'


def _gib(number: int | None) -> float | None:
  return None if number is None else number / _GIB


def _time(name: str) -> Callable[[Report], float | None]:
  return lambda r: getattr(r.times, name) * 1e3 if r.times else None


FIGURES = (
  Figure(name='parameters', value=lambda r: r.parameters, form=',.0f'),
  Figure(name='state, GiB a chip', value=lambda r: _gib(r.train.state_bytes)),
  Figure(name='temporaries, GiB a chip', value=lambda r: _gib(r.train.temporary_bytes)),
  Figure(name='peak, GiB a chip', value=lambda r: _gib(r.train.peak_bytes)),
  Figure(
    name='peak of evaluation, GiB', value=lambda r: _gib(r.evaluation and r.evaluation.peak_bytes)
  ),
  Figure(name='peak by the estimate, GiB', value=lambda r: _gib(r.estimated_bytes)),
  Figure(name='sent, GiB a chip and step', value=lambda r: _gib(r.sent_bytes), form='.3f'),
  Figure(
    name='collectives a step',
    value=lambda r: sum(c.count for c in r.collectives) if r.train.text else None,
    form=',.0f',
  ),
  Figure(name='FLOPs of weights', value=lambda r: r.flops.weights, form='.4g'),
  Figure(name='FLOPs of attention', value=lambda r: r.flops.attention, form='.4g'),
  Figure(name='FLOPs of rematerialisation', value=lambda r: r.flops.rematerialisation, form='.4g'),
  Figure(name='FLOPs above the diagonal', value=lambda r: r.flops.skipped, form='.4g'),
  Figure(name='weights, ms', value=_time('weights'), form='.1f'),
  Figure(name='attention, ms', value=_time('attention'), form='.1f'),
  Figure(name='rematerialisation, ms', value=_time('rematerialisation'), form='.1f'),
  Figure(name='above the diagonal, ms', value=_time('skipped'), form='.1f'),
  Figure(name='sent within the slice, ms', value=_time('ici'), form='.1f'),
  Figure(name='sent between slices, ms', value=_time('dcn'), form='.1f'),
  Figure(name='update and kept, in memory, ms', value=_time('memory'), form='.1f'),
  Figure(name='step, all overlapped, ms', value=_time('overlapped'), form='.1f'),
  Figure(name='step, one after the other, ms', value=_time('in_turn'), form='.1f'),
  Figure(name='MFU bound', value=lambda r: r.times and r.times.mfu_bound, form='.3f'),
  Figure(name="XLA's bytes accessed, GiB", value=lambda r: _unrolled(r, 'xla_bytes', _GIB)),
  Figure(name="XLA's FLOPs of a chip", value=lambda r: _unrolled(r, 'xla_flops', 1), form='.4g'),
  Figure(name='compile, s', value=lambda r: r.train.seconds, form='.0f'),
)


def _unrolled(r: Report, name: str, unit: int) -> float | None:
  """Returns a cost of XLA, or None if a loop makes XLA's count wrong."""
  value = getattr(r.train, name)
  return value / unit if r.is_unrolled and value else None


def print_reports(shown: list[Report]) -> None:
  """Prints one report, or two side by side with the ratio of each figure.

  Args:
    shown: One or two reports.
  """
  console = Console()
  for r in shown:
    pod = r.pod
    where = f'{pod.name}: {pod.chips} x {pod.chip.name}, {pod.topology or "local"}'
    console.print(Text(f'{r.experiment} on {where}', style='bold'))
    console.print(Text(f'{reports.describe(r.layout)}'))
    console.print(Text(verdict(r)))
  console.print(_figures(shown))
  for r in shown:
    console.print(_collectives(r))


def verdict(r: Report) -> str:
  """Returns the verdict FITS or DOES NOT FIT, with the peak and the chip's memory."""
  limit = r.pod.chip.usable_hbm_bytes
  if limit is None:
    return f'no limit of memory is stated for {r.pod.chip.name}'
  peak = max(s.peak_bytes for s in (r.train, r.evaluation) if s)
  word = 'FITS' if r.fits else 'DOES NOT FIT'
  return f'{word}: {peak / _GIB:.2f} of {limit / _GIB:.2f} GiB a chip, {peak / limit:.0%}'


def _figures(shown: list[Report]) -> Table:
  table = Table(box=None, header_style='')
  table.add_column()
  for r in shown:
    table.add_column(r.experiment, justify='right')
  if len(shown) == 2:
    table.add_column('ratio', justify='right')
  for figure in FIGURES:
    values = [figure.value(r) for r in shown]
    if all(v is None for v in values):
      continue
    cells = ['' if v is None else format(v, figure.form) for v in values]
    if len(shown) == 2:
      cells.append('' if None in values or not values[1] else f'{values[0] / values[1]:.4f}')
    table.add_row(figure.name, *cells)
  return table


def _collectives(r: Report) -> Table:
  table = Table(box=None, header_style='', title=f'{r.experiment}: collectives of one step')
  for name in ('kind', 'chips', 'slices', 'runs', 'result, GiB', 'sent, GiB a chip'):
    table.add_column(name, justify='left' if name == 'kind' else 'right')
  for c in r.collectives:
    table.add_row(
      c.kind,
      str(c.group),
      str(c.slices),
      f'{c.count:,}',
      f'{c.result_bytes / _GIB:.3f}',
      f'{c.sent_bytes / _GIB:.3f}',
    )
  return table


def print_ranked(ranked: list[Report]) -> None:
  """Prints reports of several layouts, the fastest that fits first.

  Args:
    ranked: Reports of one experiment on one slice. The layout of the rule is the last.
  """
  rule = ranked[-1]
  table = Table(box=None, header_style='', title=f'{rule.experiment} on {rule.pod.name}')
  for name in ('layout', 'peak, GiB', 'sent, GiB', 'in turn, ms', 'MFU bound', ''):
    table.add_column(name, justify='left' if name == 'layout' else 'right')
  for r in sorted(ranked, key=lambda r: (not r.fits, r.times.in_turn if r.times else 0)):
    table.add_row(
      reports.describe(r.layout),
      f'{r.train.peak_bytes / _GIB:.2f}',
      '' if r.sent_bytes is None else f'{r.sent_bytes / _GIB:.2f}',
      f'{r.times.in_turn * 1e3:.1f}' if r.times else '',
      f'{r.times.mfu_bound:.3f}' if r.times else '',
      ('' if r.fits else 'does not fit') + (' the rule' if r is rule else ''),
    )
  Console().print(table)
