"""Einsums whose products and sums are float32, whatever the operands' dtype."""

import jax
import jax.numpy as jnp

from laser_pax.ops import devices

Array = jax.Array


def einsum(equation: str, *operands: Array) -> Array:
  """`jnp.einsum` with a float32 result.

  On CPUs the operands become float32 first, which changes no product. With jax 0.12 XLA for CPUs
  lacks some products of bfloat16 with a float32 result ("Unsupported element type for DotThunk").

  Args:
    equation: As for `jnp.einsum`.
    *operands: Float arrays.
  """
  if devices.platform() == 'cpu':
    operands = tuple(x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in operands)
  return jnp.einsum(equation, *operands, preferred_element_type=jnp.float32)
