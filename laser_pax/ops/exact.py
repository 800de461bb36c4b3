r"""How LASER is computed: exactly, for any finite values, at the cost of one product [ours].

Wanted is O_th = log sum_s p_ts exp(V_sh), where p_t sums to 1. For a column h, any c_h and any k_h,

    E_sh = k_h expm1(V_sh - c_h)      M_th = sum_s p_ts E_sh      O_th = c_h + log1p(M_th / k_h)

A column is narrow if it reaches at most WIDTH above c_h. There that is accurate in any precision:

- E is as small as V - c, so that rounding E costs what rounding V costs.
- k_h is a scale by which E is rounded up as often as down: columns.py says why.
- c_h is near the lowest value. So M cannot come near -1, and nothing overflows.
- Of the points that are near enough, c_h is the nearest to zero. So small outputs, which bear the
  least error, are sums of small E.

The gradient is written down: one derived by jax would round worse. With g_th the cotangent of O_th
and G_th = g_th exp(c_h - O_th) / k_h = g_th / (k_h + M_th),

    dL/dp_ts = sum_h G_th E_sh + sum_h (k_h G_th - g_th)     dL/dV_sh = (k_h + E_sh) (P^T G)_sh

The second term of dL/dp is the same for all keys of a row, and the softmax's own gradient takes it
out again. With it dL/dp is small where it should be, and survives bfloat16.

Entries with a wide column (Mixture.batch_axes says what an entry is) take another way: levels.py.
A key whose probability is 0 in float32 counts for nothing, however great its value.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from laser_pax.ops import columns, levels
from laser_pax.ops.mixtures import Mixture

Array = jax.Array
F32 = jnp.float32


class Residuals(NamedTuple):
  """What the backward pass reads.

  An entry is one head of one example, or all of them (`Mixture.batch_axes`). One array serves
  narrow and wide entries alike. Memory that the loop over wide entries reads stays allocated until
  the loop has been passed, even if it runs zero times. Separate arrays would always cost memory.
  docs/numerics.md, "Designs for wide columns", has the figures.

  Attributes:
    mixture: P.
    is_narrow: Booleans over the batch axes.
    scale: k, of size 1 along the mixed axes, float32.
    e_or_v: E of narrow entries, V of wide ones; values' shape and dtype.
    m_or_o: M of narrow entries, O of wide ones; the shape and dtype of what P mixes.
    mixture_residuals: What `Mixture.gradients` needs beside M. It serves narrow entries alone.
  """

  mixture: Mixture
  is_narrow: Array
  scale: Array
  e_or_v: Array
  m_or_o: Array
  mixture_residuals: Any


@jax.custom_vjp
def log_mixture_exp(mixture: Mixture, values: Array) -> Array:
  """Returns O = log(P exp(V)) in values' dtype; see this file's head.

  Args:
    mixture: P. It can be differentiated by its float arrays.
    values: V, float. A value that is not finite makes the output of its column not finite.
  """
  return _forward(mixture, values)[0]


def _forward(mixture: Mixture, values: Array) -> tuple[Array, Residuals]:
  x = values.astype(F32)
  # The extremes of values, not of x: the compiler then reads values once for both.
  low, high = (f(values, mixture.mixed_axes, keepdims=True).astype(F32) for f in (jnp.min, jnp.max))
  c = columns.center(low, high)
  is_narrow = jnp.all(high - c <= columns.WIDTH, tuple(range(mixture.batch_axes, x.ndim)))
  k = columns.scale(low, high, c)
  e_or_v = _select(is_narrow, k * jnp.expm1(x - c), x).astype(values.dtype)
  m, mixture_residuals = mixture.mix_with_residuals(e_or_v)
  m_or_o = levels.replace_wide_outputs(is_narrow, mixture, e_or_v, m)
  output = m_or_o.astype(F32)
  output = _select(is_narrow, mixture.align(c) + jnp.log1p(output / mixture.align(k)), output)
  residuals = Residuals(mixture, is_narrow, k, e_or_v, m_or_o, mixture_residuals)
  return output.astype(values.dtype), residuals


def _backward(residuals: Residuals, cotangent: Array) -> tuple[Mixture, Array]:
  mixture, is_narrow, k, e_or_v, m_or_o, mixture_residuals = residuals
  # The compiler would otherwise compute E once more, from V, and keep V for that.
  e_or_v = jax.lax.optimization_barrier(e_or_v)
  g = cotangent.astype(F32)
  aligned_k = mixture.align(k)
  d_mixed = _select(is_narrow, g / (aligned_k + m_or_o.astype(F32)), g)
  # The mixture's own gradients mean nothing in wide entries, and are replaced there.
  gradients = levels.replace_wide_gradients(
    is_narrow,
    mixture,
    e_or_v,
    d_mixed.astype(cotangent.dtype),
    mixture.gradients(mixture_residuals, m_or_o, d_mixed, d_total=aligned_k * d_mixed - g),
  )
  d_mixture, d_e_or_v = gradients[0], gradients[1].astype(F32)
  d_values = _select(is_narrow, d_e_or_v * (k + e_or_v.astype(F32)), d_e_or_v)
  return d_mixture, d_values.astype(e_or_v.dtype)


log_mixture_exp.defvjp(_forward, _backward)


def _select(is_narrow: Array, narrow: Array, wide: Array) -> Array:
  """Takes narrow entries from the one array and wide ones from the other."""
  is_narrow = is_narrow.reshape(is_narrow.shape + (1,) * (narrow.ndim - is_narrow.ndim))
  return jnp.where(is_narrow, narrow, wide)
