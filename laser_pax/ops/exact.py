r"""How LASER is computed: exactly, for any finite values, at the cost of one product [ours].

Wanted is O_th = log sum_s p_ts exp(V_sh), where p_t sums to 1. For a column h and any c_h,

    O_th = c_h + log1p( sum_s p_ts E_sh ),        E_sh = expm1(V_sh - c_h)

and where all of the column lies in [c_h - BELOW, c_h + WIDTH], that is accurate in any precision:
E is as small as V - c, so that rounding it costs what rounding V costs; the argument of log1p
cannot come near -1; and nothing overflows. c_h is the point of that range which is nearest zero,
because there small outputs, which bear the least error, are sums of small E.

Where a column is wider, its values are taken in levels of width LEVEL, from the lowest up, with
c_k, E_k and membership M_k (0 or 1) of each:

    O_th = log sum_k exp(c_k) (P M_k + P E_k)_th

The sum is kept as a pair (base, above): the c of the level that weighs most in this row, and how
far O lies above it. A key that a row cannot see has probability 0 in every level, so that neither
padding, nor other segments, nor the future ever decide a row's precision.

The levels cost two products each, and are run only where a column asks for them: `lax.cond`, on
the values alone. The gradient is written down, not derived, because rounding is: with
G_th = g_th exp(c_h - O_th),

    dL/dp_ts = sum_h G_th E_sh + sum_h (G_th - g_th)         dL/dV_sh = exp(V_sh - c_h) (P^T G)_sh

The second term of dL/dp is the same for all keys of a row. The softmax would take it out again; it
is there because with it the gradient is small where it should be, and survives bfloat16.

Probabilities are what they are: a key whose probability is 0 in float32 counts for nothing,
however great its value. In levels, gradients of keys of probability below exp(-REACH) are too low.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
F32 = jnp.float32

# exp(WIDTH)^2 is just below float32's and bfloat16's greatest number: half of the range for E, half
# for what the gradient is divided by.
WIDTH = 44.0
# In levels a row may lie below what it does not see. exp(LEVEL + REACH) leaves 1e7 to the gradient.
LEVEL = 24.0
REACH = 48.0
# exp(-BELOW) is 0.14: how near to -1 the argument of log1p may come. docs/numerics.md.
BELOW = 2.0


@dataclasses.dataclass(frozen=True)
class Mixture:
  """A way to mix values by probabilities.

  Attributes:
    mix: (floats, others, values) -> (mixed, pull). Linear in values, by weights that sum to 1;
      floats is what gradients are wanted of. pull takes the gradient of mixed (float32) and returns
      those of floats and of values; given a second argument, [..., 1] of mixed, it adds that to the
      gradient of each weight of a row, if the weights are floats.
    axes: Those of values that are mixed.
    align: Brings what is constant along these axes, [..., 1, ...] of values, to mixed's layout.
  """

  mix: Callable[[Any, Any, Array], tuple[Array, Callable]]
  axes: tuple[int, ...]
  align: Callable[[Array], Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def log_mixture_exp(mixture: Mixture, floats: Any, others: Any, values: Array) -> Array:
  """Returns log(mix(exp(values))) in values' dtype; see this file's head.

  Args:
    mixture: How to mix.
    floats: A tree of float arrays, given to `mixture.mix`.
    others: A tree of other arrays.
    values: Float. A value that is not finite makes the output of its column not finite.
  """
  return _forward(mixture, floats, others, values)[0]


def _forward(mixture, floats, others, values):
  x = values.astype(F32)
  low, high = (f(x, mixture.axes, keepdims=True) for f in (jnp.min, jnp.max))
  center = _center(low, high)
  is_narrow = jnp.all(high - center <= WIDTH)
  # Capped, so that it is finite in wide columns too, where it is not used.
  e = jnp.expm1(jnp.minimum(x - center, WIDTH)).astype(values.dtype)
  mixed, pull = mixture.mix(floats, others, e)

  def at_once(operands, center, mixed):
    return mixture.align(center) + jnp.log1p(mixed.astype(F32))

  def by_levels(operands, center, mixed):
    base, above = _sum_of_levels(mixture, *operands)
    return base + above + 0 * mixture.align(center)  # NaN where the column's values are.

  output = _either(is_narrow, at_once, by_levels, (floats, others, values), center, mixed)
  residuals = floats, others, values, center, is_narrow, mixed, pull
  return output.astype(values.dtype), residuals


def _backward(mixture, residuals, cotangent):
  floats, others, values, center, is_narrow, mixed, pull = residuals
  cotangent = cotangent.astype(F32)

  def at_once(operands, center, mixed, pull, cotangent):
    pulled = cotangent / (1 + mixed.astype(F32))
    d_floats, d_e = pull(pulled, (pulled - cotangent).sum(-1, keepdims=True))
    *_, values = operands
    d_values = d_e.astype(F32) * jnp.exp(values.astype(F32) - center)
    return d_floats, d_values.astype(values.dtype)

  def by_levels(operands, center, mixed, pull, cotangent):
    return _gradient_of_levels(mixture, *operands, cotangent)

  operands = floats, others, values
  d_floats, d_values = _either(
    is_narrow, at_once, by_levels, operands, center, mixed, pull, cotangent
  )
  return d_floats, None, d_values


log_mixture_exp.defvjp(_forward, _backward)


def _center(low: Array, high: Array) -> Array:
  """The point of [low, high], and not above low + BELOW, that is nearest zero."""
  return jnp.minimum(jnp.clip(0.0, low, high), low + BELOW)


def _either(is_narrow: Array, at_once: Callable, by_levels: Callable, *args: Any) -> Any:
  """Returns at_once(*args) or by_levels(*args), which are functions of arrays that close over none.

  A vmap asks whether all entries are narrow, so that what runs stays either; if not, it takes
  levels of one entry after the other, in the memory of one. Checkpoint policies see one operation,
  and do not look in it for what to keep.
  """
  leaves, tree = jax.tree.flatten(args)

  def of_leaves(function):
    return lambda *leaves: function(*jax.tree.unflatten(tree, leaves))

  @jax.custom_batching.custom_vmap
  def run(is_narrow, *leaves):
    return jax.lax.cond(is_narrow, of_leaves(at_once), of_leaves(by_levels), *leaves)

  @run.def_vmap
  def run_batch(axis_size, in_batched, is_narrow, *leaves):
    axes = [0 if is_batched else None for is_batched in in_batched[1:]]
    done = _either(
      jnp.all(is_narrow),
      jax.vmap(of_leaves(at_once), axes, axis_size=axis_size),
      _one_by_one(of_leaves(by_levels), axes, axis_size),
      *leaves,
    )
    return done, jax.tree.map(lambda _: True, done)

  return run(is_narrow, *leaves)


def _one_by_one(function: Callable, axes: list[int | None], axis_size: int) -> Callable:
  """As jax.vmap(function, axes), but one entry after the other."""

  def run(*leaves):
    def of_entry(i):
      return function(*(x if a is None else x[i] for x, a in zip(leaves, axes, strict=True)))

    def visit(carry):
      i, done = carry
      return i + 1, jax.tree.map(lambda d, x: d.at[i].set(x), done, of_entry(i))

    shapes = jax.eval_shape(of_entry, 0)
    nothing = jax.tree.map(lambda x: jnp.zeros((axis_size, *x.shape), x.dtype), shapes)
    return jax.lax.while_loop(lambda carry: carry[0] < axis_size, visit, (0, nothing))[1]

  return run


def _over_levels(mixture: Mixture, x: Array, visit: Callable, state: Any) -> Any:
  """Calls state = visit(state, member, center, gap) for each level, from the lowest up.

  member is what of x, float32, lies in the level; gap is x - center there, and 0 elsewhere.
  """
  axes = mixture.axes

  def visit_next(carry):
    done, state = carry
    left = x > done
    low = jnp.where(left, x, jnp.inf).min(axes, keepdims=True)
    top = low + LEVEL
    member = left & (x <= top)
    high = jnp.where(member, x, -jnp.inf).max(axes, keepdims=True)
    center = jnp.where(jnp.isfinite(low), _center(low, high), 0.0)  # No member: nothing is left.
    return top, visit(state, member, center, jnp.where(member, x - center, 0.0))

  nothing = jnp.full_like(x.min(axes, keepdims=True), -jnp.inf)
  return jax.lax.while_loop(lambda carry: jnp.any(x > carry[0]), visit_next, (nothing, state))[1]


def _sum_of_levels(mixture: Mixture, floats, others, values: Array) -> tuple[Array, Array]:
  """O as a pair (base, above), float32, in the output's layout."""

  def mix(x):
    return mixture.mix(floats, others, x.astype(values.dtype))[0].astype(F32)

  total = mix(jnp.ones_like(values))  # 1, but for the rounding of the probabilities.

  def visit(pair, member, center, gap):
    mixed, mass = mix(jnp.expm1(gap)), mix(member)
    is_most = mass > total / 2
    above = jnp.where(
      is_most,
      jnp.log1p(jnp.where(is_most, (mixed + (mass - total)) / total, 0.0)),
      jnp.log(jnp.where(is_most, 1.0, (mixed + mass) / total)),
    )
    return _log_add_exp(pair, (mixture.align(center), above))

  pair = jnp.zeros_like(total), jnp.full_like(total, -jnp.inf)
  return _over_levels(mixture, values.astype(F32), visit, pair)


