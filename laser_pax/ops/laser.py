r"""LASER attention, the whole of it.

Standard attention mixes values; LASER mixes their exponentials [paper]:

    standard   O = softmax(Q K^T) V
    LASER      O = log( softmax(Q K^T) exp(V) )

so that the gradient which reaches a logit is no longer scaled down by a small probability. exp and
log are elementwise. Two forms of the same thing follow: `laser` wraps any attention function,
`log_weighted_sum_exp` takes probabilities that are known already. Both can be computed in two ways:

'exact'  accurate for any finite V, in bfloat16 too: laser_pax/ops/exact.py [ours].
'paper'  the paper's Algorithm 1, the log-weighted-sum-exp trick, to the letter [paper]: each column
         of V is shifted by its greatest entry, so that exp stays in range.

             m_h    = max_s V_sh                      gradient stopped
             E_sh   = exp(V_sh - m_h)                 at most 1
             O_th   = log( (softmax(Q K^T) E)_th ) + m_h

         In bfloat16 it loses small values (an error above a tenth at a standard deviation of 0.01),
         and where all that a row sees lies more than 87 below m, it gives log(0).

Shapes: B batch, T query length, S key length, N heads, K key/value heads, H head size.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from laser_pax.ops import exact

Array = jax.Array
Numerics = Literal['exact', 'paper']


def log_mixture_exp(numerics: Numerics, mixture: exact.Mixture, floats, others, values) -> Array:
  """Returns log(mix(exp(values))), computed in the way that is named."""
  if numerics == 'exact':
    return exact.log_mixture_exp(mixture, floats, others, values)
  if numerics != 'paper':
    raise ValueError(f"numerics must be 'exact' or 'paper'; got {numerics!r}")
  x = values.astype(jnp.float32)
  shift = jax.lax.stop_gradient(x.max(mixture.axes, keepdims=True))
  mixed = mixture.mix(floats, others, jnp.exp(x - shift).astype(values.dtype))
  return (jnp.log(mixed.astype(jnp.float32)) + mixture.align(shift)).astype(values.dtype)


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


def _align_columns(mixed_axes, value_axes: str, output_axes: str, x: Array) -> Array:
  """Brings x, of size 1 along the axes that are mixed, to the output's layout."""
  kept = ''.join(a for a in value_axes if a in output_axes)
  return _align(x.squeeze(mixed_axes), kept, output_axes)


def log_weighted_sum_exp(
  equation: str,
  weights: Array,
  values: Array,
  zero_weight: Array | None = None,
  numerics: Numerics = 'exact',
) -> Array:
  r"""LASER's replacement of the einsum that mixes values by attention probabilities.

      O_th = log( sum_s w_ts exp(V_sh)  [+ w0_t exp(0)] )

  Args:
    equation: An einsum over named axes, weights first: 'BNTS,BSNH->BTNH', 'BKGTS,BSKH->BTKGH', or
      any other layout.
    weights: Non-negative weights, float, that sum to 1 with w0: attention probabilities.
    values: Values, float, finite.
    zero_weight: The weight w0 of one more key whose value is zero, for weights that sum to less
      than 1: shaped as weights without S. See docs/laser.md, "Probabilities that do not sum to 1".
    numerics: 'exact' or 'paper'; see this file's head.

  Returns:
    O in the output's layout, in values' dtype. Products accumulate in float32, in which exp and log
    are taken too.

  Raises:
    ValueError: the equation is no weighted sum over values, or numerics is not known.

  Source: the paper's Algorithm 1 [paper]; 'exact' and zero_weight are ours.
  """
  axes = weight_axes, value_axes, output_axes = _parse(equation)
  if zero_weight is not None:
    weights, values = _with_zero_key(
      weight_axes, value_axes, output_axes, weights, values, zero_weight
    )
  mixed_axes = tuple(i for i, a in enumerate(value_axes) if a not in output_axes)
  mixture = exact.Mixture(
    mix=lambda weights, others, values: _einsum(axes, weights, values),
    vjp=functools.partial(_vjp_of_einsum, axes),
    axes=mixed_axes,
    align=functools.partial(_align_columns, mixed_axes, value_axes, output_axes),
  )
  return log_mixture_exp(numerics, mixture, weights, None, values)


