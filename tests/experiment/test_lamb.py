"""LAMB is optax.lamb, of a loop's stacked variables layer by layer."""

import functools

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

STEPS, WARMUP, CLIP = 12, 3, 9.0
POINT = {'learning_rate': 1e-2, 'beta1': 0.9, 'beta2': 0.99, 'epsilon': 1e-6, 'weight_decay': 0.1}
SHAPES = {'matrix': (8, 5), 'bias': (7,), 'scale': (3,), 'stacked': (4, 6)}
ZERO_AT_FIRST = 'bias'


def _learner(**changed):
  task_p = configs.C4StandardTiny().task()
  fields = POINT | {'clip_gradient_norm': 0.0, 'warmup_steps': WARMUP, 'num_train_steps': STEPS}
  optimizers.set_lamb(task_p, optimizers.Hyperparameters(**(fields | changed)))
  return base_hyperparams.instantiate(task_p.train.learner.set(name='learner'))


def _hparams(stacked=True):
  """Returns the weights' descriptions; Praxis would not decay the scale."""
  skip = [base_layer.WeightHParamsCollection.SKIP_LP_REGULARIZATION]
  hparams = {
    name: base_layer.WeightHParams(shape=list(shape), collections=skip if name == 'scale' else None)
    for name, shape in SHAPES.items()
  }
  if stacked:  # Four layers of a loop, as PAX describes them.
    hparams['stacked'].shape, hparams['stacked'].repeat_prefix = [6], [4]
  return hparams


def _weights():
  rng = np.random.default_rng(0)
  sizes = np.array([[0.1], [1], [10], [100]])  # The layers' norms differ.
  weights = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
  weights['stacked'] *= sizes
  weights[ZERO_AT_FIRST] *= 0
  return {name: jnp.asarray(x, jnp.float32) for name, x in weights.items()}


def _gradients(scale=1.0):
  rng = np.random.default_rng(1)
  for step in range(STEPS):
    spike = 50.0 if step == 5 else 1.0
    gradients = {name: rng.normal(size=shape) * spike * scale for name, shape in SHAPES.items()}
    yield {name: jnp.asarray(g, jnp.float32) for name, g in gradients.items()}


def _ours(learner, gradients, hparams):
  weights = _weights()
  state = learner.get_grad_tx(hparams).init(weights)

  @jax.jit
  def step(g, state, weights):
    with base_layer.JaxContext.new_context():
      updates, state = learner.update_states(g, state, weights, hparams)
      return learner.apply_gradient(weights, updates, hparams), state

  for g in gradients:
    weights, state = step(g, state, weights)
    yield weights


def _optax(gradients, clip, stacked):
  """Yields the weights by optax.lamb, which is given each layer as a variable of its own."""

  def split(tree):
    rest = {name: x for name, x in tree.items() if name != 'stacked' or not stacked}
    return rest | ({f'stacked{i}': tree['stacked'][i] for i in range(4)} if stacked else {})

  schedule = optax.warmup_cosine_decay_schedule(0, POINT['learning_rate'], WARMUP, STEPS)
  weights = split(_weights())
  tx = optax.lamb(
    schedule,
    b1=POINT['beta1'],
    b2=POINT['beta2'],
    eps=POINT['epsilon'],
    weight_decay=POINT['weight_decay'],
    mask={name: name != 'scale' for name in weights},
  )
  tx = optax.chain(optax.clip_by_global_norm(clip), tx)
  state, update = tx.init(weights), jax.jit(tx.update)
  for g in gradients:
    updates, state = update(split(g), state, weights)
    weights = optax.apply_updates(weights, updates)
    layers = [weights[f'stacked{i}'] for i in range(4)] if stacked else weights['stacked']
    yield {name: weights[name] for name in SHAPES if name in weights} | {
      'stacked': jnp.stack(layers)
    }


@functools.cache
def _of_optax(stacked=True):
  return list(_optax(_gradients(), CLIP, stacked))


def test_trajectory_is_that_of_optax():
  """Gradients are clipped at some steps, and at others not."""
  ours = _ours(_learner(clip_gradient_norm=CLIP), _gradients(), _hparams())
  norms = [float(optax.global_norm(g)) for g in _gradients()]
  assert min(norms) < CLIP < max(norms)
  for step, (found, expected) in enumerate(zip(ours, _of_optax(), strict=True)):
    for name in SHAPES:
      np.testing.assert_allclose(
        found[name], expected[name], rtol=1e-6, atol=1e-7, err_msg=f'{step} {name}'
      )
  for name, start in _weights().items():
    assert np.abs(found[name] - start).max() > 1e-3, name


def test_layers_of_their_own_make_a_difference():
  apart, together = (_of_optax(stacked)[-1]['stacked'] for stacked in (True, False))
  assert np.abs(apart - together).max() > 0.1


def test_what_is_marked_does_not_decay():
  """Without gradients the others shrink, all layers alike."""
  hparams = _hparams()
  hparams['matrix'].collections = [
    UNDECAYED,
    base_layer.WeightHParamsCollection.SKIP_LP_REGULARIZATION,
  ]
  zero = [{name: jnp.zeros(shape) for name, shape in SHAPES.items()}] * STEPS
  last = list(_ours(_learner(), zero, hparams))[-1]
  start = _weights()
  for name in ('matrix', 'scale'):
    np.testing.assert_array_equal(last[name], start[name])
  assert np.all(last['stacked'] / start['stacked'] < 0.97)


def test_the_states_spec_has_the_states_tree():
  transformation = _learner().optimizer.get_grad_transformation(_hparams(stacked=False))
  state = transformation.init({n: jnp.zeros(shape) for n, shape in SHAPES.items()})
  spec = transformation.init_partition_spec(_hparams(stacked=False)).inner_state
  paths = [jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (state, spec)]
  own, declared = ({jax.tree_util.keystr(path): x for path, x in leaves} for leaves in paths)
  assert own.keys() == declared.keys()
  assert all(list(own[path].shape) == list(declared[path].shape) for path in own)


def test_an_experiment_has_it_by_name():
  experiment = configs.C4LaserTiny()
  experiment.OPTIMIZER = 'lamb'
  learner = experiment.task().train.learner
  assert learner.optimizer.cls is optimizers.Lamb
  assert learner.optimizer.trusted_weight_decay == experiment.WEIGHT_DECAY
  assert experiment.describe()['optimiser'].startswith('LAMB, betas 0.9')
  experiment.OPTIMIZER = 'adam'
  with pytest.raises(UserError, match="OPTIMIZER must be 'adamw' or 'lamb'; got 'adam'"):
    experiment.task()
