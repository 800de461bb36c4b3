"""How far the values of a column may lie apart, and the point that they are measured from."""

import jax
import jax.numpy as jnp

# exp(WIDTH)^2 is just below float32's and bfloat16's greatest number: half of the range for E, half
# for what the gradient is divided by.
WIDTH = 44.0
# c is at most BELOW above the lowest value, so that 1 + M is at least exp(-BELOW) = 0.14.
BELOW = 2.0


def center(low: jax.Array, high: jax.Array) -> jax.Array:
  """Returns c: the point of [low, high], and not above low + BELOW, that is nearest zero."""
  return jnp.minimum(jnp.clip(0.0, low, high), low + BELOW)
