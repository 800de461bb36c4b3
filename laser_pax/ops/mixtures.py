"""The two ways to mix values by probabilities: an einsum, and an attention function.

A mixture P maps values V to P V, linearly, by weights that sum to 1. LASER needs it three times: to
mix, to mix and remember what a backward pass reads, and to run that backward pass.

Axes have names, a letter each. Values are mixed along those of their axes that the output lacks.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from laser_pax.ops.open_vjp import OpenVjp, vjp_without_output
from laser_pax.ops.products import einsum

Array = jax.Array
static = functools.partial(dataclasses.field, metadata={'static': True})


class Mixture(Protocol):
  """A linear map of values whose weights sum to 1; a tree of the arrays that it is made of.

  Attributes:
    batch_axes: How many leading axes of all its arrays are a batch of independent mixtures. An
      entry is one of these: for two axes, one head of one example.
  """

  batch_axes: int

  @property
  def mixed_axes(self) -> tuple[int, ...]:
    """The axes of values that are mixed."""

  def mix(self, values: Array) -> Array:
    """Returns P V in the output's layout."""

  def mix_with_residuals(self, values: Array) -> tuple[Array, Any]:
    """Returns P V, and what `gradients` needs beside it."""

  def gradients(
    self, residuals: Any, mixed: Array, d_mixed: Array, d_total: Array | None
  ) -> tuple['Mixture', Array]:
    """Differentiates P V.

    Args:
      residuals: From `mix_with_residuals`.
      mixed: P V, from there too.
      d_mixed: The cotangent of P V, float32, shaped as it.
      d_total: The cotangent of the total of the weights behind each element of P V, shaped as it.
        A function's weights are not known, so that it has no use for this. None: zero.

    Returns:
      d_mixture: This mixture with gradients in place of float arrays, and None in place of others.
      d_values: The gradient of values.
    """

  def align(self, columns: Array) -> Array:
    """Brings columns, shaped as values with size 1 along mixed axes, to the output's layout."""

  def entry(self, index: tuple[Array, ...]) -> 'Mixture':
    """Returns one entry, as a mixture whose batch axes have size 1."""


class Layout(NamedTuple):
  """The names of the axes of values and of the output."""

  value_axes: str
  output_axes: str

  @property
  def mixed_axes(self) -> tuple[int, ...]:
    """The axes of values that the output lacks."""
    return tuple(i for i, a in enumerate(self.value_axes) if a not in self.output_axes)

  def align(self, columns: Array) -> Array:
    """Brings columns, of size 1 along mixed axes, to the output's layout."""
    kept = ''.join(a for a in self.value_axes if a in self.output_axes)
    return _align(columns.squeeze(self.mixed_axes), kept, self.output_axes)


def _align(x: Array, axes: str, output_axes: str) -> Array:
  """Transposes x with named axes to the order of output_axes; an axis it lacks has size 1."""
  x = x.transpose([axes.index(a) for a in output_axes if a in axes])
  return jnp.expand_dims(x, [i for i, a in enumerate(output_axes) if a not in axes])


# Mixing by an einsum, whose weights are known.


class EinsumAxes(NamedTuple):
  """The names of the axes of an einsum 'weights,values->output'."""

  weights: str
  values: str
  output: str

  @property
  def layout(self) -> Layout:
    """Those of values and output."""
    return Layout(self.values, self.output)


def parse(equation: str) -> EinsumAxes:
  """Returns the axes of 'weights,values->output'.

  Raises:
    ValueError: it is no weighted sum over values.
  """
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
  return EinsumAxes(weights, values, output)


