"""Projections as one product: what they are by Praxis's einsum, and where they are it."""

import fiddle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fiddle import daglish
from praxis import base_layer, pax_fiddle
from praxis.layers import base_ops

from laser_pax import configs, layers

# Praxis's own, of activations and a weight: linear, combined q, k and v, one of them, output.
PRODUCTS = (
  ('...y,yz->...z', (2, 3, 4), (4, 5)),
  ('...y,yz->...z', (3, 4), (4, 5)),
  ('ABD,KDNH->KABNH', (2, 3, 4), (3, 4, 2, 5)),
  ('ABD,DNH->ABNH', (2, 3, 4), (4, 2, 5)),
  ('ABNH,DNH->ABD', (2, 3, 2, 5), (4, 2, 5)),
)
OTHERS = (
  ('BTNH,BSNH->BNTS', (2, 3, 2, 4), (2, 5, 2, 4)),  # B and N are of both and of the output.
  ('ab,cd->abcd', (2, 3), (4, 5)),  # Nothing is summed.
  ('ab,bc->c', (2, 3), (3, 4)),  # a is summed alone.
)


def einsum(cls, equation, x, w):
  layer = base_layer.instantiate(pax_fiddle.Config(cls, name='einsum'))
  return layer.apply({}, equation, x, w)


@pytest.mark.parametrize(('equation', 'x', 'w'), PRODUCTS + OTHERS)
def test_it_is_the_einsum(equation, x, w):
  rng = np.random.default_rng(0)
  x, w = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in (x, w))

  def with_gradients(cls):
    output, pull = jax.vjp(lambda x, w: einsum(cls, equation, x, w), x, w)
    return output, *pull(jnp.cos(jnp.arange(output.size, dtype=output.dtype)).reshape(output.shape))

  found, wanted = with_gradients(layers.RowsEinsum), with_gradients(base_ops.EinsumOp)
  for a, b in zip(found, wanted, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('equation', 'x', 'w'), PRODUCTS)
def test_every_product_sums_over_one_axis_and_the_base_sums_over_more(equation, x, w):
  def most_summed(cls):
    def loss(x, w):
      return jnp.square(einsum(cls, equation, x, w)).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(jnp.ones(x), jnp.ones(w))
    products = [e for e in jaxpr.eqns if e.primitive.name == 'dot_general']
    return max(len(e.params['dimension_numbers'][0][0]) for e in products)

  assert most_summed(layers.RowsEinsum) == 1
  assert most_summed(base_ops.EinsumOp) > 1 or len(x) == 2


def test_every_projection_of_a_stack_has_it_and_no_product_of_activations_and_no_softmax():
  model = configs.C4LaserTiny().on('cpu').task().model.lm_tpl
  for node, _ in daglish.iterate(model.softmax_tpl):  # Or its loss would not be the lean one.
    assert not isinstance(node, fiddle.Buildable) or fiddle.get_callable(node) is not (
      layers.RowsEinsum
    )
  for node, path in daglish.iterate(model.stacked_transformer_tpl):
    name = path and getattr(path[-1], 'name', None)
    if name == 'einsum_tpl':
      assert fiddle.get_callable(node) is layers.RowsEinsum
    if name in ('qk_einsum_tpl', 'pv_einsum_tpl'):
      assert fiddle.get_callable(node) is base_ops.EinsumOp
