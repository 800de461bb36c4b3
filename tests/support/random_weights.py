"""Tiny experiments with random weights that are large enough for no token to be always the best."""

import jax
import jax.numpy as jnp
import numpy as np
from paxml import trainer_lib
from praxis import py_utils

from laser_pax.data import vocabulary
from laser_pax.evaluation import restored
from laser_pax.experiment import saved_models
from tests.support import steps


class RandomWeights(restored.Restored):
  """The model of an experiment with random weights, in place of a checkpoint's."""

  def __init__(self, experiment):
    """Draws the weights. No sequence ends."""
    super().__init__(experiment, saved_models.Saved('nowhere', 0, None))
    self.set_end_logit(-1e3)

  def set_end_logit(self, bias: float) -> None:
    """Sets what is added to the logit of the end of a sequence."""

    def set_bias(path, x):
      is_logits_bias = path[-1].key == 'b' and x.shape == (self.experiment.VOCAB_SIZE,)
      return x.at[vocabulary.EOS_ID].set(bias) if is_logits_bias else x

    weights = jax.tree_util.tree_map_with_path(set_bias, self._state.mdl_vars)
    self._state = self._state.replace(mdl_vars=weights)

  def _read(self, metadata):
    rng = np.random.default_rng(0)

    def draw(path, x, spec):
      # Words weigh little beside what the layers add: else each is its own likeliest successor.
      scale = 0.1 if any(key.key == 'softmax' for key in path) else 1.0
      value = (scale * rng.standard_normal(x.shape)).astype(x.dtype)
      return jax.device_put(value, jax.sharding.NamedSharding(self.mesh, spec))

    shapes, specs = metadata.padded_global_shapes, metadata.partition_specs
    weights = jax.tree_util.tree_map_with_path(draw, shapes.mdl_vars, specs.mdl_vars)
    return shapes.replace(step=jnp.zeros((), jnp.int32), mdl_vars=weights, opt_states=[])


def model(name: str, **changes) -> RandomWeights:
  """Returns a Tiny experiment of `steps.SIZES` with random weights and 128 positions."""
  return RandomWeights(steps.experiment(name, **{'SEQ_LEN': 128, **changes}))


def likeliest(model: RandomWeights, rows: list[list[int]]) -> list[list[int]]:
  """Returns the likeliest token at each place of rows, after the tokens before it: one pass."""
  length = max(map(len, rows))
  ids, labels = np.zeros((2, len(rows), length), np.int32)
  weights = np.zeros((len(rows), length), np.float32)
  for i, row in enumerate(rows):
    labels[i, : len(row)], ids[i, 1 : len(row)], weights[i, : len(row)] = row, row[:-1], 1
  batch = py_utils.NestedMap(
    ids=ids,
    labels=labels,
    weights=weights,
    paddings=1 - weights,
    segment_ids=weights.astype(np.int32),
    segment_pos=(np.arange(length) * weights).astype(np.int32),
  )
  output = model.run(trainer_lib.eval_step_single_learner, batch)
  best = output.per_example_out.per_example_argmax
  return [best[i, : len(row)].tolist() for i, row in enumerate(rows)]
