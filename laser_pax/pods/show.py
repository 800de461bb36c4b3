"""Reports on the console: one, two side by side, or several layouts of one experiment, ranked."""

import dataclasses
import json
from collections.abc import Callable, Iterator

import jax
from praxis import layers
from rich.console import Console
from rich.table import Table
from rich.text import Text

from laser_pax.configs import layout as layouts
from laser_pax.pods import report as reporting
from laser_pax.pods.report import Report

Policy = layers.AutodiffCheckpointType

_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
  """A number of a report, and how it is written.

  Attributes:
    name: What it is, with its unit.
    of: Takes it from a report; None where there is none.
    form: Of `format`.
  """

  name: str
  of: Callable[[Report], float | None]
  form: str = '.2f'


def _gib(number: int | None) -> float | None:
  return None if number is None else number / _GIB


def _time(name: str) -> Callable[[Report], float | None]:
  return lambda r: getattr(r.times, name) * 1e3 if r.times else None


FIGURES = (
  Figure(name='parameters', of=lambda r: r.parameters, form=',.0f'),
  Figure(name='state, GiB a chip', of=lambda r: _gib(r.train.state_bytes)),
  Figure(name='temporaries, GiB a chip', of=lambda r: _gib(r.train.temporary_bytes)),
  Figure(name='peak, GiB a chip', of=lambda r: _gib(r.train.peak_bytes)),
  Figure(
    name='peak of evaluation, GiB', of=lambda r: _gib(r.evaluation and r.evaluation.peak_bytes)
  ),
  Figure(name='peak by the estimate, GiB', of=lambda r: _gib(r.estimated_bytes)),
  Figure(name='sent, GiB a chip and step', of=lambda r: _gib(r.sent_bytes), form='.3f'),
  Figure(
    name='collectives a step',
    of=lambda r: sum(c.count for c in r.collectives) if r.train.text else None,
    form=',.0f',
  ),
  Figure(name='FLOPs of weights', of=lambda r: r.flops.weights, form='.4g'),
  Figure(name='FLOPs of attention', of=lambda r: r.flops.attention, form='.4g'),
  Figure(name='FLOPs of rematerialisation', of=lambda r: r.flops.rematerialisation, form='.4g'),
  Figure(name='FLOPs above the diagonal', of=lambda r: r.flops.skipped, form='.4g'),
  Figure(name='weights, ms', of=_time('weights'), form='.1f'),
  Figure(name='attention, ms', of=_time('attention'), form='.1f'),
  Figure(name='rematerialisation, ms', of=_time('rematerialisation'), form='.1f'),
  Figure(name='above the diagonal, ms', of=_time('skipped'), form='.1f'),
  Figure(name='sent within the slice, ms', of=_time('ici'), form='.1f'),
  Figure(name='sent between slices, ms', of=_time('dcn'), form='.1f'),
  Figure(name='update and kept, in memory, ms', of=_time('memory'), form='.1f'),
  Figure(name='step, all overlapped, ms', of=_time('overlapped'), form='.1f'),
  Figure(name='step, one after the other, ms', of=_time('in_turn'), form='.1f'),
  Figure(name='MFU bound', of=lambda r: r.times and r.times.mfu_bound, form='.3f'),
  Figure(name="XLA's bytes accessed, GiB", of=lambda r: _unrolled(r, 'xla_bytes', _GIB)),
  Figure(name="XLA's FLOPs of a chip", of=lambda r: _unrolled(r, 'xla_flops', 1), form='.4g'),
  Figure(name='compile, s', of=lambda r: r.train.seconds, form='.0f'),
)


def _unrolled(r: Report, name: str, unit: int) -> float | None:
  """A cost that XLA counts right only where no loop is."""
  value = getattr(r.train, name)
  return value / unit if r.is_unrolled and value else None


def reports(planned: list, as_json: bool) -> int:
  """Compiles one experiment, or two to compare, and prints what is found.

  Args:
    planned: Experiments, each planned for its slice.
    as_json: Whether to print JSON, a list of reports.

  Returns:
    The exit code: 1 where one does not fit.
  """
  found = []
  for experiment in planned:
    try:
      found.append(reporting.report(experiment))
    except reporting.DoesNotFit as e:
      refused = {'experiment': type(experiment).__name__, 'fits': False, 'reason': str(e)}
      print(json.dumps([refused], indent=1) if as_json else e)
      return 1
    jax.clear_caches()
  if as_json:
    print(json.dumps([r.to_json() for r in found], indent=1))
  else:
    _print(found)
    for experiment, r in zip(planned, found, strict=True):
      if not r.fits:
        Console().print(Text(reporting.advice(experiment)))
  return 0 if all(r.fits for r in found) else 1


