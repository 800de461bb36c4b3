"""The scale of E: rounded on bfloat16's grid, its errors cancel in the mean."""

import jax.numpy as jnp
import numpy as np
import pytest

from laser_pax.ops import columns

KEYS = 8192


def grid(std):
  """Returns bfloat16's positive numbers near std, and their share of a normal distribution."""
  exponents = np.arange(np.floor(np.log2(std)) - 9, np.floor(np.log2(std)) + 4)
  values = ((1 + np.arange(128) / 128) * 2.0 ** exponents[:, None]).ravel()
  steps = 2.0 ** np.floor(np.log2(values)) / 128
  shares = steps * np.exp(-((values / std) ** 2) / 2)
  return values, shares / shares.sum() / 2


def mean_error(std, scale):
  """Returns the mean error of scaled E, over the size of the mean of E of KEYS keys."""
  values, shares = grid(std)
  values, shares = np.concatenate([values, -values]), np.tile(shares, 2)
  e = np.expm1(values)
  rounded = np.asarray(jnp.asarray(scale * e, jnp.bfloat16), np.float64) / scale
  mean = (shares * e).sum()
  spread = (shares * (e - mean) ** 2).sum()
  return abs((shares * (rounded - e)).sum()) / np.sqrt(mean**2 + spread / KEYS)


@pytest.mark.parametrize('std', np.geomspace(2.0**-14, 0.7, 40))
def test_errors_of_scaled_exponentials_cancel(std):
  """Standard attention's own error, which does not grow with the number of keys, is 0.002."""
  assert mean_error(std, columns.SCALE) < 0.0011


def test_without_the_scale_they_do_not():
  assert mean_error(0.002, 1.0) > 0.08


def test_the_scale_of_a_column():
  low, high = jnp.array([-1e-5, 0.0, 1.0, -1.0]), jnp.array([1e-5, 1e-4, 1.0, 0.0])
  c = columns.center(low, high)
  found = columns.scale(low, high, c)
  np.testing.assert_allclose(found, [1, columns.SCALE, 1, columns.SCALE], rtol=1e-7)


@pytest.mark.parametrize('distance', np.geomspace(1e-3, 100, 40))
@pytest.mark.parametrize('zero_at', [0.0, 0.5, 1.0])
def test_near_the_lowest_value(distance, zero_at):
  """The grid is not coarser there, and rounding M moves O by no more than R + 1/2 units."""
  low, high = -distance * zero_at, distance * (1 - zero_at)
  lowest = np.expm1(low - float(columns.center(jnp.float32(low), jnp.float32(high))))
  assert columns.SCALE * -lowest < 1
  assert -lowest / (1 + lowest) / 2 <= (min(distance, columns.FAR) + 0.5) * (1 + 1e-5)
