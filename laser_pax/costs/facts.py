"""The facts of one experiment, read from its resolved config without device, data or compiler."""

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import PartitionSpec
from paxml import trainer_lib
from praxis import base_hyperparams, base_layer

from laser_pax.experiment.base import Experiment


@dataclasses.dataclass(frozen=True)
class Parameter:
  """A variable of the model.

  Attributes:
    name: Dotted name.
    shape: Shape of the variable. In a repeated stack the layers come first.
    sharding: Mesh axis that splits each dimension.
  """

  name: str
  shape: tuple[int, ...]
  sharding: tuple


@dataclasses.dataclass(frozen=True)
class Facts:
  """The facts that `show` prints.

  Attributes:
    name: Name of the experiment.
    parameters: Number of trainable parameters.
    units: Tokens, images or frames (the experiment's UNIT) of the whole training.
    flops_per_step: Operations of the model's matrix products in one step, forward and backward,
      without rematerialisation. Attention counts all pairs of positions, causal or not.
    state_bytes_per_device: Bytes of parameters and optimiser moments, padded as PAX pads them.
    devices: Number of devices of the mesh.
    mesh: Devices along [replica, data, mdl].
    variables: The model's variables.
  """

  name: str
  parameters: int
  units: int
  flops_per_step: int
  state_bytes_per_device: int
  devices: int
  mesh: tuple[int, ...]
  variables: tuple[Parameter, ...]


def _parts(spec: PartitionSpec | None, axes: dict[str, int]) -> int:
  """Returns the number of parts into which a sharding splits an array."""
  names = jax.tree.leaves(tuple(spec or ()))
  return math.prod(axes[name] for name in names)


def _names(tree) -> list[str]:
  """Returns the dotted names of a tree's leaves."""
  paths = jax.tree_util.tree_flatten_with_path(tree)[0]
  return [
    '.'.join(str(getattr(key, 'key', getattr(key, 'name', key))) for key in path)
    for path, _ in paths
  ]


def facts(experiment: Experiment) -> Facts:
  """Returns an experiment's facts.

  Raises:
    UserError: Its sizes do not fit each other.
  """
  task = base_hyperparams.instantiate(experiment.task())
  specs = experiment.input_specs(experiment.GLOBAL_BATCH_SIZE)
  metadata = trainer_lib.create_train_state_metadata(task, specs)
  shapes, shardings = metadata.padded_global_shapes, metadata.partition_specs
  axes = dict(zip(task.model.mesh_axis_names, experiment.mesh(), strict=True))
  is_spec = lambda x: isinstance(x, PartitionSpec) or x is None  # noqa: E731
  state_bytes = sum(
    math.prod(x.shape) * np.dtype(x.dtype).itemsize // _parts(spec, axes)
    for x, spec in zip(
      jax.tree.leaves(shapes), jax.tree.leaves(shardings, is_leaf=is_spec), strict=True
    )
  )
  variables = _variables(metadata.var_weight_hparams)
  trained = [v for v in variables if not v.name.startswith(f'{base_layer.NON_TRAINABLE}.')]
  parameters = sum(math.prod(v.shape) for v in trained)
  model_flops = experiment.model_flops(parameters)
  return Facts(
    name=type(experiment).__name__,
    parameters=parameters,
    units=experiment.units(),
    flops_per_step=model_flops.weights + model_flops.attention,
    state_bytes_per_device=state_bytes,
    devices=math.prod(experiment.mesh()),
    mesh=tuple(experiment.mesh()),
    variables=variables,
  )


def _variables(weights) -> tuple[Parameter, ...]:
  """Returns the variables of a tree of PAX's WeightHParams."""
  is_weight = lambda x: isinstance(x, base_layer.WeightHParams)  # noqa: E731
  leaves = jax.tree.leaves(weights, is_leaf=is_weight)
  names = _names(jax.tree.map(lambda _: 0, weights, is_leaf=is_weight))
  return tuple(
    Parameter(
      name,
      (*(leaf.repeat_prefix or ()), *leaf.shape),
      (*(leaf.repeat_prefix_split_dims_mapping or ()), *(leaf.tensor_split_dims_mapping or ())),
    )
    for name, leaf in zip(names, leaves, strict=True)
  )
