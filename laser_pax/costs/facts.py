"""One experiment's facts, from its resolved config: no device, data or compile needed."""

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
    name: Dotted.
    shape: With the layers of a repeated stack first.
    sharding: The mesh axis over which each dimension is split.
  """

  name: str
  shape: tuple[int, ...]
  sharding: tuple


@dataclasses.dataclass(frozen=True)
class Facts:
  """What `show` prints.

  Attributes:
    name: The experiment's.
    parameters: Trainable numbers.
    units: Tokens, images or frames (the experiment's UNIT) of the whole training.
    flops_per_step: Of the model's matrix multiplications in one step, forward and backward, without
      rematerialisation, attention over all pairs of positions (the causal half is not taken off).
    state_bytes_per_device: Parameters and optimiser moments, padded as PAX pads them.
    devices: That the mesh asks for.
    mesh: [replica, data, mdl].
    variables: The parameters, one by one.
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
  """Into how many parts a sharding splits an array."""
  names = jax.tree.leaves(tuple(spec or ()))
  return math.prod(axes[name] for name in names)


def _names(tree) -> list[str]:
  """Dotted names of a tree's leaves."""
  paths = jax.tree_util.tree_flatten_with_path(tree)[0]
  return [
    '.'.join(str(getattr(key, 'key', getattr(key, 'name', key))) for key in path)
    for path, _ in paths
  ]


def facts(experiment: Experiment) -> Facts:
  """Returns an experiment's facts.

  Raises:
    UserError: its sizes do not fit each other.
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
  parameters = sum(math.prod(v.shape) for v in variables)
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
