r"""How LASER is computed: exactly, for any finite values, at the cost of one product [ours].

Wanted is O_th = log( sum_s p_ts exp(b V_sh) ) / b, where p_t sums to 1. LASER's b, beta, is 1;
beta.py has the family. For a column h, any c_h and any k_h

    E_sh = (k_h / b) expm1(b (V_sh - c_h))    M_th = sum_s p_ts E_sh
    O_th = c_h + log1p(b M_th / k_h) / b

A column is narrow if b V reaches at most WIDTH above b c_h. There that is accurate in any
precision:

- E is as small as V - c, so that rounding E costs what rounding V costs.
- k_h is a scale by which E is rounded up as often as down: columns.py says why.
- c_h is near the lowest value. So b M / k cannot come near -1, and nothing overflows.
- Of the points that are near enough, c_h is the nearest to zero. So small outputs, which bear the
  least error, are sums of small E.

The gradient is written down: one derived by jax would round worse. With g_th the cotangent of O_th
and G_th = g_th exp(b (c_h - O_th)) / k_h = g_th / (k_h + b M_th),

    dL/dp_ts = sum_h G_th E_sh + sum_h (k_h G_th - g_th) / b    dL/dV_sh = (k_h + b E_sh) (P^T G)_sh

The second term of dL/dp is the same for all keys of a row, and the softmax's own gradient takes it
out again. With it dL/dp is small where it should be, and survives bfloat16. Where beta is given, it
is computed as -G_th M_th, which equals it: near b = 0, k G - g is a difference of equals. With D of
beta.py, and without a product of its own,

    dL/db_h = k_h ( sum_s D(E_sh / k_h) (P^T G)_sh - sum_t G_th D(M_th / k_h) )

Entries with a wide column (Mixture.batch_axes says what an entry is) take another way: levels.py.
A key whose probability is 0 in float32 counts for nothing, however great its value.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from laser_pax.ops import columns, levels
from laser_pax.ops.beta import GREATEST, LEAST, Beta, excess, of_columns, over, times
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
    beta: b, shaped as scale; None for LASER.
    e_or_v: E of narrow entries, V of wide ones; values' shape and dtype.
    m_or_o: M of narrow entries, O of wide ones; the shape and dtype of what P mixes.
    mixture_residuals: What `Mixture.gradients` needs beside M. It serves narrow entries alone.
  """

  mixture: Mixture
  is_narrow: Array
  scale: Array
  beta: Array | None
  e_or_v: Array
  m_or_o: Array
  mixture_residuals: Any


def log_mixture_exp(mixture: Mixture, values: Array, beta: Beta = None) -> Array:
  """Returns O = log(P exp(b V)) / b in values' dtype; see this file's head.

  Args:
    mixture: P. It can be differentiated by its float arrays.
    values: V, float. A value that is not finite makes the output of its column not finite.
    beta: b, as `of_columns` takes it. None, or 1: LASER.

  Raises:
    ValueError: beta is not finite, or its shape does not fit.
  """
  b = of_columns(beta, values.shape, mixture.mixed_axes)
  if b is None:
    return _log_mixture_exp(mixture, values, None)
  sign = jnp.where(b < 0, -1.0, 1.0).astype(values.dtype)
  output = _log_mixture_exp(mixture, sign * values, sign.astype(F32) * b)
  return mixture.align(sign) * output


@jax.custom_vjp
def _log_mixture_exp(mixture: Mixture, values: Array, beta: Array | None) -> Array:
  """Computes `log_mixture_exp`, where beta is none or not negative."""
  return _forward(mixture, values, beta)[0]


def _forward(mixture: Mixture, values: Array, beta: Array | None) -> tuple[Array, Residuals]:
  b = None if beta is None else jnp.clip(beta, LEAST, GREATEST)
  x = values.astype(F32)
  # The extremes of values, not of x: the compiler then reads values once for both.
  low, high = (f(values, mixture.mixed_axes, keepdims=True).astype(F32) for f in (jnp.min, jnp.max))
  c = columns.center(low, high, b)
  is_narrow = jnp.all(high - c <= over(columns.WIDTH, b), tuple(range(mixture.batch_axes, x.ndim)))
  k = columns.scale(low, high, c, b)
  e = over(k, b) * jnp.expm1(times(x - c, b))
  e_or_v = _select(is_narrow, e, x).astype(values.dtype)
  m, mixture_residuals = mixture.mix_with_residuals(e_or_v)
  m_or_o = levels.replace_wide_outputs(is_narrow, mixture, e_or_v, b, m)
  output, aligned_c = m_or_o.astype(F32), mixture.align(c)
  above = over(jnp.log1p(output / mixture.align(over(k, b))), _aligned(mixture, b))
  output = _select(is_narrow, aligned_c + above, output)
  residuals = Residuals(mixture, is_narrow, k, b, e_or_v, m_or_o, mixture_residuals)
  return output.astype(values.dtype), residuals


def _backward(residuals: Residuals, cotangent: Array) -> tuple[Mixture, Array, Array | None]:
  # The compiler would otherwise compute E once more, from V, and keep V for that.
  residuals = residuals._replace(e_or_v=jax.lax.optimization_barrier(residuals.e_or_v))
  mixture, is_narrow, k, b, e_or_v, m_or_o, mixture_residuals = residuals
  g = cotangent.astype(F32)
  aligned_k, m = mixture.align(k), m_or_o.astype(F32)
  d_mixed = _select(is_narrow, g / (aligned_k + times(m, _aligned(mixture, b))), g)
  d_output = d_mixed.astype(cotangent.dtype)
  d_total = aligned_k * d_mixed - g if b is None else -m * d_mixed
  # k G is near g where b is small, and has its grid: rounding G would cost what rounding E does.
  unit = None if b is None else k.max()
  d_mixture, d_e = mixture.gradients(mixture_residuals, m_or_o, d_mixed, d_total, unit)
  gradients = d_mixture, d_e, _beta_gradient(residuals, d_mixed, d_e)
  # These mean nothing in wide entries, and are replaced there.
  d_mixture, d_e_or_v, d_beta = levels.replace_wide_gradients(
    is_narrow, mixture, e_or_v, b, d_output, gradients
  )
  d_e_or_v = d_e_or_v.astype(F32)
  d_values = _select(is_narrow, d_e_or_v * (k + times(e_or_v.astype(F32), b)), d_e_or_v)
  return d_mixture, d_values.astype(e_or_v.dtype), d_beta


_log_mixture_exp.defvjp(_forward, _backward)


def _beta_gradient(residuals: Residuals, d_mixed: Array, d_e: Array) -> Array | None:
  """Returns dL/db where entries are narrow; None for LASER."""
  mixture, k, b = residuals.mixture, residuals.scale, residuals.beta
  if b is None:
    return None
  m = residuals.m_or_o.astype(F32) / mixture.align(k)
  rows = levels.sum_to_columns(mixture, d_mixed * excess(m, mixture.align(b)), b)
  e = residuals.e_or_v.astype(F32) / k
  keys = (d_e.astype(F32) * excess(e, b)).sum(mixture.mixed_axes, keepdims=True)
  return k * (keys - rows)


def _aligned(mixture: Mixture, beta: Array | None) -> Array | None:
  return None if beta is None else mixture.align(beta)


def _select(is_narrow: Array, narrow: Array, wide: Array) -> Array:
  """Takes narrow entries from the one array and wide ones from the other."""
  is_narrow = is_narrow.reshape(is_narrow.shape + (1,) * (narrow.ndim - is_narrow.ndim))
  return jnp.where(is_narrow, narrow, wide)
