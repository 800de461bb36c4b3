"""The worker that trains PAX's decoder: `laser` and `standard` are ours, `stock` is PAX's.

All three have one architecture and one optimizer, and use PAX's own partitioner and train step.
`stock` is PAX's task as PAX makes it, with Praxis's attention, loss and one-hot lookup.
"""

import jax
import jax.numpy as jnp
import numpy as np
import turns
from paxml import partitioning, trainer_lib
from paxml.tasks.lm import model_params
from praxis import pax_fiddle

from laser_pax import configs
from laser_pax.data import text_lm
from laser_pax.experiment import training
from laser_pax.experiment.optimizers import Hyperparameters, set_adamw


class Stock(model_params.TransformerLmSpmdAdafactor):
  """PAX's own decoder; it takes only AdamW from this package, as the other two have it."""

  ICI_MESH_SHAPE = [1, 1, 1]
  USE_REPEATED_LAYER = configs.C4StandardTiny.USE_REPEATED_LAYER
  CHECKPOINT_POLICY = configs.C4StandardTiny.CHECKPOINT_POLICY

  def datasets(self):
    """Returns none: the benchmark makes its batches itself."""
    return []

  def task(self):
    """Returns PAX's task with AdamW in place of Adafactor."""
    task_p = super().task()
    tiny = configs.C4StandardTiny
    numbers = Hyperparameters(
      learning_rate=turns.LEARNING_RATE,
      weight_decay=turns.WEIGHT_DECAY,
      beta1=turns.BETAS[0],
      beta2=turns.BETAS[1],
      epsilon=turns.EPSILON,
      warmup_steps=tiny.WARMUP_STEPS,
      num_train_steps=tiny.NUM_TRAIN_STEPS,
    )
    set_adamw(task_p, numbers)
    return task_p


VARIANTS = {'laser': configs.C4LaserTiny, 'standard': configs.C4StandardTiny, 'stock': Stock}


def experiment(variant: str, batch: int, length: int):
  """Returns a variant's experiment at the benchmark's sizes."""
  variant_experiment = VARIANTS[variant]()
  sizes = dict(NUM_LAYERS=turns.LAYERS, MODEL_DIMS=turns.DIMS, HIDDEN_DIMS=turns.HIDDEN)
  sizes |= dict(DIMS_PER_HEAD=turns.DIMS // turns.HEADS, VOCAB_SIZE=turns.VOCAB)
  sizes |= dict(GLOBAL_BATCH_SIZE=batch, SEQ_LEN=length, FPROP_DTYPE=jnp.float32)
  sizes |= dict(LEARNING_RATE=turns.LEARNING_RATE, WEIGHT_DECAY=turns.WEIGHT_DECAY)
  sizes |= dict(ADAM_BETA1=turns.BETAS[0], ADAM_BETA2=turns.BETAS[1], ADAM_EPSILON=turns.EPSILON)
  sizes |= dict(CLIP_GRADIENT_NORM_TO_VALUE=0.0, ICI_MESH_SHAPE=[1, 1, 1])
  for name, value in sizes.items():
    setattr(variant_experiment, name, value)
  return variant_experiment


def prepare(variant: str, batch: int, length: int):
  """Returns the variant's step as `turns.serve` takes it."""
  task = pax_fiddle.instantiate(experiment(variant, batch, length).task())
  mesh = np.array(jax.devices()[:1]).reshape(1, 1, 1)
  partitioner = partitioning.PjitPartitioner(
    init_is_eval=False, reshard_inputs=True, task=task, device_mesh=mesh
  )
  specs = text_lm.batch_specs(batch, length)
  key = jax.random.PRNGKey(0)
  partitioner.setup(task, key, specs)
  _, state, _ = partitioner.initialize_prng_key_and_train_state(key, None, None)
  step_fn, _ = partitioner.partition(training.train_step(micro_batches=1), specs, is_eval=False)
  static = trainer_lib.BaseStepFnStaticArgs(unpadded_global_batch_size=batch)
  rng = np.random.default_rng(0)

  def step() -> float:
    nonlocal state
    rows = text_lm.random_batch(rng, batch, length, turns.VOCAB)
    state, output = step_fn(state, key, rows, static)
    jax.block_until_ready(state)
    return float(output.loss)

  parameters = sum(x.size for x in jax.tree.leaves(state.mdl_vars))
  return step, {'parameters': parameters, 'numerics': getattr(VARIANTS[variant], 'NUMERICS', None)}


if __name__ == '__main__':
  args = turns.arguments(*VARIANTS)
  turns.serve(lambda: prepare(args.variant, args.batch, args.length))
