"""`python -m laser_pax scaling`: power laws of the loss in the number of parameters."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from laser_pax import folders
from laser_pax.errors import UserError

if TYPE_CHECKING:
  from laser_pax.analysis.power_law import Interval


def scaling(
  points: Annotated[
    str, typer.Argument(help='JSON lines with parameters, loss, variant and seed, one a run.')
  ],
  baseline: Annotated[str, typer.Option(help='Variant that the others are compared with.')] = (
    'standard'
  ),
  out: Annotated[
    str | None, typer.Option(help='Picture to write, PNG or SVG [default: beside the points].')
  ] = None,
) -> None:
  """Fits L(N) = E + A N^-alpha to each variant, and prints what each saves at equal loss.

  If a variant has three sizes alone, E is 0 for all. Bands are 95%. The figures are also written
  as JSON beside the picture.
  """
  from laser_pax.analysis import plots, power_law

  file = folders.resolve_local(points)
  read = power_law.read(file)
  variants = list(dict.fromkeys(point.variant for point in read))
  if baseline not in variants:
    raise UserError(
      f'--baseline={baseline}: expected one of the variants of {file}, {", ".join(variants)}'
    )
  fits = power_law.fit_each(read)
  record = {'points': str(file), 'fits': {}, 'savings': {}}
  for variant, law in fits.items():
    typer.echo(f'{variant}: {len(law.sizes)} sizes, E {"fitted" if law.has_limit else "= 0"}')
    for name, interval in law.intervals().items():
      typer.echo(f'  {name:5} {_shown(interval)}')
    record['fits'][variant] = {k: v._asdict() for k, v in law.intervals().items()}
  for variant in variants:
    if variant == baseline:
      continue
    found = power_law.savings(fits[baseline], fits[variant])
    record['savings'][variant] = [
      s._asdict() | {'multiple': s.multiple._asdict(), 'saved': s.saved._asdict()} for s in found
    ]
    for s in found:
      typer.echo(
        f'{variant} at {s.parameters:,.0f} parameters, loss {s.loss:.4f}: {baseline} needs '
        f'{_shown(s.multiple)} times as many; saved {_shown(s.saved)}'
      )
  picture = file.with_suffix('.png') if out is None else folders.resolve_local(out)
  plots.plot_power_laws(read, fits, picture)
  figures = picture.with_suffix('.fits.json')
  figures.write_text(json.dumps(record, indent=1) + '\n')
  typer.echo(f'picture: {picture}; figures: {figures}')


def _shown(interval: 'Interval') -> str:
  return f'{interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}]'
