r"""The point that a column's values are measured from, how far they may lie apart, and their scale.

The scale k is needed where values are small. E = expm1(V - c) is V + V^2/2 + ... there, with c = 0.
V is on bfloat16's grid. Below 2^-8 the square is less than half a step of that grid, so that each E
is rounded back to V: always downwards. The mixture of N keys alike is of size std / sqrt(N), the
loss of size std^2 / 2. With 2,048 keys the error was up to 6.6 times that of standard attention.

The products of SCALE with the 128 mantissas of bfloat16 lie evenly between the points of the grid.
Then k E is rounded up as often as down, and the square is kept in the mean.
"""

import jax
import jax.numpy as jnp

from laser_pax.ops.beta import over, times

# All these limits are of beta V: of V they are 1 / beta times as much.
# exp(WIDTH)^2 is just below float32's and bfloat16's greatest number: half of the range for E, half
# for what the gradient is divided by.
WIDTH = 44.0
# How far a bound of the error of O may rest on the distance of a column's values (see `center`).
FAR = 8.0
# A search of 100,000 numbers between 1 and 2 found it: its errors cancel (test_columns.py).
# k |expm1(low - c)| is below 1: the steps of bfloat16's grid double there.
SCALE = 1.05796
# The square of a value below cannot show: with k = 1, LASER is then standard attention to the bit.
UNSCALED_BELOW = 2.0**-14


def center(low: jax.Array, high: jax.Array, beta: jax.Array | None = None) -> jax.Array:
  """Returns c: the point nearest zero of [low, high] that is at most log(2 (R + 1)) above low.

  R is the distance high - low, or `FAR` if that is less. So 1 + M is at least 1 / (2 (R + 1)). M
  is rounded by half a unit u, which moves O by u/2 |M| / (1 + M): by u (R + 1/2) at most.
  """
  distance = jnp.minimum(times(high - low, beta), FAR)
  return jnp.minimum(jnp.clip(0.0, low, high), low + over(jnp.log(2 * (distance + 1)), beta))


def scale(
  low: jax.Array, high: jax.Array, c: jax.Array, beta: jax.Array | None = None
) -> jax.Array:
  """Returns k: SCALE, or 1 where all of [low, high] lies within UNSCALED_BELOW of c."""
  is_small = jnp.maximum(high - c, c - low) < over(UNSCALED_BELOW, beta)
  return jnp.where(is_small, 1.0, SCALE)
