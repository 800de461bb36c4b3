"""`python -m laser_pax aot`: compiles an experiment for a TPU slice, without a TPU."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from laser_pax.cli import experiments
from laser_pax.costs import libtpu
from laser_pax.errors import UserError
from laser_pax.experiment import overrides, slices

if TYPE_CHECKING:
  from laser_pax.experiment.base import Experiment


def aot(
  ctx: typer.Context,
  exp: Annotated[str | None, typer.Option(help='Experiment: C4Laser2B, ...')] = None,
  pod: Annotated[
    str | None,
    typer.Option(help="A slice of configs/pods. The default is the experiment's own."),
  ] = None,
  compare: Annotated[
    str | None, typer.Option(help='Another experiment. The ratio of each figure is printed.')
  ] = None,
  as_json: Annotated[bool, typer.Option('--json', help='Print JSON instead of tables.')] = False,
  meshes: Annotated[
    bool, typer.Option('--meshes', help='Compile several meshes and policies, and rank them.')
  ] = False,
  every: Annotated[
    bool,
    typer.Option(
      '--all',
      help='Compile every experiment that is planned for TPUs, for v5p and v5e.',
    ),
  ] = False,
  fetch: Annotated[bool, typer.Option('--fetch', help='Fetch the TPU compiler, once.')] = False,
) -> None:
  """Compiles an experiment's real train and evaluation steps for a TPU slice, without a TPU.

  The report has a chip's memory, the bytes that chips send each other, FLOPs, and bounds of a
  step's time and of MFU. The exit code is 1 if the experiment does not fit. --fdl.NAME=VALUE
  changes an attribute of the experiment, as for `train`: --fdl.ICI_MESH_SHAPE=[16,16,1]
  --fdl.CHECKPOINT_POLICY=save_nothing.
  """
  if fetch:
    print(libtpu.fetch())
    return
  changed = overrides.of_flags(ctx.args)
  if every:
    libtpu.use()
    planned = list(_every_plan(changed))
  else:
    if not exp:
      raise UserError('which experiment? --exp=NAME; `python -m laser_pax list` lists them')
    names = [experiments.full_name(name) for name in (exp, compare) if name is not None]
    # libtpu must be chosen before paxml is imported.
    if pod is None or slices.find(pod).chip.platform == 'tpu':
      libtpu.use()
    planned = [_plan(name, pod, changed) for name in names]
  with _quiet():
    if meshes:
      failed = max([_rank(experiment, as_json) for experiment in planned])
    elif every:
      failed = max([_report([experiment], as_json) for experiment in planned])
    else:
      failed = _report(planned, as_json)
  raise SystemExit(failed)


def _plan(name: str, pod: str | None, changed: dict) -> 'Experiment':
  """Makes an experiment, changes it, and plans it for the slice."""
  experiment = experiments.load(name)()
  for attribute, value in changed.items():
    setattr(experiment, attribute, value)
  experiment.check_overrides()
  experiment.check_numbers()
  return experiment.on(pod)


def _every_plan(changed: dict) -> Iterator['Experiment']:
  """Yields each experiment of this package that is planned for TPUs, on each of its slices."""
  from laser_pax.costs import search

  for name in experiments.registered():
    experiment = _plan(name, None, changed)
    if experiment.pod().chip.platform == 'tpu':
      for pod in search.slices_to_compare(experiment):
        yield _plan(name, pod, changed)


def _report(planned: list['Experiment'], as_json: bool) -> int:
  """Compiles one experiment, or two to compare, and prints the compiler's figures.

  Returns:
    The exit code: 1 if one does not fit.
  """
  import jax

  from laser_pax.costs import console, reports

  compiled = []
  for experiment in planned:
    try:
      compiled.append(reports.report(experiment))
    except reports.DoesNotFit as e:
      refused = {'experiment': type(experiment).__name__, 'fits': False, 'reason': str(e)}
      print(json.dumps([refused], indent=1) if as_json else e)
      return 1
    jax.clear_caches()
  if as_json:
    print(json.dumps([r.to_json() for r in compiled], indent=1))
  else:
    console.print_reports(compiled)
    for experiment, r in zip(planned, compiled, strict=True):
      if not r.fits:
        print(reports.advice(experiment))
  return 0 if all(r.fits for r in compiled) else 1


def _rank(experiment: 'Experiment', as_json: bool) -> int:
  """Compiles several layouts and prints them. The fastest that fits comes first.

  Returns:
    The exit code: 1 if the rule's layout does not fit.
  """
  from laser_pax.costs import console, reports, search

  try:
    compiled = list(search.compile_layouts(experiment))
  except reports.DoesNotFit as e:
    print(e)
    return 1
  if as_json:
    print(json.dumps([r.to_json() for r in compiled], indent=1))
  else:
    console.print_ranked(compiled)
  return 0 if compiled[-1].fits else 1


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Hides the standard error of libtpu and XLA. An exception shows it."""
  sys.stderr.flush()
  stderr = os.dup(2)
  with tempfile.TemporaryFile() as hidden:
    os.dup2(hidden.fileno(), 2)
    try:
      yield
    except UserError:
      raise
    except Exception:
      hidden.seek(0)
      os.write(stderr, hidden.read())
      raise
    finally:
      sys.stderr.flush()
      os.dup2(stderr, 2)
      os.close(stderr)
