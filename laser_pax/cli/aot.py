"""`python -m laser_pax aot`: what the TPU compiler says of an experiment on a slice."""

import ast
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Annotated

import typer

from laser_pax.cli import experiments
from laser_pax.errors import UserError
from laser_pax.pods import libtpu, slices


def aot(
  ctx: typer.Context,
  exp: Annotated[str | None, typer.Option(help='Experiment: C4Laser2B, ...')] = None,
  pod: Annotated[
    str | None, typer.Option(help='A slice of configs/pods; by default the one it is planned for.')
  ] = None,
  compare: Annotated[
    str | None, typer.Option(help='Another experiment; prints the ratio of each figure.')
  ] = None,
  as_json: Annotated[bool, typer.Option('--json', help='Print JSON instead of tables.')] = False,
  meshes: Annotated[
    bool, typer.Option('--meshes', help='Compile several meshes and policies, and rank them.')
  ] = False,
  every: Annotated[
    bool,
    typer.Option(
      '--all', help='Compile the C4 pairs for v5p and v5e (or their meshes); write docs/pods.md.'
    ),
  ] = False,
  fetch: Annotated[bool, typer.Option('--fetch', help='Fetch the TPU compiler, once.')] = False,
) -> None:
  """Compiles an experiment's real train and evaluation steps for a TPU slice, without a TPU.

  Reports memory of a chip, what chips send each other, FLOPs, and bounds of a step's time and of
  MFU. The exit code is 1 where it does not fit. --fdl.NAME=VALUE changes an attribute of the
  experiment, as for `train`: --fdl.ICI_MESH_SHAPE=[16,16,1] --fdl.CHECKPOINT_POLICY=save_nothing.
  """
  if fetch:
    print(libtpu.fetch())
    return
  overrides = _overrides(list(ctx.args))
  if every:
    libtpu.use()
    with _quiet():
      from laser_pax.pods import page

      failed = page.write_meshes() if meshes else page.write_pods()
    raise SystemExit(failed)
  if exp is None:
    raise UserError('which experiment? --exp=NAME; `python -m laser_pax list` lists them')
  names = [experiments.full_name(name) for name in (exp, compare) if name]
  if pod is None or slices.find(pod).chip.platform == 'tpu':  # All this before paxml is imported.
    libtpu.use()
  planned = [_planned(name, pod, overrides) for name in names]
  from laser_pax.pods import show

  with _quiet():
    failed = show.rank(planned[0], as_json) if meshes else show.reports(planned, as_json)
  raise SystemExit(failed)


def _planned(name: str, pod: str | None, overrides: dict):
  """Makes an experiment, changes it, and plans it for the slice."""
  experiment = experiments.load(name)()
  for attribute, value in overrides.items():
    setattr(experiment, attribute, value)
  experiment.check_overrides()
  return experiment.on(pod)


def _overrides(flags: list[str]) -> dict:
  """Reads --fdl.NAME=VALUE, the value as Python writes it, or a bare word.

  Raises:
    UserError: a flag has another form.
  """
  overrides = {}
  for flag in flags:
    name, _, value = flag.removeprefix('--fdl.').partition('=')
    if not flag.startswith('--fdl.') or not value:
      raise UserError(f'unexpected {flag!r}: attributes are changed by --fdl.NAME=VALUE')
    try:
      overrides[name] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      overrides[name] = value
  return overrides


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps what libtpu and XLA write to standard error, and shows it only if something breaks."""
  sys.stderr.flush()
  real = os.dup(2)
  with tempfile.TemporaryFile() as kept:
    os.dup2(kept.fileno(), 2)
    try:
      yield
    except UserError:
      raise
    except Exception:
      kept.seek(0)
      os.write(real, kept.read())
      raise
    finally:
      sys.stderr.flush()
      os.dup2(real, 2)
      os.close(real)
