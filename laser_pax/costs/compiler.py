"""Compiles an experiment's real PAX steps for a slice that this machine does not have.

The compiler is the TPU's own. The step and its shardings are those that paxml.main runs.
"""

import dataclasses
import re
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, topologies
from jax.sharding import NamedSharding, PartitionSpec
from paxml import partitioning, trainer_lib
from praxis import pax_fiddle

from laser_pax import pax_fixes
from laser_pax.experiment import slices, training
from laser_pax.experiment.base import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """One compiled step. Bytes and operations are those of one chip.

  The compiler gives up if the step does not fit. Then only `seconds` and `peak_bytes` are known.

  Attributes:
    seconds: Time of tracing and compiling.
    state_bytes: Bytes of the arguments: parameters, optimiser state, batch.
    temporary_bytes: Bytes of temporaries, or None if the compiler gave up.
    peak_bytes: Bytes of state, temporaries, program, and outputs that do not replace arguments.
    text: The compiled program, or '' if the compiler gave up.
    xla_flops: Operations as XLA counts them. It counts a scanned layer once.
    xla_bytes: Bytes accessed as XLA counts them. It counts a scanned layer once.
  """

  seconds: float
  state_bytes: int | None
  temporary_bytes: int | None
  peak_bytes: int
  text: str = ''
  xla_flops: float | None = None
  xla_bytes: float | None = None


def devices(pod: slices.Slice) -> list:
  """Returns the devices of a slice. Programs can be compiled for them, but cannot run on them."""
  if pod.topology is None:
    return jax.devices('cpu')[: pod.chips]
  return list(
    topologies.get_topology_desc(
      platform=pod.chip.platform,
      topology_name=f'{pod.chip.compiler_name}:{pod.topology}',
      chips_per_host_bounds=pod.chip.host_bounds,
      num_slices=pod.slices,
    ).devices
  )


def device_mesh(ici: Sequence[int], dcn: Sequence[int], chips: list) -> np.ndarray:
  """Returns the devices in the mesh of PAX: an array of shape [replica, data, mdl].

  Args:
    ici: The mesh within a slice.
    dcn: The mesh over slices.
    chips: Devices of all slices.
  """
  if int(np.prod(dcn)) > 1:
    return mesh_utils.create_hybrid_device_mesh(ici, dcn, devices=chips)
  return mesh_utils.create_device_mesh(ici, devices=chips)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traced:
  """A step that PAX would run, traced but not yet compiled.

  Attributes:
    jitted: Traced function of jax.
    mesh: Mesh of the devices that the step runs on.
    parameters: Number of the model's trainable parameters.
    seconds: Time of tracing.
    partitioner: PAX's partitioner of the step, which can also make its state.
    arguments: Shape, dtype and sharding of the step's state, random key and batch.
  """

  jitted: jax.stages.Traced
  mesh: jax.sharding.Mesh
  parameters: int
  seconds: float
  partitioner: partitioning.PjitPartitioner | None = None
  arguments: tuple = ()

  @property
  def jaxpr(self) -> jax.extend.core.ClosedJaxpr:
    """The computation of the step, over all chips."""
    return self.jitted.jaxpr


def trace_train(experiment: Experiment, pod: slices.Slice) -> Traced:
  """Traces the train step of an experiment planned for `pod`, with all of its micro-batches."""
  step_fn = training.train_step(experiment.micro_batches())
  return trace(experiment, devices(pod), step_fn, experiment.GLOBAL_BATCH_SIZE, is_eval=False)


def trace_eval(experiment: Experiment, pod: slices.Slice) -> Traced:
  """Traces the evaluation step of an experiment planned for `pod`."""
  step_fn = trainer_lib.eval_step_single_learner
  return trace(experiment, devices(pod), step_fn, experiment.eval_batch_size(), is_eval=True)


def trace(
  experiment: Experiment, chips: list, step_fn: Callable, batch_size: int, is_eval: bool
) -> Traced:
  """Traces one of PAX's steps.

  Args:
    experiment: Experiment of the step.
    chips: Devices to trace for.
    step_fn: Function of the step, of the form that PAX's `partitioner.partition` takes.
    batch_size: Rows of the batch, over all devices.
    is_eval: Whether the step is one of an evaluation.
  """
  start = time.time()
  task_p, layout = experiment.task(), experiment.layout()
  mesh = device_mesh(layout.ici_mesh_shape, layout.dcn_mesh_shape, chips)
  task = pax_fiddle.instantiate(task_p)
  partitioner = partitioning.PjitPartitioner(
    init_is_eval=False, reshard_inputs=True, task=task, device_mesh=mesh
  )
  specs = experiment.input_specs(batch_size)
  partitioner.setup(task, jax.random.PRNGKey(0), specs)
  metadata = partitioner.get_train_state_metadata(discard_opt_states=is_eval)
  step, input_specs = partitioner.partition(step_fn, specs, is_eval)

  def shard(x, spec):
    sharding = NamedSharding(partitioner.global_mesh, spec)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  arguments = (
    jax.tree.map(shard, metadata.padded_global_shapes, metadata.partition_specs),
    shard(jax.ShapeDtypeStruct((2,), jnp.uint32), PartitionSpec()),
    jax.tree.map(shard, specs, input_specs),
  )
  static = trainer_lib.BaseStepFnStaticArgs(unpadded_global_batch_size=batch_size)
  weights = jax.tree.leaves(metadata.unpadded_global_shapes.mdl_vars)
  with partitioner.global_mesh:
    traced = pax_fixes.jitted_step(step).trace(*arguments, static)
  return Traced(
    jitted=traced,
    mesh=partitioner.global_mesh,
    parameters=sum(int(np.prod(x.shape)) for x in weights),
    seconds=time.time() - start,
    partitioner=partitioner,
    arguments=arguments,
  )


def compile_step(traced: Traced) -> Step:
  """Compiles a traced step for the devices of its mesh."""
  start = time.time() - traced.seconds
  try:
    with traced.mesh:
      compiled = traced.jitted.lower().compile()
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e) or not (peak := _required_bytes(str(e))):
      raise
    return Step(
      seconds=time.time() - start,
      state_bytes=None,
      temporary_bytes=None,
      peak_bytes=peak,
    )
  memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
  return Step(
    seconds=time.time() - start,
    state_bytes=memory.argument_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
    peak_bytes=peak_bytes(compiled),
    text=compiled.as_text(),
    xla_flops=costs.get('flops'),
    xla_bytes=costs.get('bytes accessed'),
  )


def peak_bytes(compiled: jax.stages.Compiled) -> int:
  """Returns a chip's peak by the compiler: arguments, temporaries, program, and new outputs."""
  memory = compiled.memory_analysis()
  return (
    memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)
    + memory.generated_code_size_in_bytes
  )


def _required_bytes(message: str) -> int | None:
  """Returns the bytes that an error message of the compiler asks of a chip, or None.

  They are those of the whole step, or of a single array that is too large.
  """
  if used := re.search(r'(?:Used|Requires) ([\d.]+)([KMGT]?)(?: of|, has)', message):
    return round(float(used[1]) * 2 ** (10 * ' KMGT'.index(used[2] or ' ')))
  single = re.search(r'Allocation \(size=(\d+)\) would exceed memory', message)
  return int(single[1]) if single else None