def _with_zero_key(weight_axes, value_axes, output_axes, weights, values, zero_weight):
  """Appends a key of value zero and of the given weight; the weights are copied."""
  (key,) = set(value_axes) - set(output_axes)
  rows = ''.join(a for a in weight_axes if a != key)
  weight = _align(zero_weight.astype(weights.dtype), rows, weight_axes)
  at, of = weight_axes.index(key), value_axes.index(key)
  value = jnp.zeros_like(jax.lax.slice_in_dim(values, 0, 1, axis=of))
  return jnp.concatenate([weights, weight], at), jnp.concatenate([values, value], of)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum(axes: tuple[str, str, str], weights: Array, values: Array) -> Array:
  """The einsum of the axes, float32, whose gradients take the operands' precision."""
  weight_axes, value_axes, output_axes = axes
  equation = f'{weight_axes},{value_axes}->{output_axes}'
  return jnp.einsum(equation, weights, values, preferred_element_type=jnp.float32)


def _pull_einsum(axes, operands, d_output: Array, d_rows: Array | None = None):
  """Gradients of the einsum, float32 for values; d_rows is added to each weight's of its row."""
  weights, values = operands
  weight_axes, value_axes, output_axes = axes
  rounded = d_output.astype(values.dtype)
  d_weights, d_values = (
    jnp.einsum(f'{equation}', rounded, x, preferred_element_type=jnp.float32)
    for equation, x in (
      (f'{output_axes},{value_axes}->{weight_axes}', values),
      (f'{output_axes},{weight_axes}->{value_axes}', weights),
    )
  )
  if d_rows is not None:
    columns = [i for i, a in enumerate(output_axes) if a not in weight_axes]
    rows = d_rows.squeeze(columns)
    d_weights += _align(rows, ''.join(a for a in output_axes if a in weight_axes), weight_axes)
  return d_weights.astype(weights.dtype), d_values


_einsum.defvjp(
  lambda axes, weights, values: (_einsum(axes, weights, values), (weights, values)),
  lambda axes, operands, g: tuple(
    d.astype(x.dtype) for d, x in zip(_pull_einsum(axes, operands, g), operands, strict=True)
  ),
)


def _vjp_of_einsum(axes, weights: Array, others: None, values: Array):
  pull = jax.tree_util.Partial(functools.partial(_pull_einsum, axes), (weights, values))
  return _einsum(axes, weights, values), pull


