"""`python -m laser_pax replay`: a step of a training again, with a look at its batch and gradients.

A run that goes on from a checkpoint has the steps of the first run, to the bit. So a step needs no
record of its own: the newest checkpoint before it leads to it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laser_pax import folders
from laser_pax.cli import train, training_job
from laser_pax.errors import UserError
from laser_pax.experiment import checkpoints, jobs, progress

if TYPE_CHECKING:
  from laser_pax.cli import watch

_SHOWN = 12  # Variables in the table.
BATCH, GRADIENTS = 'batch.npz', 'gradients.json'


def replay(
  ctx: typer.Context,
  job_log_dir: Annotated[str, typer.Argument(metavar='JOB_LOG_DIR', help='Folder of a training.')],
  step: Annotated[int, typer.Option(help='The step to compute again, as the records count it.')],
  out: Annotated[
    str | None, typer.Option(help='New folder for what is found; JOB_LOG_DIR/replay/STEP else.')
  ] = None,
  data: Annotated[str | None, typer.Option(help='Data folder, if the training named one.')] = None,
  vocab: Annotated[str | None, typer.Option(help='Vocabulary, if the training named one.')] = None,
) -> None:
  """Computes a step of a training again, and shows its loss, gradients and batch.

  Training goes on from the newest whole checkpoint before the step, in a folder of its own. The
  job's folder is only read. --out gets batch.npz, the step's batch, and gradients.json. Give the
  flags again that the training had for its processes and its layout, such as --fdl.MICRO_BATCHES.
  """
  job = pathlib.Path(folders.resolve_local(job_log_dir))
  run = jobs.read_mark(job)
  if run is None:
    raise UserError(f'{job}: no {jobs.MARK} says of which experiment; expected a --job_log_dir')
  recorded = _losses(job / progress.FILE)
  if recorded and step > max(recorded):
    raise UserError(f'--step={step}: the training has recorded steps up to {max(recorded)}')
  first = _checkpoint_before(job, step)
  target = pathlib.Path(folders.resolve_local(out or job / 'replay' / f'step_{step:08d}'))
  _begin(job, target, first)
  replayed = training_job.Job(
    experiment=run.experiment,
    selector='fdl_config',
    folder=os.fspath(target),
    flags=(*_overrides(run), *ctx.args, '--noeval_on_test'),
    attributes={
      name: folders.resolve(path)
      for name, path in {'DATA_DIR': data, 'VOCAB': vocab}.items()
      if path is not None
    },
    profile=None,
  )
  train.run(replayed, 'replay', functools.partial(_make_program, job, step))


def _checkpoint_before(job: pathlib.Path, step: int) -> int:
  """Returns the newest whole checkpoint from which training leads to a step."""
  steps = checkpoints.steps(job)
  for before in reversed([s for s in steps if s < step]):
    if checkpoints.fault(job, before, checkpoints.damaged_files) is None:
      return before
  raise UserError(
    f'{job}: no whole checkpoint is from before step {step}; there are {steps or "none"}'
  )


def _begin(job: pathlib.Path, target: pathlib.Path, step: int) -> None:
  """Makes a folder from which a training goes on from one checkpoint, without a copy of it.

  Each process of a job does this, in the same folder.
  """
  checkpoint = job / 'checkpoints' / f'checkpoint_{step:08d}'
  link = target / 'checkpoints' / checkpoint.name
  if target.exists() and any(target.iterdir()) and not link.parent.is_dir():
    raise UserError(f'{target} holds something else: name a new folder by --out')
  link.parent.mkdir(parents=True, exist_ok=True)
  with contextlib.suppress(FileExistsError):
    link.symlink_to(checkpoint, target_is_directory=True)
  for name in (jobs.MARK, jobs.VOCABULARY):
    if (job / name).exists():
      (target / name).write_bytes((job / name).read_bytes())


def _overrides(run: jobs.Run) -> list[str]:
  return [f'--fdl.{name}={value}' for name, value in run.overrides.items()]


def _make_program(job: pathlib.Path, last: int, *args, **kwargs) -> watch.WatchedTrainProgram:
  """Returns the program that ends with a look at step `last`."""
  import jax

  from laser_pax.cli import watch

  class ReplayProgram(watch.WatchedTrainProgram):
    """Training up to the step. That one's program also measures the gradients."""

    def train_step(self, step, state, prng_key, inputs, static_args):
      if step + 1 < last:
        return super().train_step(step, state, prng_key, inputs, static_args)
      found = {}
      self._tell, self._train_step_created = found.update, False
      folder = pathlib.Path(self._job_log_dir)
      _save_batch(folder, inputs)
      super().train_step(step, state, prng_key, inputs, static_args)
      self._watch.drain()
      jax.effects_barrier()
      if jax.process_index() == 0:  # jax tells the first process alone.
        for line in _report(job, folder, last, found):
          self._watch.say(line)
      raise SystemExit(0)

    def setup(self, task, train_input, partitioner, job_log_dir, *more, **options):
      if last > task.train.num_train_steps:
        raise UserError(f'--step={last}: the training ends at {task.train.num_train_steps}')
      self._job_log_dir = job_log_dir
      super().setup(task, train_input, partitioner, job_log_dir, *more, **options)

  return ReplayProgram(*args, **kwargs)


