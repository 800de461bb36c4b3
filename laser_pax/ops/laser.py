r"""LASER attention: standard attention mixes values, LASER mixes their exponentials [paper].

    standard   O = softmax(Q K^T) V              O_th = sum_s p_ts V_sh
    LASER      O = log( softmax(Q K^T) exp(V) )  O_th = log( sum_s p_ts exp(V_sh) )

exp and log are elementwise; p_ts is the probability with which query t attends to key s. The
gradient that reaches a logit is then no longer scaled down by a small probability.

Two functions here compute it, and by_heads.py has a third for fused layers. `laser` wraps any
attention function. `log_weighted_sum_exp` takes probabilities that are known already. Both lead by
beta from standard attention, 0, to LASER, 1, and beyond: beta.py. Each has these numerics:

'exact'  accurate for any finite V, in bfloat16 too [ours]: exact.py. For any c_h and k_h

             O_th = c_h + log1p( sum_s p_ts k_h expm1(V_sh - c_h) / k_h )

'paper'  the paper's Algorithm 1, the log-weighted-sum-exp trick, to the letter [paper]:

             m_h  = max_s V_sh                     gradient stopped
             O_th = log( sum_s p_ts exp(V_sh - m_h) ) + m_h

         In bfloat16 it loses small values: the error exceeds a tenth at a standard deviation of
         0.01. A row whose visible values all lie more than 87 below m_h gives log(0).
         'unshifted' is this with m_h = 0, for an ablation: exp is infinite for V above 88.7.

Shapes: B batch, T query length, S key length, N heads, K key/value heads, H head size.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from laser_pax.ops import devices, exact, mixtures
from laser_pax.ops.beta import Beta

Array = jax.Array
Numerics = Literal['exact', 'paper', 'unshifted']


def log_weighted_sum_exp(
  equation: str,
  weights: Array,
  values: Array,
  zero_weight: Array | None = None,
  numerics: Numerics = 'exact',
  beta: Beta = None,
) -> Array:
  r"""LASER's replacement of the einsum that mixes values by attention probabilities.

      O_th = log( sum_s w_ts exp(beta_h V_sh)  [+ w0_t exp(0)] ) / beta_h,   beta = 1 for LASER

  Args:
    equation: An einsum over named axes, weights first: 'BNTS,BSNH->BTNH' or any other layout.
    weights: Non-negative weights, float, that sum to 1 with w0: attention probabilities.
    values: Values, float, finite.
    zero_weight: The weight w0 of one more key whose value is zero, for weights that sum to less
      than 1: shaped as weights without S. See docs/laser.md, "Probabilities that do not sum to 1".
    numerics: See this file's head.
    beta: A finite number, or an array that broadcasts to values, of size 1 along S. None: 1.

  Returns:
    O in the output's layout, in values' dtype. exp, log and the sums of products are float32.

  Raises:
    ValueError: the equation is no weighted sum over values; or numerics is not known; or beta does
      not fit, or comes with numerics other than 'exact'.

  Source: the paper's Algorithm 1 [paper]; 'exact' and zero_weight are ours; beta: beta.py.
  """
  axes = mixtures.parse(equation)

  def mix(weights: Array, values: Array, zero_weight: Array | None, beta: Beta) -> Array:
    if zero_weight is not None:
      weights, values = mixtures.append_zero_key(axes, weights, values, zero_weight)
    return _log_mix_exp(mixtures.EinsumMixture(weights=weights, axes=axes), values, numerics, beta)

  like_einsum = lambda weights, values, *_: jnp.einsum(equation, weights, values)  # noqa: E731
  return devices.with_auto_axes(mix, like_einsum)(weights, values, zero_weight, beta)


def laser(
  attention_fn: Callable[..., Array],
  *,
  value_axes: str = 'BSNH',
  output_axes: str = 'BTNH',
  numerics: Numerics = 'exact',
  beta: Beta = None,
) -> Callable[..., Array]:
  r"""Makes LASER attention of any attention function, which serves unchanged in the middle.

      laser(f)(Q, K, V, ...) = c + log1p( f(Q, K, k expm1(V - c), ...) / k )

  The function f must mix values linearly, with weights that sum to 1. FlashAttention,
  jax.nn.dot_product_attention and ring attention do. With dropout inside f, or a sink, the weights
  do not sum to 1: the layers give those a meaning, this function does not. f runs once. Where a
  column of V reaches more than 44 above its c, f runs once more, and twice for each level.

  In bfloat16, an f that rounds its own output costs accuracy. Over standard attention's, errors are
  then up to 1.5, and gradients' 1.7; with an f that returns float32, 1.3 and 1.5: docs/numerics.md.

  Args:
    attention_fn: A function of (query, key, value, *args, **kwargs) that returns the attention
      output alone.
    value_axes: The names of value's axes. The one that output_axes lacks is the sequence.
    output_axes: The names of the output's axes. An axis of the output may be longer than value's:
      for grouped queries, each entry of value serves as many consecutive entries of the output.
    numerics: See this file's head.
    beta: As `log_weighted_sum_exp` takes it.

  Returns:
    A function of the same arguments. Its output has value's dtype; exp and log are float32. It can
    be differentiated once, in reverse.

  Raises:
    ValueError: the layouts do not name a sequence axis, or do not fit the arrays; or numerics is
      not known; or dropout is asked for by Flax's names; or beta does not fit.

  Example:
    attention = laser(functools.partial(jax.nn.dot_product_attention, is_causal=True))
  """
  layout = mixtures.attention_layout(value_axes, output_axes)

  def attend(beta: Beta, query: Array, key: Array, value: Array, *args, **kwargs) -> Array:
    mixture = mixtures.mixture_of_call(attention_fn, layout, query, key, value, *args, **kwargs)
    return _log_mix_exp(mixture, value, numerics, beta)

  attend = devices.with_auto_axes(attend, lambda _, *args, **kwargs: attention_fn(*args, **kwargs))
  return functools.wraps(attention_fn)(functools.partial(attend, beta))


def _log_mix_exp(mixture: mixtures.Mixture, values: Array, numerics: Numerics, beta: Beta) -> Array:
  """Returns log(P exp(beta values)) / beta, P being the mixture, in the named numerics."""
  if numerics == 'exact':
    return exact.log_mixture_exp(mixture, values, beta)
  if numerics in ('paper', 'unshifted') and beta is None:
    return _algorithm_1(mixture, values, numerics)
  rest = '' if beta is None else " with a beta, which 'exact' alone has"
  raise ValueError(f"numerics must be 'exact', 'paper' or 'unshifted'; got {numerics!r}{rest}")


def _algorithm_1(mixture: mixtures.Mixture, values: Array, numerics: Numerics) -> Array:
  """The paper's Algorithm 1 [paper]: log(P exp(V - m)) + m, with m the greatest of each column."""
  x = values.astype(jnp.float32)
  m = jax.lax.stop_gradient(x.max(mixture.mixed_axes, keepdims=True))
  m = jnp.zeros_like(m) if numerics == 'unshifted' else m
  mixed = mixture.mix(jnp.exp(x - m).astype(values.dtype))
  return (jnp.log(mixed.astype(jnp.float32)) + mixture.align(m)).astype(values.dtype)