def _log_add_exp(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
  """log(exp(a) + exp(b)) of pairs (base, above), with the greater one's base."""
  a_leads = sum(a) >= sum(b)
  base, above, other_base, other_above = (
    jnp.where(a_leads, x, y) for x, y in zip((*a, *b), (*b, *a), strict=True)
  )
  is_nothing = jnp.isneginf(other_above)
  gap = jnp.where(is_nothing, -jnp.inf, (other_base - base) + (other_above - above))
  return base, above + jnp.log1p(jnp.exp(gap))


def _gradient_of_levels(mixture: Mixture, floats, others, values: Array, cotangent: Array):
  """The gradients of floats and values, level by level."""
  base, above = _sum_of_levels(mixture, floats, others, values)

  def in_parts(x):
    # Where one key decides a row, dL/dp is a sum over columns that may all but cancel, so that the
    # rounding of each must not show: x as a rounded part and the rest.
    rounded = x.astype(values.dtype).astype(F32)
    return [x] if values.dtype == F32 else [rounded, x - rounded]

  def visit(state, member, center, gap):
    # A level far above O is one that the row does not see, or hardly.
    pulled = cotangent * jnp.exp(jnp.minimum(mixture.align(center) - base - above, REACH))
    d_floats, d_values = state
    for of_e, of_level in zip(*map(in_parts, (pulled, pulled - cotangent)), strict=True):
      _, pull = mixture.mix(floats, others, jnp.expm1(gap).astype(values.dtype))
      by_e, d_e = pull(of_e)
      _, pull = mixture.mix(floats, others, member.astype(values.dtype))
      by_level, _ = pull(of_level)
      d_floats = jax.tree.map(lambda s, a, b: s + a.astype(F32) + b, d_floats, by_e, by_level)
      d_values += jnp.where(member, d_e.astype(F32) * jnp.exp(gap), 0.0)
    return d_floats, d_values

  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, F32), (floats, values))
  sums = _over_levels(mixture, values.astype(F32), visit, zeros)
  return jax.tree.map(lambda s, x: s.astype(x.dtype), sums, (floats, values))
