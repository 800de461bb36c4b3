"""NAdamW is AlgoPerf's: its trajectory is that of the equations, computed in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from praxis import base_hyperparams, base_layer

from laser_pax import configs
from laser_pax.errors import UserError
from laser_pax.experiment import optimizers
from laser_pax.layers.beta import UNDECAYED

STEPS, WARMUP = 60, 7
# AlgoPerf's point for ViT.
POINT = {
  'learning_rate': 8.445e-4,
  'beta1': 0.8895758153482813,
  'beta2': 0.9978504782314613,
  'weight_decay': 0.08135402759553023,
}
SHAPES = {'matrix': (8, 5), 'bias': (7,), 'scale': (3,)}


def _learner(**changed):
  task_p = configs.C4StandardTiny().task()
  fields = POINT | {'warmup_steps': WARMUP, 'num_train_steps': STEPS} | changed
  optimizers.set_nadamw(task_p, optimizers.Hyperparameters(**fields))
  return base_hyperparams.instantiate(task_p.train.learner.set(name='learner'))


def _hparams():
  """Returns the weights' descriptions; the scale is one that Praxis would not decay."""
  skip = [base_layer.WeightHParamsCollection.SKIP_LP_REGULARIZATION]
  return {
    name: base_layer.WeightHParams(shape=list(shape), collections=skip if name == 'scale' else None)
    for name, shape in SHAPES.items()
  }


def _gradients(scale=1.0):
  rng = np.random.default_rng(1)
  for step in range(STEPS):
    spike = 50.0 if step == 20 else 1.0
    yield {name: rng.normal(size=shape) * spike * scale for name, shape in SHAPES.items()}


def _weights():
  rng = np.random.default_rng(0)
  return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


def _expected(gradients, *, learning_rate, beta1, beta2, weight_decay, clip=None):
  """Yields the weights after each step, by AlgoPerf's equations in float64."""
  weights = _weights()
  m, v = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
  for t, g in enumerate(gradients, 1):
    past = t - 1  # The schedule is read at the number of earlier updates.
    if past < WARMUP:
      rate = learning_rate * past / WARMUP
    else:
      rate = learning_rate * (1 + np.cos(np.pi * (past - WARMUP) / (STEPS - WARMUP))) / 2
    if clip:
      norm = np.sqrt(sum((x**2).sum() for x in g.values()))
      g = {name: x * min(1, clip / norm) for name, x in g.items()}
    for name in SHAPES:
      m[name] = beta1 * m[name] + (1 - beta1) * g[name]
      v[name] = beta2 * v[name] + (1 - beta2) * g[name] ** 2
      n = (beta1 * m[name] + (1 - beta1) * g[name]) / (1 - beta1**t)
      step = n / (np.sqrt(v[name] / (1 - beta2**t)) + 1e-8)
      weights[name] = weights[name] - rate * (step + weight_decay * weights[name])
    yield dict(weights)


def _trajectory(learner, gradients, hparams=None):
  hparams = hparams or _hparams()
  weights = {name: jnp.asarray(x, jnp.float32) for name, x in _weights().items()}
  state = learner.get_grad_tx(hparams).init(weights)

  @jax.jit
  def step(g, state, weights):
    with base_layer.JaxContext.new_context():
      updates, state = learner.update_states(g, state, weights, hparams)
      return learner.apply_gradient(weights, updates, hparams), state

  for g in gradients:
    weights, state = step({k: jnp.asarray(x, jnp.float32) for k, x in g.items()}, state, weights)
    yield weights


@pytest.mark.parametrize('changed', [{}, {'beta1': 0.0}, {'weight_decay': 0.0}, {'beta2': 0.9999}])
def test_trajectory_is_that_of_the_equations(changed):
  point = POINT | changed
  pairs = zip(
    _trajectory(_learner(**changed), _gradients()), _expected(_gradients(), **point), strict=True
  )
  for step, (weights, expected) in enumerate(pairs):
    for name in SHAPES:
      np.testing.assert_allclose(weights[name], expected[name], rtol=2e-6, atol=2e-7, err_msg=step)
  moved = [np.abs(expected[name] - x).max() for name, x in _weights().items()]
  assert min(moved) > 5e-3, 'the test must move the weights'


def test_clipping_is_by_the_global_norm():
  expected = list(_expected(_gradients(3), **POINT, clip=1.0))
  clipped = list(_trajectory(_learner(clip_gradient_norm=1.0), _gradients(3)))
  for name in SHAPES:
    np.testing.assert_allclose(clipped[-1][name], expected[-1][name], rtol=2e-6, atol=2e-7)
  free = list(_expected(_gradients(3), **POINT))
  assert max(np.abs(free[-1][n] - expected[-1][n]).max() for n in SHAPES) > 1e-3


def test_the_first_update_has_rate_zero():
  first = next(_trajectory(_learner(), _gradients()))
  for name, x in _weights().items():
    np.testing.assert_array_equal(first[name], np.float32(x))


def test_all_weights_decay():
  """Without gradients each weight shrinks alike, also one that Praxis would spare."""
  zero = [{name: np.zeros(shape) for name, shape in SHAPES.items()}] * STEPS
  last = list(_trajectory(_learner(), zero))[-1]
  ratios = np.concatenate([np.ravel(last[name] / x) for name, x in _weights().items()])
  np.testing.assert_allclose(ratios, ratios[0], rtol=1e-6)
  assert ratios[0] < 1 - 1e-3


def test_a_learned_beta_alone_does_not_decay():
  """Here it is the bias. It is stacked, as in a loop of layers: PAX groups such weights."""
  hparams = _hparams()
  hparams['bias'].collections = [UNDECAYED]
  hparams['bias'].shape, hparams['bias'].repeat_prefix = [], list(SHAPES['bias'])
  zero = [{name: np.zeros(shape) for name, shape in SHAPES.items()}] * STEPS
  last = list(_trajectory(_learner(), zero, hparams))[-1]
  for name, x in _weights().items():
    assert np.allclose(last[name], x, rtol=1e-4) == (name == 'bias'), name


def test_optax_has_another_nadamw():
  gradients = list(_gradients())
  schedule = optax.warmup_cosine_decay_schedule(0, POINT['learning_rate'], WARMUP, STEPS)
  tx = optax.nadamw(
    schedule, b1=POINT['beta1'], b2=POINT['beta2'], weight_decay=POINT['weight_decay']
  )
  weights = {name: jnp.asarray(x, jnp.float32) for name, x in _weights().items()}
  state = tx.init(weights)
  for g in gradients:
    updates, state = tx.update(
      {k: jnp.asarray(x, jnp.float32) for k, x in g.items()}, state, weights
    )
    weights = optax.apply_updates(weights, updates)
  expected = list(_expected(gradients, **POINT))[-1]
  assert np.abs(weights['matrix'] - expected['matrix']).max() > 1e-5


def test_the_states_spec_has_the_states_tree():
  transformation = _learner().optimizer.get_grad_transformation(_hparams())
  state = transformation.init({n: jnp.zeros(shape) for n, shape in SHAPES.items()})
  spec = transformation.init_partition_spec(_hparams()).inner_state
  paths = [jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (state, spec)]
  own, declared = ({jax.tree_util.keystr(path): x for path, x in leaves} for leaves in paths)
  assert own.keys() == declared.keys()
  assert all(list(own[path].shape) == list(declared[path].shape) for path in own)


def test_a_warm_up_as_long_as_the_training_is_refused():
  with pytest.raises(UserError, match='WARMUP_STEPS'):
    _learner(warmup_steps=STEPS)