def append_zero_key(
  axes: EinsumAxes, weights: Array, values: Array, zero_weight: Array
) -> tuple[Array, Array]:
  """Appends a key of value zero, with weights shaped as weights without keys; copies both."""
  (key,) = set(axes.values) - set(axes.output)
  zero_weight = _align(
    zero_weight.astype(weights.dtype), axes.weights.replace(key, ''), axes.weights
  )
  weights = jnp.concatenate([weights, zero_weight], axes.weights.index(key))
  key_axis = axes.values.index(key)
  zero_value = jnp.zeros_like(jax.lax.slice_in_dim(values, 0, 1, axis=key_axis))
  return weights, jnp.concatenate([values, zero_value], key_axis)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class EinsumMixture:
  """Mixes values by an einsum with weights. Products accumulate in float32.

  Attributes:
    weights: Non-negative, float; they sum to 1 over the mixed axes.
    axes: The names of the axes.
  """

  weights: Array
  axes: EinsumAxes = static()
  batch_axes = 0

  @property
  def mixed_axes(self) -> tuple[int, ...]:
    return self.axes.layout.mixed_axes

  def mix(self, values: Array) -> Array:
    return _weighted_sum(self.axes, self.weights, values)

  def mix_with_residuals(self, values: Array) -> tuple[Array, Array]:
    return _weighted_sum(self.axes, self.weights, values), values

  def gradients(
    self, residuals: Array, mixed: Array, d_mixed: Array, d_total: Array | None
  ) -> tuple['EinsumMixture', Array]:
    d_weights, d_values = _weighted_sum_gradients(self.axes, self.weights, residuals, d_mixed)
    if d_total is not None:
      rows = ''.join(a for a in self.axes.output if a in self.axes.weights)
      columns = tuple(i for i, a in enumerate(self.axes.output) if a not in rows)
      d_weights += _align(d_total.sum(columns), rows, self.axes.weights)
    d_weights = d_weights.astype(self.weights.dtype)
    return dataclasses.replace(self, weights=d_weights), d_values

  def align(self, columns: Array) -> Array:
    return self.axes.layout.align(columns)

  def entry(self, index: tuple[Array, ...]) -> 'EinsumMixture':
    return self


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_sum(axes: EinsumAxes, weights: Array, values: Array) -> Array:
  """The einsum of the axes, float32, whose gradients take the operands' precision."""
  return einsum(f'{axes.weights},{axes.values}->{axes.output}', weights, values)


def _weighted_sum_gradients(
  axes: EinsumAxes, weights: Array, values: Array, d_output: Array
) -> tuple[Array, Array]:
  """Returns the gradients of weights and values, float32."""
  d_output = d_output.astype(values.dtype)
  d_weights = einsum(f'{axes.output},{axes.values}->{axes.weights}', d_output, values)
  d_values = einsum(f'{axes.output},{axes.weights}->{axes.values}', d_output, weights)
  return d_weights, d_values


def _weighted_sum_forward(axes: EinsumAxes, weights: Array, values: Array):
  return _weighted_sum(axes, weights, values), (weights, values)


def _weighted_sum_backward(axes: EinsumAxes, operands: tuple[Array, Array], d_output: Array):
  gradients = _weighted_sum_gradients(axes, *operands, d_output)
  return tuple(d.astype(x.dtype) for d, x in zip(gradients, operands, strict=True))


_weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward)


# Mixing by a function, whose weights are its own affair.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FunctionMixture:
  """Mixes values by an attention function.

  Attributes:
    float_arrays: What the function reads beside values and may be differentiated by: query, key.
    integer_arrays: What it reads beside these: segment ids, masks; an array may be None. In an
      entry they have the first batch axis alone.
    function: (float_arrays, integer_arrays, values) -> P V. It closes over no array.
    layout: The names of the axes.
    repeats: For each axis of the output, how many consecutive entries share one of values.
    batch_axes: As in `Mixture`. If not 0, the function takes any number of entries.
  """

  float_arrays: tuple[Array, ...]
  integer_arrays: tuple[Array | None, ...] | None
  function: Callable[..., Array] = static()
  layout: Layout = static()
  repeats: tuple[int, ...] = static(default=())
  batch_axes: int = static(default=0)

  @property
  def mixed_axes(self) -> tuple[int, ...]:
    return self.layout.mixed_axes

  def mix(self, values: Array) -> Array:
    return self.function(self.float_arrays, self.integer_arrays, values)

  def mix_with_residuals(self, values: Array) -> tuple[Array, OpenVjp]:
    def mix(float_arrays, values):
      return self.function(float_arrays, self.integer_arrays, values)

    return vjp_without_output(mix, self.float_arrays, values)

  def gradients(
    self, residuals: OpenVjp, mixed: Array, d_mixed: Array, d_total: Array | None
  ) -> tuple['FunctionMixture', Array]:
    del d_total
    d_float_arrays, d_values = residuals(mixed, d_mixed.astype(mixed.dtype))
    return dataclasses.replace(self, float_arrays=d_float_arrays, integer_arrays=None), d_values

  def align(self, columns: Array) -> Array:
    columns = self.layout.align(columns)
    for axis, times in enumerate(self.repeats):
      columns = columns if times == 1 else jnp.repeat(columns, times, axis)
    return columns

  def entry(self, index: tuple[Array, ...]) -> 'FunctionMixture':
    return dataclasses.replace(
      self,
      float_arrays=jax.tree.map(lambda x: take_entry(x, index), self.float_arrays),
      integer_arrays=jax.tree.map(lambda x: take_entry(x, index[:1]), self.integer_arrays),
    )


