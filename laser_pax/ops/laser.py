r"""LASER attention, the whole of it.

Standard attention mixes values; LASER mixes their exponentials [paper]:

    standard   O = softmax(Q K^T) V
    LASER      O = log( softmax(Q K^T) exp(V) )

so that the gradient which reaches a logit is no longer scaled down by a small probability. exp and
log are elementwise. To keep exp in range, each column of V is shifted by its greatest entry (the
paper's Algorithm 1, the log-weighted-sum-exp trick):

    m_h    = max_s V_sh                          gradient stopped
    E_sh   = exp(V_sh - m_h)                     at most 1
    O_th   = log( (softmax(Q K^T) E)_th ) + m_h

Two forms of the same thing follow: `laser` wraps any attention function, `log_weighted_sum_exp`
takes probabilities that are known already. How the exponential, the shift and the logarithm are
computed stands in `_exponentials` and `_logarithms`, and nowhere else.

Shapes: B batch, T query length, S key length, N heads, K key/value heads, H head size.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def _exponentials(
  values: Array, axes: tuple[int, ...], floor: float = -jnp.inf
) -> tuple[Array, Array]:
  """Returns exp(values - m) in values' dtype and m, float32, kept as axes of size 1.

  m is the greatest value over `axes` and not below `floor`. The subtraction and the exponential are
  float32: in bfloat16 a value near the shift would lose every digit that matters.
  """
  values_f32 = values.astype(jnp.float32)
  shift = jax.lax.stop_gradient(jnp.maximum(values_f32.max(axes, keepdims=True), floor))
  return jnp.exp(values_f32 - shift).astype(values.dtype), shift


def _logarithms(mixed: Array, shift: Array, dtype: jnp.dtype) -> Array:
  """Returns log(mixed) + shift, computed in float32, in `dtype`."""
  return (jnp.log(mixed.astype(jnp.float32)) + shift).astype(dtype)


def _parse(equation: str) -> tuple[str, str, str]:
  """Splits 'weights,values->output' and checks that it is a mixture over values."""
  try:
    operands, output = equation.replace(' ', '').split('->')
    weights, values = operands.split(',')
  except ValueError:
    raise ValueError(
      f"equation must read 'weights,values->output', e.g. 'BNTS,BSNH->BTNH'; got {equation!r}"
    ) from None
  mixed = set(values) - set(output)
  if not mixed or not mixed <= set(weights) or not set(weights) - mixed <= set(output):
    raise ValueError(
      f'{equation!r} is no weighted sum over values: the output must lack at least one of their '
      'axes, which the weights have too'
    )
  return weights, values, output


def _align(x: Array, axes: str, output_axes: str) -> Array:
  """Transposes x with named axes to the order of output_axes; an axis it lacks has size 1."""
  x = x.transpose([axes.index(a) for a in output_axes if a in axes])
  return jnp.expand_dims(x, [i for i, a in enumerate(output_axes) if a not in axes])


def log_weighted_sum_exp(
  equation: str, weights: Array, values: Array, zero_weight: Array | None = None
) -> Array:
  r"""LASER's replacement of the einsum that mixes values by attention probabilities.

      O_th = log( sum_s w_ts exp(V_sh)  [+ w0_t exp(0)] )

  Args:
    equation: An einsum over named axes, weights first: 'BNTS,BSNH->BTNH', 'BKGTS,BSKH->BTKGH', or
      any other layout.
    weights: Non-negative weights, float; attention probabilities sum to 1 over S.
    values: Values, float.
    zero_weight: The weight w0 of one more key whose value is zero, for weights that sum to less
      than 1: shaped as weights without S. See docs/laser.md, "Probabilities that do not sum to 1".

  Returns:
    O in the output's layout, in values' dtype. Accumulated, and the logarithm taken, in float32.
    Rows whose weights are all 0 give -inf.

  Raises:
    ValueError: the equation is no weighted sum over values.

  Source: the paper's Algorithm 1 [paper]; zero_weight is ours.
  """
  weight_axes, value_axes, output_axes = _parse(equation)
  mixed_axes = tuple(i for i, a in enumerate(value_axes) if a not in output_axes)
  exponentials, shift = _exponentials(values, mixed_axes, -jnp.inf if zero_weight is None else 0.0)
  mixed = jnp.einsum(equation, weights, exponentials, preferred_element_type=jnp.float32)
  kept_axes = ''.join(a for a in value_axes if a in output_axes)
  shift = _align(shift.squeeze(mixed_axes), kept_axes, output_axes)
  if zero_weight is not None:
    row_axes = ''.join(a for a in weight_axes if a in output_axes)
    zero_weight = _align(zero_weight.astype(jnp.float32), row_axes, output_axes)
    mixed = mixed + zero_weight * jnp.exp(-shift)
  return _logarithms(mixed, shift, values.dtype)


def laser(
  attention_fn: Callable[..., Array], *, value_axes: str = 'BSNH', output_axes: str = 'BTNH'
) -> Callable[..., Array]:
  r"""Makes LASER attention of any attention function, which serves unchanged in the middle.

      laser(f)(Q, K, V, ...) = log( f(Q, K, exp(V - m), ...) ) + m,   m_h = max_s V_sh

  Exact for every f that mixes values linearly with weights that sum to 1: FlashAttention,
  jax.nn.dot_product_attention, ring attention, a function of your own. With dropout inside f, or a
  sink, the weights do not sum to 1: use the layers, which give those a meaning.

  Args:
    attention_fn: A function of (query, key, value, *args, **kwargs) that returns the attention
      output alone.
    value_axes: The names of value's axes. The one that output_axes lacks is the sequence, over
      which m is taken.
    output_axes: The names of the output's axes. If an axis of the output is longer than value's
      (grouped queries), each entry of value serves that many consecutive entries of the output, as
      everywhere.

  Returns:
    A function of the same arguments. Its output has value's dtype; the shift, exp and log are
    float32.

  Raises:
    ValueError: the layouts do not name a sequence axis, or do not fit the arrays.

  Example:
    attention = laser(functools.partial(jax.nn.dot_product_attention, is_causal=True))
  """
  sequence = tuple(i for i, a in enumerate(value_axes) if a not in output_axes)
  if len(sequence) != 1:
    raise ValueError(
      'value_axes must have exactly one axis, the sequence, that output_axes lacks; got '
      f'{value_axes!r} and {output_axes!r}'
    )

  @functools.wraps(attention_fn)
  def laser_attention(query: Array, key: Array, value: Array, *args, **kwargs) -> Array:
    if value.ndim != len(value_axes):
      raise ValueError(f'value has shape {value.shape}, but its axes were named {value_axes!r}')
    exponentials, shift = _exponentials(value, sequence)
    mixed = attention_fn(query, key, exponentials, *args, **kwargs)
    if mixed.ndim != len(output_axes):
      raise ValueError(
        f'the output has shape {mixed.shape}, but its axes were named {output_axes!r}'
      )
    kept_axes = ''.join(a for a in value_axes if a in output_axes)
    shift = _align(shift.squeeze(sequence), kept_axes, output_axes)
    for axis, (size, wanted) in enumerate(zip(shift.shape, mixed.shape, strict=True)):
      if size not in (1, wanted):
        if wanted % size:
          raise ValueError(
            f'{output_axes[axis]}: {wanted} of the output is no multiple of {size} of value'
          )
        shift = jnp.repeat(shift, wanted // size, axis)
    return _logarithms(mixed, shift, value.dtype)

  return laser_attention
