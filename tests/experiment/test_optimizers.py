"""The optimiser is AdamW: its trajectory is that of optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from praxis import base_hyperparams, base_layer

from laser_pax import configs


class _Experiment(configs.C4StandardTiny):
  NUM_TRAIN_STEPS = 50
  WARMUP_STEPS = 7


def _learner(experiment):
  return base_hyperparams.instantiate(experiment.task().train.learner.set(name='learner'))


def _schedule(experiment):
  return optax.warmup_cosine_decay_schedule(
    0.0, experiment.LEARNING_RATE, experiment.WARMUP_STEPS, experiment.NUM_TRAIN_STEPS
  )


def test_schedule_is_linear_warm_up_then_cosine_to_zero_at_the_last_step():
  experiment = _Experiment()
  optimizer = _learner(experiment).optimizer
  for step in range(experiment.NUM_TRAIN_STEPS + 1):
    np.testing.assert_allclose(
      optimizer.get_learning_rate(step), _schedule(experiment)(step), rtol=1e-5, atol=1e-9
    )
  assert optimizer.get_learning_rate(0) == 0
  assert optimizer.get_learning_rate(experiment.NUM_TRAIN_STEPS) == pytest.approx(0, abs=1e-12)


# Gradients of norm 0.01 are never clipped, and those of norm 100 always. PAX's default would cap
# the spike.
@pytest.mark.parametrize('gradient_scale', [1e-3, 10.0])
def test_trajectory_over_50_steps_is_optax_adamw(gradient_scale):
  experiment = _Experiment()
  learner = _learner(experiment)
  rng = np.random.default_rng(0)
  shapes = {'matrix': (8, 5), 'vector': (7,)}
  hparams = {name: base_layer.WeightHParams(shape=list(shape)) for name, shape in shapes.items()}
  pax = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
  ref = dict(pax)
  pax_optimizer = learner.get_grad_tx(hparams)
  optax_optimizer = optax.chain(
    optax.clip_by_global_norm(experiment.CLIP_GRADIENT_NORM_TO_VALUE),
    optax.adamw(
      _schedule(experiment),
      b1=experiment.ADAM_BETA1,
      b2=experiment.ADAM_BETA2,
      eps=experiment.ADAM_EPSILON,
      weight_decay=experiment.WEIGHT_DECAY,
    ),
  )
  pax_state, optax_state = pax_optimizer.init(pax), optax_optimizer.init(ref)
  start = dict(pax)
  for step in range(experiment.NUM_TRAIN_STEPS):
    spike = 50.0 if step == 20 else 1.0
    gradients = {
      name: jnp.asarray(rng.normal(size=shape) * gradient_scale * spike, jnp.float32)
      for name, shape in shapes.items()
    }
    with base_layer.JaxContext.new_context():
      updates, pax_state = learner.update_states(gradients, pax_state, pax, hparams)
      pax = learner.apply_gradient(pax, updates, hparams)
    updates, optax_state = optax_optimizer.update(gradients, optax_state, ref)
    ref = optax.apply_updates(ref, updates)
    for name in shapes:
      np.testing.assert_allclose(pax[name], ref[name], rtol=1e-5, atol=1e-7)
  moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), pax, start)
  assert min(moved.values()) > 0.01, 'the test must move the weights'


def test_all_weights_decay_but_those_of_layer_norms():
  experiment = configs.C4LaserTiny()
  task = base_hyperparams.instantiate(experiment.task())
  specs = base_hyperparams.instantiate(experiment.get_input_specs_provider_params())
  weights = task.model.abstract_init_with_metadata(specs.get_input_specs())
  leaves, _ = jax.tree_util.tree_flatten_with_path(
    weights, is_leaf=lambda x: isinstance(x, base_layer.WeightHParams)
  )
  for path, leaf in leaves:
    undecayed = base_layer.var_skip_lp_regularization(leaf)
    name = jax.tree_util.keystr(path)
    assert undecayed == ('layer_norm' in name or 'final_ln' in name), name
