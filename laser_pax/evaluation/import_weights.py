"""Exported weights come back to PAX: a checkpoint that their experiment restores."""

import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import mesh_utils
from paxml import checkpoint_metadata, partitioning, trainer_lib
from praxis import pax_fiddle, py_utils

from laser_pax.evaluation import exported_config, stored_arrays, weight_names
from laser_pax.evaluation.exported_folder import TOKENIZER, Exported, check_new, new_folder
from laser_pax.experiment import checkpoints, jobs, saved_models
from laser_pax.experiment.base import Experiment

# PAX's way of making a file's name of a variable's place in the state.
_SEPARATORS = dict(key_separator='.', left_separator='_', right_separator='')
_WEIGHTS = 'mdl_vars.params.'


def import_weights(experiment: Experiment, exported: Exported, job: pathlib.Path) -> None:
  """Writes a job's folder whose checkpoint has the weights of an export, bit for bit.

  PAX evaluates the checkpoint, and goes on training from its step. Adam's moments begin at zero,
  since an export has none. Memory holds one piece of one array at a time.

  Args:
    experiment: The experiment that trained the weights, with its run's overrides.
    exported: The export.
    job: The folder to make, the --job_log_dir of a training. It appears when it is complete.

  Raises:
    UserError: The experiment has other weights, or `job` has content.
  """
  check_new(job)
  exported_config.check_model(experiment)
  metadata = _state_metadata(experiment)
  arrays = {
    name.removeprefix(_WEIGHTS): tuple(leaf.shape)
    for name, leaf in _named_leaves(metadata.unpadded_global_shapes.mdl_vars, 'mdl_vars')
  }
  actual = {name: w.shape for name, w in exported.weights.items()}
  weight_names.check(actual, weight_names.weight_shapes(arrays), str(exported.folder))
  step, run = exported.config['laser_pax']['step'], exported.run
  changed = (f'{name}={value}' for name, value in run.overrides.items())
  with new_folder(job) as folder:
    saved = saved_models.Saved(str(folder), step, run)
    state = saved.folder / 'state'
    state.mkdir(parents=True)
    _write_weights(state, arrays, exported.weights)
    _write_rest(state, metadata, step)
    _write_metadata(saved.folder, metadata)
    checkpoints.write_list(saved.folder)
    shutil.copy(exported.folder / TOKENIZER, folder / jobs.VOCABULARY)
    (folder / jobs.MARK).write_text(jobs.mark_text(run.experiment, changed) + '\n')


def _state_metadata(experiment: Experiment) -> trainer_lib.TrainStateMetadata:
  """Returns shapes and names of PAX's state of a training. Nothing is computed."""
  task = pax_fiddle.instantiate(experiment.task())
  devices = mesh_utils.create_device_mesh(experiment.mesh())
  partitioner = partitioning.PjitPartitioner(
    init_is_eval=False, reshard_inputs=True, task=task, device_mesh=devices
  )
  specs = experiment.input_specs(experiment.GLOBAL_BATCH_SIZE)
  partitioner.setup(task, jax.random.PRNGKey(0), specs)
  return partitioner.get_train_state_metadata()


def _named_leaves(tree: Any, prefix: str) -> Iterator[tuple[str, jax.ShapeDtypeStruct]]:
  """Yields the leaves of a part of PAX's state, each with the name of its folder on the disk."""
  names = py_utils.extract_prefixed_keys_from_nested_map(
    tree, prefix, is_leaf=py_utils.is_optax_masked_node, **_SEPARATORS
  )
  yield from zip(jax.tree.leaves(names), jax.tree.leaves(tree), strict=True)


def _write_weights(
  state: epath.Path, arrays: saved_models.Shapes, weights: Mapping[str, np.ndarray]
) -> None:
  for array, names in weight_names.by_array(weight_names.places(arrays)).items():
    shape = arrays[array]
    is_whole = None in names
    inner = stored_arrays.chunk_shape(shape if is_whole else shape[1:], itemsize=4)
    chunk = inner if is_whole else (1, *inner)
    store = stored_arrays.create_array(state, _WEIGHTS + array, shape, np.float32, chunk)
    for region in stored_arrays.regions(shape, chunk):
      if is_whole:
        piece = weights[names[None]][region]
      else:
        piece = weights[names[region[0].start]][region[1:]][np.newaxis]
      store[region].write(np.ascontiguousarray(piece)).result()


def _write_rest(state: epath.Path, metadata: trainer_lib.TrainStateMetadata, step: int) -> None:
  """Writes the step, and an optimiser that has counted the steps and has seen no gradient."""
  shapes = metadata.unpadded_global_shapes
  leaves = [('step', shapes.step), *_named_leaves(shapes.opt_states, 'opt_states')]
  for name, leaf in leaves:
    chunk = stored_arrays.chunk_shape(leaf.shape, leaf.dtype.itemsize)
    store = stored_arrays.create_array(state, name, leaf.shape, leaf.dtype, chunk)
    if name.rpartition('.')[2] in ('step', 'count'):
      store.write(np.full(leaf.shape, step, leaf.dtype)).result()


def _write_metadata(folder: epath.Path, metadata: trainer_lib.TrainStateMetadata) -> None:
  contents = checkpoint_metadata.make_metadata(
    train_state=metadata.padded_global_shapes,
    train_state_unpadded_shape_dtype_struct=metadata.unpadded_global_shapes,
    tensorstore_use_ocdbt=False,
  )
  (folder / 'metadata').mkdir()
  (folder / 'metadata' / 'metadata').write_text(json.dumps(contents))
