r"""Lookup of columns of an embedding matrix, without one-hot words.

O_t = W_(., y_t)                    and     (dW)_(., v) = sum over t with y_t = v of dO_t
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from laser_pax.ops.spread import Spread

Array = jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def lookup(spread: Spread | None, w: Array, ids: Array) -> Array:
  """Returns the columns of w that ids name.

  The gradient of w is summed in float32, by indices: in bfloat16 the sum of a frequent word would
  stop growing after a few hundred terms.

  Args:
    spread: How the arrays lie on a mesh. None: all on one device, or as XLA decides.
    w: [D, V], float.
    ids: [...], int32, 0 ... V - 1.

  Returns:
    [..., D], in w's dtype.

  Source: [ours].
  """
  if spread is None:
    return w.T[ids]

  def local(w, ids):
    w = spread.gather(w)
    if not spread.words:
      return w.T[ids]
    ids = ids - lax.axis_index(spread.words) * w.shape[1]
    here = (ids >= 0) & (ids < w.shape[1])
    return lax.psum(jnp.where(here[..., None], w.T[ids], 0), spread.words)

  return spread.map(local, (spread.w_spec, spread.tokens_spec), spread.inputs_spec)(w, ids)


def _forward(spread: Spread | None, w: Array, ids: Array) -> tuple[Array, tuple[Array, Array]]:
  return lookup(spread, w, ids), (w, ids)


def _backward(
  spread: Spread | None, residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, None]:
  w, ids = residuals
  dtype, words = w.dtype, w.shape[1]

  def local(ids, gradient):
    size = words
    if spread and spread.words:
      size = words // spread.size(spread.words)
      ids = ids - lax.axis_index(spread.words) * size
      ids = jnp.where(ids < 0, size, ids)  # A negative index would count from the end.
    d_w = jnp.zeros((size, gradient.shape[-1]), jnp.float32)
    d_w = d_w.at[ids].add(gradient.astype(jnp.float32), mode='drop').astype(dtype).T
    return spread.reduce(d_w) if spread else d_w

  if spread:
    local = spread.map(local, (spread.tokens_spec, spread.inputs_spec), spread.w_spec)
  return local(ids, gradient), None


lookup.defvjp(_forward, _backward)
