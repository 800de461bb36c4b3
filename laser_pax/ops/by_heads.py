"""Attention whose heads come before rows: [B, N, T, H] in place of [B, T, N, H]."""

import functools
from collections.abc import Callable

import jax

from laser_pax.ops import devices, exact
from laser_pax.ops.beta import Beta
from laser_pax.ops.mixtures import FunctionMixture, Layout

Array = jax.Array


def laser_by_heads(attention_fn: Callable[..., Array]) -> Callable[..., Array]:
  """As `laser`, 'exact', where heads come before rows: levels are taken of one head at a time.

  Wide columns, should they come, then need no more memory than one head of one example takes.

  Args:
    attention_fn: A function of (query, key, value, *integer_arrays), [B, N, T, H] or [B, N, S, H]
      each, that takes any number of examples and heads and closes over no array. The integer arrays
      are [B, ...], or None.

  Returns:
    A function of the same arguments, and of the keyword beta: as `laser` takes it, an array
    [N, 1, H] say. Its output has value's dtype.

  Source: [ours].
  """

  def mix(float_arrays, integer_arrays, value):
    return attention_fn(*float_arrays, value, *integer_arrays)

  def attend(beta, query: Array, key: Array, value: Array, *integer_arrays: Array | None) -> Array:
    mixture = FunctionMixture(
      float_arrays=(query, key),
      integer_arrays=integer_arrays,
      function=mix,
      layout=Layout('BNSH', 'BNTH'),
      batch_axes=2,
    )
    return exact.log_mixture_exp(mixture, value, beta)

  attend = devices.with_auto_axes(attend, lambda beta, *args: attention_fn(*args))

  @functools.wraps(attention_fn)
  def laser_attention(
    query: Array,
    key: Array,
    value: Array,
    *integer_arrays: Array | None,
    beta: Beta = None,
  ) -> Array:
    return attend(beta, query, key, value, *integer_arrays)

  return laser_attention


def heads_swapped(attention_fn: Callable[..., Array]) -> Callable[..., Array]:
  """Makes attention over [B, N, T, H] of one over [B, T, N, H], or the other way round."""

  @functools.wraps(attention_fn)
  def attention(query: Array, key: Array, value: Array, *integer_arrays, **kwargs) -> Array:
    swapped = (x.swapaxes(1, 2) for x in (query, key, value))
    return attention_fn(*swapped, *integer_arrays, **kwargs).swapaxes(1, 2)

  return attention