def take_entry(x: Array, index: tuple[Array, ...]) -> Array:
  """Returns one entry of x; the leading axes, which the index is of, have size 1."""
  start = (*index, *(0,) * (x.ndim - len(index)))
  return jax.lax.dynamic_slice(x, start, (1,) * len(index) + x.shape[len(index) :])


def attention_layout(value_axes: str, output_axes: str) -> Layout:
  """Returns the layout of an attention function.

  Raises:
    ValueError: value_axes must have one axis, the sequence, that output_axes lacks, and has not.
  """
  layout = Layout(value_axes, output_axes)
  if len(layout.mixed_axes) != 1:
    raise ValueError(
      'value_axes must have exactly one axis, the sequence, that output_axes lacks; got '
      f'{value_axes!r} and {output_axes!r}'
    )
  return layout


def mixture_of_call(
  attention_fn: Callable[..., Array],
  layout: Layout,
  query: Array,
  key: Array,
  value: Array,
  *args: Any,
  **kwargs: Any,
) -> FunctionMixture:
  """Returns attention_fn(query, key, ., *args, **kwargs) as a mixture.

  Raises:
    ValueError: the layout does not fit value or the output; or Flax's arguments ask for dropout.
  """
  if kwargs.get('dropout_rate') and not kwargs.get('deterministic'):
    raise ValueError(
      'LASER needs weights that sum to 1, and dropped ones do not; got dropout_rate='
      f'{kwargs["dropout_rate"]}: set it to 0, and drop entries of the output instead'
    )
  if value.ndim != len(layout.value_axes):
    raise ValueError(
      f'value has shape {value.shape}, but its axes were named {layout.value_axes!r}'
    )
  function, float_arrays, integer_arrays, output = _close_over_nothing(
    attention_fn, query, key, value, *args, **kwargs
  )
  if output.ndim != len(layout.output_axes):
    raise ValueError(
      f'the output has shape {output.shape}, but its axes were named {layout.output_axes!r}'
    )
  return FunctionMixture(
    float_arrays=float_arrays,
    integer_arrays=integer_arrays,
    function=function,
    layout=layout,
    repeats=_repeats(layout, value.shape, output.shape),
  )


def _repeats(layout: Layout, value_shape, output_shape) -> tuple[int, ...]:
  """Returns how many consecutive entries of each axis of the output share one of value."""
  value_sizes = dict(zip(layout.value_axes, value_shape, strict=True))
  repeats = []
  for axis, output_size in zip(layout.output_axes, output_shape, strict=True):
    value_size = value_sizes.get(axis, output_size)
    if output_size % value_size:
      raise ValueError(
        f'{axis}: {output_size} of the output is no multiple of {value_size} of value'
      )
    repeats.append(output_size // value_size)
  return tuple(repeats)


# jax.closure_convert does not serve: it leaves integers and booleans in the closure, and a traced
# one, segment ids say, may not be there when a custom derivative is taken.
def _close_over_nothing(attention_fn: Callable, query, key, value, *args, **kwargs):
  """Turns attention_fn into a function of arrays that closes over none.

  Returns:
    function: (float_arrays, integer_arrays, value) -> the output.
    float_arrays: The float arrays that attention_fn is given besides value, or closes over.
    integer_arrays: Its other arrays: integers and booleans.
    output: Shape and dtype.
  """
  leaves, tree = jax.tree.flatten(((query, key, *args), kwargs))
  is_array = [isinstance(x, jax.Array | np.ndarray) for x in leaves]
  arguments = [x for x, is_one in zip(leaves, is_array, strict=True) if is_one]

  def attend(arguments, value):
    arrays = iter(arguments)
    filled = [next(arrays) if is_one else x for x, is_one in zip(leaves, is_array, strict=True)]
    (query, key, *args), kwargs = jax.tree.unflatten(tree, filled)
    return attention_fn(query, key, value, *args, **kwargs)

  closed, output = jax.make_jaxpr(attend, return_shape=True)(arguments, value)
  arrays = [*closed.consts, *arguments]
  is_float = [jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in arrays]

  def function(float_arrays, integer_arrays, value):
    floats, integers = iter(float_arrays), iter(integer_arrays)
    arrays = [next(floats) if is_one else next(integers) for is_one in is_float]
    consts, arguments = arrays[: len(closed.consts)], arrays[len(closed.consts) :]
    (output,) = jax.core.eval_jaxpr(closed.jaxpr, consts, *arguments, value)
    return output

  float_arrays, integer_arrays = (
    tuple(jnp.asarray(x) for x, is_one in zip(arrays, is_float, strict=True) if is_one is kind)
    for kind in (True, False)
  )
  return function, float_arrays, integer_arrays, output