def _save_batch(folder: pathlib.Path, inputs: Any) -> None:
  """Writes this process's rows of a batch."""
  import jax
  import numpy as np

  def rows(x) -> np.ndarray:
    own = [s for s in x.addressable_shards if s.replica_id == 0]  # Only rows are divided.
    own.sort(key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([shard.data for shard in own])

  fields = inputs.FlattenItems()
  if all(s.replica_id for _, x in fields for s in x.addressable_shards):
    return  # Another process has the same rows.
  name = BATCH if jax.process_count() == 1 else f'host-{jax.process_index()}-{BATCH}'
  np.savez(folder / name, **{key: rows(value) for key, value in fields})


def _report(
  job: pathlib.Path, folder: pathlib.Path, step: int, found: Mapping[str, Mapping[str, Any]]
) -> list[str]:
  """Writes what was measured, and returns it in lines."""
  measured = {
    name: {key: float(value) for key, value in values.items()} for name, values in found.items()
  }
  (folder / GRADIENTS).write_text(json.dumps(measured, indent=1) + '\n')
  lines = [_compared(job, folder, step)]
  broken = [name for name, values in measured.items() if values['not_finite']]
  if broken:
    lines.append(f'{len(broken)} of {len(measured)} gradients have values that are not finite')
  ranked = sorted(
    measured, key=lambda n: (-measured[n]['not_finite'], -measured[n]['gradient_norm'])
  )
  for name in ranked[:_SHOWN]:
    values = measured[name]
    lines.append(
      f'  {name}: gradient {values["gradient_norm"]:.3g}, weights {values["weight_norm"]:.3g}'
      + (f', {values["not_finite"]:,.0f} of {values["values"]:,.0f} not finite' if broken else '')
    )
  batch = ', '.join(sorted(path.name for path in folder.glob(f'*{BATCH}')))
  lines.append(f'{folder} has the batch, {batch}, and all variables, {GRADIENTS}')
  return lines


def _compared(job: pathlib.Path, folder: pathlib.Path, step: int) -> str:
  """Returns how the losses agree with those that the training recorded."""
  recorded, again = (_losses(path / progress.FILE) for path in (job, folder))
  common = sorted(recorded.keys() & again.keys())
  loss = again.get(step)
  said = f'step {step}: loss {"not finite" if loss is None else f"{loss:.6f}"}'
  if step not in common:
    return f'{said}; the training has no record of it'
  if all(recorded[s] == again[s] for s in common):
    return f'{said}, as recorded; so are those of the {len(common) - 1} steps before it'
  first = next(s for s in common if recorded[s] != again[s])
  return (
    f'{said}; the training recorded {recorded[step]}. The first step that differs is {first}: the '
    'devices, the layout (--fdl.MICRO_BATCHES), the data or the code are others'
  )


def _losses(file: pathlib.Path) -> dict[int, float | None]:
  return {r['step']: r['loss'] for r in progress.records(file) if r['kind'] == 'train'}
