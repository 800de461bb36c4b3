"""Trains a tiny decoder for some steps through PAX's partitioner, on devices of one process.

Tests that need several devices run it as a script, by `in_own_process`. A process can set the
number of its devices only before jax starts.
"""

import json

import numpy as np

from tests.support.commands import QUICK_COMPILE

SIZES = dict(NUM_LAYERS=2, MODEL_DIMS=32, NUM_HEADS=2, DIMS_PER_HEAD=16, HIDDEN_DIMS=64)
SIZES |= dict(VOCAB_SIZE=128, SEQ_LEN=32, GLOBAL_BATCH_SIZE=16, NUM_TRAIN_STEPS=40, WARMUP_STEPS=4)
SIZES |= dict(LEARNING_RATE=3e-3)


def in_own_process(commands, devices: int, module: str, *arguments: str):
  """Runs a module of tests/support on so many CPU devices; returns the JSON that it prints last."""
  flags = f'--xla_force_host_platform_device_count={devices} {QUICK_COMPILE}'
  process = commands.run(
    f'tests.support.{module}', arguments, env={'XLA_FLAGS': flags}, timeout=600
  )
  assert process.returncode == 0, process.stdout + process.stderr
  return json.loads(process.stdout.splitlines()[-1])


def batch(step: int, padded: bool, rows: int, length: int):
  """Returns a step's rows. In a row each token determines the next. Padding varies the lengths."""
  from praxis import py_utils

  rng = np.random.default_rng(step)
  ids = (rng.integers(2, 128, (rows, 1)) + 7 * np.arange(length + 1)) % 128
  lengths = rng.integers(1, length + 1, (rows, 1)) if padded else np.full((rows, 1), length)
  weights = (np.arange(length) < lengths).astype(np.float32)
  return py_utils.NestedMap(
    ids=ids[:, :-1].astype(np.int32),
    labels=ids[:, 1:].astype(np.int32),
    weights=weights,
    paddings=1 - weights,
    segment_ids=weights.astype(np.int32),
    segment_pos=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
  )


class Trainer:
  """An experiment's state and step on a mesh over this process's first devices."""

  def __init__(self, experiment, mesh: list[int], micro_batches: int = 1, state=None):
    """Sets the step up and initialises the state. Only the initialisation is compiled.

    Args:
      experiment: The experiment, made by the function `experiment`.
      mesh: Numbers of devices along [replica, data, mdl].
      micro_batches: Number of parts of the batch.
      state: The state to begin with, on any devices. None initialises a new one.
    """
    import jax
    from paxml import partitioning, trainer_lib
    from praxis import pax_fiddle

    from laser_pax.experiment import training

    self.experiment = experiment
    experiment.ICI_MESH_SHAPE, experiment.DCN_MESH_SHAPE = mesh, [1, 1, 1]
    self.task = pax_fiddle.instantiate(experiment.task())
    devices = np.array(jax.devices()[: int(np.prod(mesh))]).reshape(mesh)
    self.partitioner = partitioning.PjitPartitioner(
      init_is_eval=False, reshard_inputs=True, task=self.task, device_mesh=devices
    )
    specs = pax_fiddle.instantiate(experiment.get_input_specs_provider_params()).get_input_specs()
    key = jax.random.PRNGKey(1)
    self.partitioner.setup(self.task, key, specs)
    self.metadata = self.partitioner.get_train_state_metadata()
    if state is None:
      _, state, _ = self.partitioner.initialize_prng_key_and_train_state(key, None, None)
    self.key, self.state = key, self.place(state, self.metadata.partition_specs)
    self.step_fn, self.input_specs = self.partitioner.partition(
      training.train_step(micro_batches), specs, is_eval=False
    )
    self.static = trainer_lib.BaseStepFnStaticArgs(
      unpadded_global_batch_size=experiment.GLOBAL_BATCH_SIZE
    )

  def place(self, values, specs):
    """Spreads a batch or a state over the devices."""
    import jax
    from jax.sharding import NamedSharding

    mesh = self.partitioner.global_mesh
    # The values go through the host, because a step may overwrite its arguments.
    values = jax.tree.map(np.asarray, values)
    return jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), values, specs)

  def train(self, first: int, last: int, padded: bool = False):
    """Trains the steps from first to last - 1, and returns their outputs."""
    sizes = self.experiment.GLOBAL_BATCH_SIZE, self.experiment.SEQ_LEN
    outputs = []
    for step in range(first, last):
      rows = self.place(batch(step, padded, *sizes), self.input_specs)
      self.state, output = self.step_fn(self.state, self.key, rows, self.static)
      outputs.append(output)
    return outputs

  def compiled(self):
    """Returns the step, compiled."""
    from laser_pax import pax_fixes

    sizes = self.experiment.GLOBAL_BATCH_SIZE, self.experiment.SEQ_LEN
    rows = self.place(batch(0, False, *sizes), self.input_specs)
    with self.partitioner.global_mesh:
      return (
        pax_fixes.jitted_step(self.step_fn).lower(self.state, self.key, rows, self.static).compile()
      )


def experiment(name: str, **changes):
  """Returns a Tiny experiment with `SIZES` in float32, changed."""
  import jax.numpy as jnp

  from laser_pax import configs

  small = getattr(configs, name)()
  for attribute, value in {**SIZES, 'FPROP_DTYPE': jnp.float32, **changes}.items():
    setattr(small, attribute, value)
  return small
