"""The tiny model as a whole: causality by gradients, equal starts of twins, layers in blocks."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from praxis import base_hyperparams, base_layer, py_utils

from laser_pax import configs
from tests.support.programs import compiled

LENGTH = 12


def _batch():
  ids = np.random.default_rng(0).integers(3, 4_096, size=(1, LENGTH + 1)).astype(np.int32)
  one, zero = np.ones((1, LENGTH), np.float32), np.zeros((1, LENGTH), np.float32)
  return py_utils.NestedMap(
    ids=ids[:, :-1],
    labels=ids[:, 1:],
    paddings=zero,
    weights=one,
    segment_ids=one.astype(np.int32),
    segment_pos=np.arange(LENGTH, dtype=np.int32)[None],
  )


@functools.cache
def _initial(name):
  """Returns the initial variables of an experiment's model."""
  model = base_hyperparams.instantiate(getattr(configs, name)().task().model)
  return compiled(model.init)(jax.random.PRNGKey(0), _batch())


def _token_losses(name, experiment):
  """Returns a function that adds delta [T, D] to the embeddings and returns the losses [T]."""
  model, variables = base_hyperparams.instantiate(experiment.task().model), _initial(name)

  def losses(delta):
    def add_delta(call_next, args, kwargs, context):
      out = call_next(*args, **kwargs)
      return out + delta if context.method_name == 'emb_lookup' else out

    with (
      base_layer.JaxContext.new_context(hparams=base_layer.JaxContext.HParams(do_eval=True)),
      nn.intercept_methods(add_delta),
    ):
      predictions, _ = model.apply(
        variables, _batch(), method=model.compute_predictions, mutable=True
      )
    return predictions.per_example_xent[0]

  return losses


@pytest.mark.parametrize('name', ['C4LaserTiny', 'C4StandardTiny'])
def test_a_loss_depends_on_no_later_embedding_and_on_each_earlier_one(name):
  experiment = getattr(configs, name)()
  experiment.SEQ_LEN = LENGTH
  losses = _token_losses(name, experiment)
  zero = jnp.zeros((LENGTH, experiment.MODEL_DIMS))
  gradient = compiled(jax.jacrev(losses))(zero)  # [T, T, D]
  reach = np.abs(np.asarray(gradient)).max(-1)
  for t in range(LENGTH):
    np.testing.assert_array_equal(reach[t, t + 1 :], 0.0)
    assert (reach[t, : t + 1] > 0).all()


def test_twins_start_from_the_same_weights():
  weights = [_initial(name) for name in ('C4LaserTiny', 'C4StandardTiny')]
  jax.tree.map(np.testing.assert_array_equal, *weights)


@pytest.mark.parametrize('name', ['C4LaserTiny', 'C4StandardTiny'])
def test_layers_in_blocks_are_the_same_layers(name):
  """Two blocks of two layers have the loss and gradients of four blocks of one."""

  def make_loss(layers_per_block):
    experiment = getattr(configs, name)()
    experiment.FPROP_DTYPE, experiment.CHECKPOINT_POLICY = jnp.float32, 'save_nothing'
    experiment.NUM_LAYERS, experiment.LAYERS_PER_BLOCK = 4, layers_per_block
    model = base_hyperparams.instantiate(experiment.task().model)

    def loss(variables):
      with base_layer.JaxContext.new_context():
        (metrics, _), _ = model.apply(variables, _batch(), mutable=True)
      return metrics.total_loss[0]

    return compiled(jax.value_and_grad(loss))

  def stack(variables):
    return variables['params']['lm']['transformer']['repeat']['sub']

  def regroup(variables):
    """Returns variables in which layer i of four is layer i % 2 of block i // 2."""
    (single,) = stack(variables).values()
    pairs = {f'x_layers_{k}': jax.tree.map(lambda x, k=k: x[k::2], single) for k in range(2)}
    variables = jax.tree.map(lambda x: x, variables)
    variables['params']['lm']['transformer']['repeat']['sub'] = pairs
    return variables

  variables = {'params': _initial(name)['params']}
  expected_loss, expected_gradients = make_loss(1)(variables)
  loss, gradients = make_loss(2)(regroup(variables))
  assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
  for expected, actual in zip(
    jax.tree.leaves(regroup(expected_gradients)), jax.tree.leaves(gradients), strict=True
  ):
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())
