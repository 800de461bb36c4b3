"""Where a saved model is, and whether it is that of an experiment."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from laser_pax import folders
from laser_pax.errors import UserError
from laser_pax.experiment import checkpoints, jobs

# The shape of each weight, by its dotted name below `params`.
Shapes = Mapping[str, tuple[int, ...]]

_STEP = re.compile(r'checkpoint_(\d+)')
_SHOWN = 3  # Differences that a message lists.


class Saved(NamedTuple):
  """A finished checkpoint.

  Attributes:
    job: Folder of the job, local or in a bucket.
    step: Its step.
    run: The run that wrote it, by the job's mark; None if it has none.
  """

  job: str
  step: int
  run: jobs.Run | None

  @property
  def folder(self) -> epath.Path:
    """Its own folder."""
    return epath.Path(self.job) / 'checkpoints' / f'checkpoint_{self.step:08d}'


def find(checkpoint: str, named_by: str = '--checkpoint') -> Saved:
  """Finds a checkpoint that is finished and whole.

  Args:
    checkpoint: Folder of a job, which stands for its newest whole checkpoint. Or the folder of one
      checkpoint, `JOB/checkpoints/checkpoint_00000600`.
    named_by: The flag, attribute or variable that names it, for the message.

  Raises:
    UserError: There is none; the message says what is there.
  """
  path = epath.Path(folders.resolve(checkpoint))
  if not path.exists():
    raise UserError(f'{named_by}={path}: there is no such folder')
  is_one = path.parent.name == 'checkpoints'
  job = str(path.parent.parent if is_one else path.parent if path.name == 'checkpoints' else path)
  steps = checkpoints.steps(job)
  if is_one:
    step = _step_of(path, named_by)
  elif not steps:
    raise UserError(
      f'{named_by}={path}: no finished checkpoint is in {epath.Path(job) / "checkpoints"}; '
      'expected the --job_log_dir of a training that has saved one'
    )
  else:
    step = checkpoints.survey(job).whole
    if step is None:
      raise UserError(f'{named_by}={path}: none of the checkpoints {steps} is whole')
  if fault := checkpoints.fault(job, step):
    raise UserError(f'{named_by}={path}: checkpoint {step} is not whole: {fault}')
  return Saved(job, step, jobs.read_mark(job))


def _step_of(path: epath.Path, named_by: str) -> int:
  match = _STEP.fullmatch(path.name)
  if match is None:
    is_being_written = _STEP.match(path.name) is not None
    reason = 'it is still being written' if is_being_written else 'it is no checkpoint'
    raise UserError(f'{named_by}={path}: {reason}; expected a folder like checkpoint_00000600')
  return int(match[1])


def shapes(saved: Saved, collection: str = 'params') -> Shapes:
  """Returns the shape of each weight of a checkpoint, or of each variable of another collection."""
  metadata = json.loads((saved.folder / 'metadata' / 'metadata').read_text())
  return dict(_leaves(metadata['train_state_metadata']['mdl_vars'].get(collection, {}), ''))


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
  for name, child in node.items():
    if '_array_metadata_tag' in child:
      yield f'{prefix}{name}', tuple(child['unpadded_shape'])
    else:
      yield from _leaves(child, f'{prefix}{name}.')


def check_run(saved: Saved, experiment: object) -> None:
  """Checks that an experiment's job wrote a checkpoint. LASER and its twin have equal shapes.

  Raises:
    UserError: Another experiment's job wrote it.
  """
  name = f'{type(experiment).__module__}.{type(experiment).__name__}'
  if saved.run is not None and saved.run.experiment != name:
    raise UserError(
      f'{saved.job} holds a run of {saved.run.experiment}, not of {name}: give '
      f'--exp={saved.run.experiment}, or leave --exp out'
    )


def check_shapes(
  saved: Saved, expected: Shapes, experiment: str, collection: str = 'params'
) -> None:
  """Checks that a checkpoint has the weights of a model.

  Args:
    saved: The checkpoint.
    expected: Shapes of the model's weights.
    experiment: Name of the experiment, for the message.
    collection: PAX's collection of variables: that of the weights, or another.

  Raises:
    UserError: It has others; the message has the first differences.
  """
  actual = shapes(saved, collection)
  differences = [
    f'{name} is {_shape(actual.get(name))} there and {_shape(expected.get(name))} in the experiment'
    for name in sorted(actual.keys() | expected.keys())
    if actual.get(name) != expected.get(name)
  ]
  if differences:
    more = len(differences) - _SHOWN
    shown = '; '.join(differences[:_SHOWN]) + (f'; and {more} more' if more > 0 else '')
    raise UserError(f'{saved.folder} is no checkpoint of {experiment}: {shown}')


def _shape(shape: tuple[int, ...] | None) -> str:
  return 'missing' if shape is None else str(list(shape))


def vocabulary(saved: Saved) -> epath.Path | None:
  """Returns the vocabulary that a job keeps beside its checkpoints, or None."""
  return jobs.kept_vocabulary(saved.job)