def laser(
  attention_fn: Callable[..., Array],
  *,
  value_axes: str = 'BSNH',
  output_axes: str = 'BTNH',
  numerics: Numerics = 'exact',
) -> Callable[..., Array]:
  r"""Makes LASER attention of any attention function, which serves unchanged in the middle.

      laser(f)(Q, K, V, ...) = c + log1p( f(Q, K, expm1(V - c), ...) )

  with a c for each column: laser_pax/ops/exact.py. Right for every f that mixes values linearly,
  with weights that sum to 1: FlashAttention, jax.nn.dot_product_attention, ring attention, a
  function of your own. With dropout inside f, or a sink, the weights do not sum to 1: use the
  layers, which give those a meaning. f runs once; where a column of V is wider than 44, twice more
  for each 44.

  Args:
    attention_fn: A function of (query, key, value, *args, **kwargs) that returns the attention
      output alone.
    value_axes: The names of value's axes. The one that output_axes lacks is the sequence.
    output_axes: The names of the output's axes. If an axis of the output is longer than value's
      (grouped queries), each entry of value serves that many consecutive entries of the output, as
      everywhere.
    numerics: 'exact' or 'paper'; see this file's head.

  Returns:
    A function of the same arguments. Its output has value's dtype; exp and log are float32. It can
    be differentiated in reverse, once.

  Raises:
    ValueError: the layouts do not name a sequence axis, or do not fit the arrays; or numerics is
      not known.

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
    run, floats, others, output = _hoist(attention_fn, query, key, value, *args, **kwargs)
    if output.ndim != len(output_axes):
      raise ValueError(
        f'the output has shape {output.shape}, but its axes were named {output_axes!r}'
      )
    mixture = exact.Mixture(
      mix=run,
      vjp=functools.partial(_vjp_of_function, run),
      axes=sequence,
      align=_aligner(sequence, value_axes, output_axes, value.shape, output.shape),
    )
    return log_mixture_exp(numerics, mixture, floats, others, value)

  return laser_attention


def laser_by_heads(attention_fn: Callable[..., Array]) -> Callable[..., Array]:
  """As `laser`, 'exact', where heads come before rows: levels are taken of one head at a time.

  Wide columns, should they come, then need no more memory than one head of one example takes.

  Args:
    attention_fn: A function of (query, key, value, *others), [B, N, T, H] or [B, N, S, H] each,
      that takes any number of examples and heads and closes over no array; others are integers
      [B, ...], or None.

  Returns:
    A function of the same arguments, with values' dtype.

  Source: [ours].
  """

  def run(floats, others, value):
    return attention_fn(*floats, value, *others)

  mixture = exact.Mixture(
    mix=run,
    vjp=functools.partial(_vjp_of_function, run),
    axes=(2,),
    align=lambda x: x,
    apart=2,
  )

  @functools.wraps(attention_fn)
  def laser_attention(query: Array, key: Array, value: Array, *others: Array | None) -> Array:
    return exact.log_mixture_exp(mixture, (query, key), others, value)

  return laser_attention


def _aligner(sequence, value_axes: str, output_axes: str, value_shape, output_shape) -> Callable:
  """Returns `Mixture.align` for values that serve several consecutive entries of the output.

  Raises:
    ValueError: an axis of the output is no multiple of value's.
  """
  sizes, repeats = dict(zip(value_axes, value_shape, strict=True)), []
  for axis, wanted in enumerate(output_shape):
    size = sizes.get(output_axes[axis], wanted)
    if wanted % size:
      raise ValueError(
        f'{output_axes[axis]}: {wanted} of the output is no multiple of {size} of value'
      )
    repeats.append(wanted // size)

  def align(x: Array) -> Array:
    x = _align_columns(sequence, value_axes, output_axes, x)
    for axis, times in enumerate(repeats):
      x = x if times == 1 else jnp.repeat(x, times, axis)
    return x

  return align


def _hoist(attention_fn: Callable, query, key, value, *args, **kwargs):
  """Turns attention_fn into a function of arrays that closes over none.

  Returns:
    run: (floats, others, value) -> the output.
    floats: The float arrays that the function is given besides value, or closes over.
    others: The other arrays.
    output: Shape and dtype.
  """
  leaves, tree = jax.tree.flatten(((query, key, *args), kwargs))
  is_array = [isinstance(x, jax.Array | np.ndarray) for x in leaves]
  arrays = [x for x, array in zip(leaves, is_array, strict=True) if array]

  def of_arrays(arrays, value):
    given = iter(arrays)
    filled = [next(given) if array else x for x, array in zip(leaves, is_array, strict=True)]
    (query, key, *args), kwargs = jax.tree.unflatten(tree, filled)
    return attention_fn(query, key, value, *args, **kwargs)

  closed, output = jax.make_jaxpr(of_arrays, return_shape=True)(arrays, value)
  found = [*closed.consts, *arrays]
  is_float = [jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in found]

  def run(floats, others, value):
    floats, others = iter(floats), iter(others)
    operands = [next(floats) if f else next(others) for f in is_float]
    consts, arrays = operands[: len(closed.consts)], operands[len(closed.consts) :]
    (output,) = jax.core.eval_jaxpr(closed.jaxpr, consts, *arrays, value)
    return output

  floats, others = (
    [jnp.asarray(x) for x, f in zip(found, is_float, strict=True) if f is wanted]
    for wanted in (True, False)
  )
  return run, floats, others, output


def _vjp_of_function(run: Callable, floats, others, values: Array):
  mixed, pull = jax.vjp(lambda floats, values: run(floats, others, values), floats, values)
  return mixed, jax.tree_util.Partial(functools.partial(_pull_function, mixed.dtype), pull)


def _pull_function(dtype, pull: Callable, d_output: Array, d_rows: Array | None = None):
  """Of a function the weights are not known: what is the same for all keys has no gradient."""
  del d_rows
  return pull(d_output.astype(dtype))
