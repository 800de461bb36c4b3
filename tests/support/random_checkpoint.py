"""A job's folder with a checkpoint of random weights, saved by PAX itself, without a training."""

import pathlib
from unittest import mock

import numpy as np

SIZES = dict(NUM_LAYERS=4, MODEL_DIMS=32, HIDDEN_DIMS=64, DIMS_PER_HEAD=8, SEQ_LEN=32)
STEP = 7


def save(job: pathlib.Path, name: str, step: int = STEP, **changes) -> dict[str, np.ndarray]:
  """Saves a checkpoint of a Tiny experiment with `SIZES`, changed. Each weight differs from 0.

  Args:
    job: The folder to make.
    name: Name of the experiment.
    step: Step of the checkpoint. Each has other weights.
    **changes: Further overrides.

  Returns:
    The weights by PAX's dotted names.
  """
  from laser_pax import configs
  from laser_pax.data import sample
  from laser_pax.experiment import jobs

  experiment = getattr(configs, name)()
  for attribute, value in {**SIZES, **changes}.items():
    setattr(experiment, attribute, value)
  state = save_state(job, experiment, step)
  jobs.keep_vocabulary(job, sample.VOCAB)
  return by_name(state)


def save_state(job: pathlib.Path, experiment, step: int = STEP):
  """Saves a checkpoint of any experiment, marks the job as its, and returns the whole state."""
  import jax
  from paxml import checkpoint_types, checkpoints

  from laser_pax.experiment import jobs

  mesh, metadata = _mesh_and_metadata(experiment)
  state = jax.tree.map(_random(np.random.default_rng(step - STEP)), metadata.padded_global_shapes)
  state = state.replace(step=np.array(step, np.uint32))
  checkpoints.save_checkpoint(
    placed(state, mesh, metadata),
    job / 'checkpoints',
    checkpoint_type=checkpoint_types.CheckpointType.GDA,
    train_state_unpadded_shape_dtype_struct=metadata.unpadded_global_shapes,
  )
  (job / jobs.MARK).write_text(experiment.job_mark())
  return state


def placed(state, mesh, metadata):
  """Returns a state on the devices of a mesh."""
  import jax

  place = lambda x, spec: jax.device_put(  # noqa: E731
    x, jax.sharding.NamedSharding(mesh, spec)
  )
  return jax.tree.map(place, state, metadata.partition_specs)


def start(experiment, saved):
  """Returns the state that PAX makes of zeros when a run starts from a checkpoint."""
  import jax
  from paxml import checkpoint_types, train_states
  from praxis import pax_fiddle, py_utils

  from laser_pax.experiment import initial

  mesh, metadata = _mesh_and_metadata(experiment)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), metadata.padded_global_shapes)
  state = placed(zeros, mesh, metadata)
  task = pax_fiddle.instantiate(experiment.task())
  task.train.init_from_checkpoint_rules = initial.loading_rules(experiment, saved)
  with mock.patch.object(py_utils, 'pmap_use_tensorstore', lambda: False):  # A flag.
    started, _, _ = task.apply_init_checkpoint_rules(
      state,
      train_states.build_train_state_provenance(state),
      train_state_partition_specs=metadata.partition_specs,
      global_mesh=mesh,
      checkpoint_type=checkpoint_types.CheckpointType.GDA,
    )
  return started


def by_name(state) -> dict[str, np.ndarray]:
  """Returns the weights of PAX's state by their dotted names."""
  from praxis import py_utils

  return dict(py_utils.NestedMap.FromNestedDict(state.mdl_vars['params']).FlattenItems())


def restore(experiment, saved):
  """Returns a checkpoint's whole state, restored by PAX itself to train on from it."""
  from paxml import checkpoint_types, checkpoints

  mesh, metadata = _mesh_and_metadata(experiment)
  return checkpoints.restore_checkpoint(
    metadata.padded_global_shapes,
    saved.folder.parent,
    global_mesh=mesh,
    checkpoint_type=checkpoint_types.CheckpointType.GDA,
    state_specs=metadata.partition_specs,
    state_unpadded_shape_dtype_struct=metadata.unpadded_global_shapes,
    enforce_restore_shape_check=True,
  )


def _mesh_and_metadata(experiment):
  import jax
  from paxml import partitioning
  from praxis import pax_fiddle

  task = pax_fiddle.instantiate(experiment.task())
  devices = np.array(jax.devices()[:1]).reshape(1, 1, 1)
  partitioner = partitioning.PjitPartitioner(
    init_is_eval=False, reshard_inputs=True, task=task, device_mesh=devices
  )
  partitioner.setup(task, jax.random.PRNGKey(0), experiment.input_specs(8))
  return partitioner.global_mesh, partitioner.get_train_state_metadata()


def _random(rng: np.random.Generator):
  """Returns a function that makes an array of a shape."""

  def make(x):
    if x.dtype != np.float32:
      return np.full(x.shape, STEP, x.dtype)
    scale = 0.5 if len(x.shape) < 3 and 4096 not in x.shape else 2 * SIZES['MODEL_DIMS'] ** -0.5
    return (scale * rng.standard_normal(x.shape)).astype(np.float32)

  return make


def logits(experiment, weights: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
  """Returns the logits [B, T, V] of PAX's own model for ids [B, T]."""
  import jax
  from praxis import base_layer, pax_fiddle, py_utils

  config = experiment.task().model.lm_tpl.clone().set(name='lm', skip_compute_loss=True)
  variables = py_utils.NestedMap()
  for name, weight in weights.items():
    variables.Set(name.removeprefix('lm.'), np.asarray(weight))

  def compute(lm, ids):
    ones = np.ones(ids.shape, np.int32)
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    hidden = lm(ids, 0.0 * ones, segment_ids=ones, segment_pos=positions)
    return lm.softmax.get_logits(hidden)

  params = base_layer.JaxContext.HParams(do_eval=True)
  with base_layer.JaxContext.new_context(hparams=params):
    lm = pax_fiddle.instantiate(config)
    tree = {'params': variables.ToNestedDict()}
    apply = jax.jit(lambda tree, ids: lm.apply(tree, ids, method=compute, mutable=False))
    return np.asarray(apply(tree, ids.astype(np.int32)))
