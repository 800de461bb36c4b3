"""The layout that a run was computed in, kept in its job's folder.

On other chips the rule may choose another mesh, or another number of parts of the batch. Sums then
have another order, and losses agree to rounding alone. So a run changes its layout only if asked.
"""

from __future__ import annotations

import json
import os
from typing import Any, Protocol

from laser_pax import folders
from laser_pax.errors import UserError
from laser_pax.experiment import layouts

FILE = 'layout.json'


class Experiment(Protocol):
  """What is asked here of an experiment, which base.py defines.

  Attributes:
    ICI_MESH_SHAPE: The mesh within a slice; None where the rule chooses it.
    DCN_MESH_SHAPE: The mesh over slices; None where the rule chooses it.
    MICRO_BATCHES: The parts of the batch; None where the rule chooses them.
  """

  ICI_MESH_SHAPE: Any
  DCN_MESH_SHAPE: Any
  MICRO_BATCHES: Any

  def layout(self) -> layouts.Layout:
    """Returns the layout, with what the rule chooses."""


def check(folder: os.PathLike | str, experiment: Experiment) -> None:
  """Checks that the rule chooses no other layout for a run than the one it had.

  Attributes that the experiment sets itself may differ from those that it had.

  Args:
    folder: Folder of a job that has checkpoints.
    experiment: The experiment.

  Raises:
    UserError: The rule chooses another; the message has the values to set.
  """
  kept, now = read(folder), _of(experiment)
  if kept is None:
    return
  is_set = {
    'mesh': experiment.ICI_MESH_SHAPE is not None or experiment.DCN_MESH_SHAPE is not None,
    'micro_batches': experiment.MICRO_BATCHES is not None,
  }
  if all(is_set[name] or kept[name] == now[name] for name in now):
    return
  layout = experiment.layout()
  values = f'ICI_MESH_SHAPE = {list(layout.ici_mesh_shape)}'
  if max(layout.dcn_mesh_shape) > 1:
    values += f', DCN_MESH_SHAPE = {list(layout.dcn_mesh_shape)}'
  raise UserError(
    f'the checkpoints of {folder} are of {_words(kept)}; for these devices the rule chooses '
    f'{_words(now)}, where losses agree with those before to rounding alone. To go on so, set '
    f'{values} and MICRO_BATCHES = {layout.micro_batches}; or train on the devices of before'
  )


def write(folder: os.PathLike | str, experiment: Experiment) -> None:
  """Keeps an experiment's layout in a folder. Only the first of several processes does."""
  import jax

  if jax.process_index() > 0 or read(folder) == _of(experiment):
    return
  file = _file(folder)
  new = file.with_name(f'{FILE}.new')
  new.write_text(json.dumps(_of(experiment)) + '\n')
  new.replace(file)


def read(folder: os.PathLike | str) -> dict[str, Any] | None:
  """Returns what a folder keeps, 'mesh' and 'micro_batches'; None where it keeps none."""
  file = _file(folder)
  if not file.exists():
    return None
  try:
    kept = json.loads(file.read_text())
    return {'mesh': list(kept['mesh']), 'micro_batches': int(kept['micro_batches'])}
  except (ValueError, KeyError, TypeError) as e:
    raise UserError(
      f'{file} is damaged: it should name mesh and micro_batches of the run; remove it, if the run '
      'goes on where it was'
    ) from e


def _of(experiment: Experiment) -> dict[str, Any]:
  layout = experiment.layout()
  return {'mesh': layout.mesh(), 'micro_batches': layout.micro_batches}


def _words(kept: dict[str, Any]) -> str:
  return f'the mesh {kept["mesh"]} with {kept["micro_batches"]} part(s) of a batch'


def _file(folder: os.PathLike | str) -> Any:
  from etils import epath

  return epath.Path(folders.resolve(folder)) / FILE
