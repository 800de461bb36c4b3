"""Products of bfloat16 arrays have exact terms and float32 sums, in each layout that LASER has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from laser_pax.ops import products

SIZES = dict(B=2, N=4, K=2, G=2, T=8, S=8, H=16)


@pytest.mark.parametrize('equation', ['BNTS,BSH->BTNH', 'BNTS,BSNH->BTNH', 'BKGTS,BSKH->BTKGH'])
def test_products_and_gradients_are_those_of_float64(equation):
  left, right, result = equation.replace('->', ',').split(',')
  gradients = (f'{result},{right}->{left}', f'{result},{left}->{right}')
  for form in (equation, *gradients):
    names = form.split('->')[0].split(',')
    keys = jax.random.split(jax.random.key(0), 2)
    operands = [
      jax.random.normal(key, [SIZES[a] for a in axes], jnp.bfloat16)
      for key, axes in zip(keys, names, strict=True)
    ]
    actual = jax.jit(lambda *x, form=form: products.einsum(form, *x))(*operands)
    expected = np.einsum(form, *(np.asarray(x, np.float64) for x in operands))
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
