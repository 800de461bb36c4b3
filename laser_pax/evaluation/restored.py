"""A checkpoint's weights under an experiment's model, on this job's devices."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from paxml import checkpoint_types, checkpoints, partitioning, trainer_lib
from praxis import pax_fiddle, py_utils

from laser_pax.experiment import saved_models
from laser_pax.experiment.base import Experiment

NestedMap = py_utils.NestedMap


class Restored:
  """An experiment's model with a checkpoint's weights. PAX's partitioner lays both out.

  Attributes:
    experiment: The experiment.
    saved: The checkpoint.
    task: PAX's task.
    mesh: The mesh of the devices.
  """

  def __init__(self, experiment: Experiment, saved: saved_models.Saved):
    """Reads the weights. The optimiser's state stays on the disk.

    Raises:
      UserError: The checkpoint is another experiment's, or has other shapes.
    """
    saved_models.check_run(saved, experiment)
    self.experiment, self.saved = experiment, saved
    task_p = experiment.task()
    if hasattr(task_p.model, 'return_predictions'):  # Language models alone have it.
      task_p.model.return_predictions = True
    self.task = pax_fiddle.instantiate(task_p)
    devices = mesh_utils.create_device_mesh(experiment.mesh())
    self._partitioner = partitioning.PjitPartitioner(
      init_is_eval=True, reshard_inputs=True, task=self.task, device_mesh=devices
    )
    self._key = jax.random.PRNGKey(0)
    specs = experiment.input_specs(experiment.eval_batch_size())
    self._partitioner.setup(self.task, self._key, specs)
    self.mesh = self._partitioner.global_mesh
    self._metadata = self._partitioner.get_train_state_metadata(discard_opt_states=True)
    self._state = self._read(self._metadata)
    self._steps: dict[Any, Any] = {}

  def take(self, saved: saved_models.Saved) -> None:
    """Reads another checkpoint's weights in place of these. What is compiled stays.

    Raises:
      UserError: The checkpoint is another experiment's, or has other shapes.
    """
    saved_models.check_run(saved, self.experiment)
    self.saved = saved
    self._state = None  # There need not be room for both.
    self._state = self._read(self._metadata)

  @property
  def weights(self) -> dict[str, jax.Array]:
    """The weights by their dotted names, spread over the devices."""
    return _by_name(self._state.mdl_vars)

  def data_parallel(self) -> int:
    """Returns a number of rows that the devices can share equally."""
    return int(np.prod(list(self.mesh.shape.values())))

  def _read(self, metadata: trainer_lib.TrainStateMetadata):
    weights = _by_name(metadata.unpadded_global_shapes.mdl_vars)
    saved_models.check_shapes(
      self.saved,
      {name: tuple(x.shape) for name, x in weights.items()},
      type(self.experiment).__name__,
    )
    return checkpoints.restore_checkpoint(
      metadata.padded_global_shapes,
      self.saved.folder.parent,
      global_mesh=self.mesh,
      checkpoint_type=checkpoint_types.CheckpointType.GDA,
      state_specs=metadata.partition_specs,
      step=self.saved.step,
      enforce_restore_shape_check=True,
      state_unpadded_shape_dtype_struct=metadata.unpadded_global_shapes,
    ).to_eval_state()

  def run(self, step_fn: Callable[..., Any], batch: NestedMap) -> Any:
    """Runs one of PAX's evaluation steps on a batch, and returns its output on this host.

    A step is compiled once for each function and shape of the batch.

    Args:
      step_fn: Function of the form that PAX's partitioner takes, such as
        `trainer_lib.eval_step_single_learner`. Keep it: another object is compiled anew.
      batch: Arrays of numpy, the same on each host. `data_parallel` divides the rows.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    key = (step_fn, tuple((name, x.shape, str(x.dtype)) for name, x in shapes.FlattenItems()))
    if key not in self._steps:
      self._steps[key] = self._partitioner.partition(step_fn, shapes, is_eval=True)
    step, specs = self._steps[key]
    rows = len(batch.FlattenItems()[0][1])
    static = trainer_lib.BaseStepFnStaticArgs(unpadded_global_batch_size=rows)
    _, output = step(self._state, self._key, self._place(batch, specs), static)
    return self._to_host(output)

  def _place(self, batch: NestedMap, specs: NestedMap) -> NestedMap:
    def place(x, spec):
      sharding = jax.sharding.NamedSharding(self.mesh, spec)
      return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(place, batch, specs)

  def _to_host(self, output: Any) -> Any:
    if jax.process_count() == 1:
      return jax.tree.map(np.asarray, output)
    return jax.tree.map(functools.partial(multihost_utils.process_allgather, tiled=True), output)


def _by_name(variables: Mapping[str, Any]) -> dict[str, Any]:
  return dict(NestedMap.FromNestedDict(variables['params']).FlattenItems())
