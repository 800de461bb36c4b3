"""A two-layer model trains alike with Praxis's LASER layer, Flax linen's and Flax nnx's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from praxis import base_layer, pax_fiddle

from laser_pax import laser, layers
from tests.support.cases import LARGE_NEGATIVE, context

B, T, D, N, H, LAYERS, STEPS = 2, 6, 16, 4, 4, 2, 20
PROJECTIONS = ('query', 'key', 'value')
CAUSAL = np.tril(np.ones((1, 1, T, T), bool))


def draw():
  """Weights of both layers as Flax lays them out, inputs and targets."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: (0.2 * rng.standard_normal(shape)).astype(np.float32)  # noqa: E731
  weights = [
    {name: {'kernel': normal(D, N, H), 'bias': normal(N, H)} for name in PROJECTIONS}
    | {'out': {'kernel': normal(N, H, D), 'bias': normal(D)}}
    for _ in range(LAYERS)
  ]
  return weights, 3 * normal(B, T, D), 3 * normal(B, T, D)


def losses(attend, weights, x, targets):
  """Trains a model of residual attentions; attend(weights of a layer, x) is one of them."""

  def loss(weights):
    output = x
    for layer in weights:
      output = output + attend(layer, output)
    return jnp.mean((output - targets) ** 2)

  def step(weights, _):
    value, gradient = jax.value_and_grad(loss)(weights)
    return jax.tree.map(lambda w, g: w - 0.3 * g, weights, gradient), value

  train = lambda weights: jax.lax.scan(step, weights, length=STEPS)[1]  # noqa: E731
  return np.asarray(jax.jit(train)(weights))


def praxis_losses(cls):
  config = pax_fiddle.Config(cls, name='a', input_dim=D, hidden_dim=D, num_heads=N, dim_per_head=H)
  config.internal_enable_per_dim_scale = False  # Flax divides by sqrt(H), as Praxis then does.
  layer = base_layer.instantiate(config)

  def attend(weights, x):
    with context():
      mask = jnp.where(CAUSAL, 0.0, LARGE_NEGATIVE)
      return layer.apply({'params': weights}, x, x, x, mask)[0]

  weights, x, targets = draw()
  as_praxis = [
    {name: {'w': layer[name]['kernel'], 'b': layer[name]['bias']} for name in PROJECTIONS}
    | {'post': {'w': layer['out']['kernel'].transpose(2, 0, 1), 'b': layer['out']['bias']}}
    for layer in weights
  ]
  return losses(attend, as_praxis, x, targets)


def linen_losses(attention_fn):
  module = nn.MultiHeadDotProductAttention(num_heads=N, attention_fn=attention_fn)
  attend = lambda weights, x: module.apply({'params': weights}, x, mask=CAUSAL)  # noqa: E731
  return losses(attend, *draw())


def nnx_losses(attention_fn):
  weights, x, targets = draw()
  states = []
  for layer in weights:
    module = nnx.MultiHeadAttention(
      num_heads=N, in_features=D, decode=False, attention_fn=attention_fn, rngs=nnx.Rngs(0)
    )
    for name, parts in layer.items():
      for part, array in parts.items():
        getattr(getattr(module, name), part).value = jnp.asarray(array)
    graph, state, others = nnx.split(module, nnx.Param, ...)
    states.append(state)
  attend = lambda state, x: nnx.merge(graph, state, others)(x, mask=CAUSAL)  # noqa: E731
  return losses(attend, states, x, targets)


@functools.cache
def expected():
  return praxis_losses(layers.LaserDotProductAttention)


@pytest.mark.parametrize(
  ('train', 'attention_fn'),
  [(linen_losses, nn.dot_product_attention), (nnx_losses, nnx.dot_product_attention)],
)
def test_training_gives_the_losses_of_praxis(train, attention_fn):
  found = train(laser(attention_fn))
  assert expected()[-1] < 0.5 * expected()[0]
  np.testing.assert_allclose(found, expected(), rtol=0, atol=1e-5)
  assert np.abs(train(attention_fn) - expected()).max() > 1e-3  # Standard attention's are others.
