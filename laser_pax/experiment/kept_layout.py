"""The layout that a run was computed in, kept in its checkpoints.

On other chips the rule may choose another mesh, or another number of parts of the batch. Sums then
have another order, and losses agree to rounding alone. So a run changes its layout only if asked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, Protocol

from laser_pax.errors import UserError
from laser_pax.experiment import checkpoints, layouts

# The file, in each checkpoint's folder.
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
  """Checks that the rule chooses the layout of the checkpoint from which a run goes on.

  Attributes that the experiment sets itself may differ from those of the checkpoint.

  Args:
    folder: Folder of the job.
    experiment: The experiment.

  Raises:
    UserError: The rule chooses another; the message has the values to set.
  """
  step = checkpoints.survey(folder).whole
  kept, now = None if step is None else _read(folder, step), _of(experiment)
  if kept is None:
    return
  is_set = {
    'mesh': experiment.ICI_MESH_SHAPE is not None or experiment.DCN_MESH_SHAPE is not None,
    'micro_batches': experiment.MICRO_BATCHES is not None,
  }
  if all(is_set[name] or kept[name] == now[name] for name in now):
    return
  layout = experiment.layout()
  ici, dcn = (_list(mesh) for mesh in (layout.ici_mesh_shape, layout.dcn_mesh_shape))
  values = f'--fdl.ICI_MESH_SHAPE={ici} --fdl.MICRO_BATCHES={layout.micro_batches}'
  values += f' --fdl.DCN_MESH_SHAPE={dcn}' if max(layout.dcn_mesh_shape) > 1 else ''
  raise UserError(
    f'{folder}: checkpoint {step} was trained on {_words(kept)}. For these devices the rule '
    f'chooses {_words(now)}, where losses would agree to rounding alone. To accept that, give '
    f'{values}; else train on the former devices'
  )


def keep(experiment: Experiment) -> None:
  """Makes each checkpoint of this process keep the experiment's layout."""
  checkpoints.add_note(FILE, json.dumps(_of(experiment)) + '\n')


def _read(folder: os.PathLike | str, step: int) -> dict[str, Any] | None:
  """Returns what a checkpoint keeps; None where it keeps none, or is damaged."""
  try:
    kept = json.loads(checkpoints.read_note(folder, step, FILE) or '')
    return {'mesh': list(kept['mesh']), 'micro_batches': int(kept['micro_batches'])}
  except (ValueError, KeyError, TypeError):
    return None


def _of(experiment: Experiment) -> dict[str, Any]:
  layout = experiment.layout()
  return {'mesh': layout.mesh(), 'micro_batches': layout.micro_batches}


def _words(kept: dict[str, Any]) -> str:
  return f'the mesh {kept["mesh"]} with {kept["micro_batches"]} part(s) of a batch'


def _list(numbers: Sequence[int]) -> str:
  return str(list(numbers)).replace(' ', '')
