r"""Lookup of the columns of an embedding matrix, without one-hot words.

O_t = W_(., y_t)                    and     (dW)_(., v) = sum over t with y_t = v of dO_t
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from laser_pax.ops.devices import TokenSharding

Array = jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def lookup(sharding: TokenSharding | None, w: Array, ids: Array) -> Array:
  """Returns the columns of w that ids name.

  The gradient of w is summed by indices, in float32. In bfloat16 the sum for a frequent word would
  stop growing after a few hundred terms.

  Args:
    sharding: How the arrays lie on a mesh. None: all on one device, or as XLA decides.
    w: [D, V], float.
    ids: [...], int32, 0 ... V - 1.

  Returns:
    [..., D], in w's dtype.

  Source: [ours].
  """
  if sharding is None:
    return w.T[ids]

  def local(w, ids):
    w = sharding.gather(w)
    if not sharding.words:
      return w.T[ids]
    ids = ids - lax.axis_index(sharding.words) * w.shape[1]
    is_local = (ids >= 0) & (ids < w.shape[1])
    return lax.psum(jnp.where(is_local[..., None], w.T[ids], 0), sharding.words)

  return sharding.map(local, (sharding.w_spec, sharding.tokens_spec), sharding.inputs_spec)(w, ids)


def _forward(
  sharding: TokenSharding | None, w: Array, ids: Array
) -> tuple[Array, tuple[Array, Array]]:
  return lookup(sharding, w, ids), (w, ids)


def _backward(
  sharding: TokenSharding | None, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, None]:
  w, ids = residuals
  dtype, words = w.dtype, w.shape[1]

  def local(ids, cotangent):
    size = words
    if sharding and sharding.words:
      size = words // sharding.size(sharding.words)
      ids = ids - lax.axis_index(sharding.words) * size
      ids = jnp.where(ids < 0, size, ids)  # A negative index would count from the end.
    d_w = jnp.zeros((size, cotangent.shape[-1]), jnp.float32)
    d_w = d_w.at[ids].add(cotangent.astype(jnp.float32), mode='drop').astype(dtype).T
    return sharding.reduce(d_w) if sharding else d_w

  if sharding:
    local = sharding.map(local, (sharding.tokens_spec, sharding.inputs_spec), sharding.w_spec)
  return local(ids, cotangent), None


lookup.defvjp(_forward, _backward)