def _print(found: list[Report]) -> None:
  console = Console()
  for r in found:
    pod = r.pod
    where = f'{pod.name}: {pod.chips} x {pod.chip.name}, {pod.topology or "local"}'
    console.print(Text(f'{r.experiment} on {where}', style='bold'))
    console.print(Text(f'{reporting.describe(r.layout)}'))
    console.print(Text(verdict(r)))
  console.print(_figures(found))
  for r in found:
    console.print(_collectives(r))


def verdict(r: Report) -> str:
  """Returns FITS or DOES NOT FIT, with the peak and the chip's memory."""
  limit = r.pod.chip.usable_hbm_bytes
  if limit is None:
    return f'no limit of memory is stated for {r.pod.chip.name}'
  peak = max(s.peak_bytes for s in (r.train, r.evaluation) if s)
  word = 'FITS' if r.fits else 'DOES NOT FIT'
  return f'{word}: {peak / _GIB:.2f} of {limit / _GIB:.2f} GiB a chip, {peak / limit:.0%}'


def _figures(found: list[Report]) -> Table:
  table = Table(box=None, header_style='')
  table.add_column()
  for r in found:
    table.add_column(r.experiment, justify='right')
  if len(found) == 2:
    table.add_column('ratio', justify='right')
  for figure in FIGURES:
    values = [figure.of(r) for r in found]
    if all(v is None for v in values):
      continue
    cells = ['' if v is None else format(v, figure.form) for v in values]
    if len(found) == 2:
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


def candidates(experiment) -> list[layouts.Layout]:
  """Returns layouts worth comparing: meshes that jax can lay out, and policies, the rule's last.

  The first is the plain one: all chips along data, nothing kept. Then meshes with what the rule's
  keeps: plain, replicas alone, about as many replicas as each has chips, products split over 4.
  """
  chosen, pod = experiment.layout(), experiment.pod()
  chips = pod.chips_per_slice
  splits = [d for d in range(2, chips) if chips % d == 0 and pod.can_lay_out((chips // d, d, 1))]
  middle = min(splits, key=lambda d: abs(d * d - chips), default=1)
  meshes = [(1, chips, 1), (chips, 1, 1), (chips // middle, middle, 1), (1, chips // 4, 4)]
  pairs = [((1, chips, 1), Policy.SAVE_NOTHING)]
  pairs += [(mesh, chosen.checkpoint_policy) for mesh in meshes if pod.can_lay_out(mesh)]
  pairs.append((chosen.ici_mesh_shape, Policy.SAVE_DOT_EXCEPT_LOGITS))
  found = [
    dataclasses.replace(chosen, ici_mesh_shape=mesh, checkpoint_policy=policy)
    for mesh, policy in pairs
  ]
  return [*(layout for layout in dict.fromkeys(found) if layout != chosen), chosen]


def compile_layouts(experiment) -> Iterator[Report]:
  """Yields the train step's report of each of the layouts to compare, the rule's last.

  One whose state alone does not fit a chip is left out, unless it is the rule's.
  """
  limit, chosen = experiment.pod().chip.usable_hbm_bytes, experiment.layout()
  for layout in candidates(experiment):
    if limit and layouts.state_bytes(experiment.sizes(), layout) > limit and layout != chosen:
      continue
    other = type(experiment)()
    vars(other).update(vars(experiment))
    other.use_layout(layout)
    yield reporting.report(other, evaluation=False)
    jax.clear_caches()


def rank(experiment, as_json: bool) -> int:
  """Compiles several layouts, and prints them, the fastest that fits first.

  Returns:
    The exit code: 1 where the rule's does not fit.
  """
  try:
    found = list(compile_layouts(experiment))
  except reporting.DoesNotFit as e:
    print(e)
    return 1
  if as_json:
    print(json.dumps([r.to_json() for r in found], indent=1))
    return 0 if found[-1].fits else 1
  title = f'{found[-1].experiment} on {found[-1].pod.name}'
  table = Table(box=None, header_style='', title=title)
  for name in ('layout', 'peak, GiB', 'sent, GiB', 'in turn, ms', 'MFU bound', ''):
    table.add_column(name, justify='left' if name == 'layout' else 'right')
  for r in sorted(found, key=lambda r: (not r.fits, r.times.in_turn if r.times else 0)):
    table.add_row(
      reporting.describe(r.layout),
      f'{r.train.peak_bytes / _GIB:.2f}',
      '' if r.sent_bytes is None else f'{r.sent_bytes / _GIB:.2f}',
      f'{r.times.in_turn * 1e3:.1f}' if r.times else '',
      f'{r.times.mfu_bound:.3f}' if r.times else '',
      ('' if r.fits else 'does not fit') + (' the rule' if r is found[-1] else ''),
    )
  Console().print(table)
  return 0 if found[-1].fits else 1
