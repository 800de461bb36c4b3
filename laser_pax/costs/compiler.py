"""Compiles an experiment's real PAX steps for a slice that this machine does not have.

The compiler is the TPU's own, the step and its shardings are those that paxml.main runs.
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
  """One compiled step.

  Attributes:
    seconds: That tracing and compiling took.
    state_bytes: Arguments of a chip: parameters, optimiser state, batch.
    temporary_bytes: Of a chip; None where the compiler gave up, because it does not fit.
    peak_bytes: State, temporaries, program, and outputs that do not replace arguments.
    text: The compiled program; '' where the compiler gave up.
    xla_flops: XLA's own count for one chip. It counts a scanned layer once.
    xla_bytes: As XLA counts bytes accessed, with the same fault.
  """

  seconds: float
  state_bytes: int | None
  temporary_bytes: int | None
  peak_bytes: int
  text: str = ''
  xla_flops: float | None = None
  xla_bytes: float | None = None


def devices(pod: slices.Slice) -> list:
  """Returns the slice's devices, which can be compiled for but not run on."""
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
  """Lays devices out as PAX does: [replica, data, mdl], slices along `dcn`."""
  if int(np.prod(dcn)) > 1:
    return mesh_utils.create_hybrid_device_mesh(ici, dcn, devices=chips)
  return mesh_utils.create_device_mesh(ici, devices=chips)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traced:
  """A step as PAX would run it, not yet compiled.

  Attributes:
    jitted: jax's traced function.
    mesh: That it is for.
    parameters: Trainable numbers of the model.
    seconds: That tracing took.
  """

  jitted: jax.stages.Traced
  mesh: jax.sharding.Mesh
  parameters: int
  seconds: float

  @property
  def jaxpr(self) -> jax.extend.core.ClosedJaxpr:
    """What is computed, over all chips."""
    return self.jitted.jaxpr


def trace_train(experiment: Experiment, pod: slices.Slice) -> Traced:
  """Traces the train step, accumulation and all, of an experiment planned for `pod`."""
  step_fn = training.train_step(experiment.micro_batches())
  return trace(experiment, devices(pod), step_fn, experiment.GLOBAL_BATCH_SIZE, is_eval=False)


def trace_eval(experiment: Experiment, pod: slices.Slice) -> Traced:
  """Traces the step of an evaluation."""
  step_fn = trainer_lib.eval_step_single_learner
  return trace(experiment, devices(pod), step_fn, experiment.eval_batch_size(), is_eval=True)


def trace(
  experiment: Experiment, chips: list, step_fn: Callable, batch_size: int, is_eval: bool
) -> Traced:
  """Traces one of PAX's steps of a batch over given devices."""
  start = time.time()
  task_p = experiment.task()
  mesh = device_mesh(task_p.model.ici_mesh_shape, task_p.model.dcn_mesh_shape, chips)
  task = pax_fiddle.instantiate(task_p)
  partitioner = partitioning.PjitPartitioner(
    init_is_eval=False, reshard_inputs=True, task=task, device_mesh=mesh
  )
  specs = experiment.input_specs(batch_size)
  partitioner.setup(task, jax.random.PRNGKey(0), specs)
  metadata = partitioner.get_train_state_metadata(discard_opt_states=is_eval)
  step, input_specs = partitioner.partition(step_fn, specs, is_eval)

  def placed(x, spec):
    sharding = NamedSharding(partitioner.global_mesh, spec)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  arguments = (
    jax.tree.map(placed, metadata.padded_global_shapes, metadata.partition_specs),
    placed(jax.ShapeDtypeStruct((2,), jnp.uint32), PartitionSpec()),
    jax.tree.map(placed, specs, input_specs),
    trainer_lib.BaseStepFnStaticArgs(unpadded_global_batch_size=batch_size),
  )
  weights = jax.tree.leaves(metadata.unpadded_global_shapes.mdl_vars)
  with partitioner.global_mesh:
    traced = pax_fixes.jitted_step(step).trace(*arguments)
  return Traced(
    jitted=traced,
    mesh=partitioner.global_mesh,
    parameters=sum(int(np.prod(x.shape)) for x in weights),
    seconds=time.time() - start,
  )


def compile_step(traced: Traced) -> Step:
  """Compiles a traced step for the devices that it was traced for."""
  start = time.time() - traced.seconds
  try:
    with traced.mesh:
      compiled = traced.jitted.lower().compile()
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e) or not (peak := _needed(str(e))):
      raise
    return Step(
      seconds=time.time() - start,
      state_bytes=None,
      temporary_bytes=None,
      peak_bytes=peak,
    )
  memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
  new_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return Step(
    seconds=time.time() - start,
    state_bytes=memory.argument_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
    peak_bytes=(
      memory.argument_size_in_bytes
      + memory.temp_size_in_bytes
      + max(0, new_outputs)
      + memory.generated_code_size_in_bytes
    ),
    text=compiled.as_text(),
    xla_flops=costs.get('flops'),
    xla_bytes=costs.get('bytes accessed'),
  )


def _needed(message: str) -> int | None:
  """Bytes of a chip that a step needs which does not fit, or of a single array that does not."""
  if used := re.search(r'(?:Used|Requires) ([\d.]+)([KMGT]?)(?: of|, has)', message):
    return round(float(used[1]) * 2 ** (10 * ' KMGT'.index(used[2] or ' ')))
  single = re.search(r'Allocation \(size=(\d+)\) would exceed memory', message)
  return int(single[1]) if single else None
