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

The levels cost two products each, and are run only where a column asks for them: in a loop that
runs once or never, by the values alone. The gradient is written down, not derived, because rounding
is: with G_th = g_th exp(c_h - O_th),

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
    mix: (floats, others, values) -> mixed. Linear in values, by weights that sum to 1; floats is
      what gradients are wanted of.
    vjp: (floats, others, values) -> (mixed, pull). pull takes the gradient of mixed (float32) and
      returns those of floats and of values; given a second argument, [..., 1] of mixed, it adds
      that to the gradient of each weight of a row, if the weights are floats.
    axes: Those of values that are mixed.
    align: Brings what is constant along these axes, [..., 1, ...] of values, to mixed's layout.
    parts: Entries of the leading axis of each of floats, of values and of mixed, heads say, that
      are mixed apart, so that the functions take any number of them. Levels are taken of one after
      the other, in the memory of one.
  """

  mix: Callable[[Any, Any, Array], Array]
  vjp: Callable[[Any, Any, Array], tuple[Array, Callable]]
  axes: tuple[int, ...]
  align: Callable[[Array], Array]
  parts: int = 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def log_mixture_exp(mixture: Mixture, floats: Any, others: Any, values: Array) -> Array:
  """Returns log(mix(exp(values))) in values' dtype; see this file's head.

  Args:
    mixture: How to mix.
    floats: A tree of float arrays, given to `mixture`'s functions.
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
  mixed, pull = mixture.vjp(floats, others, e)

  output = mixture.align(center) + jnp.log1p(mixed.astype(F32))

  def by_levels(_, floats, others, values):
    base, above = _sum_of_levels(mixture, floats, others, values)
    poison = 0 * values.astype(F32).sum(
      mixture.axes, keepdims=True
    )  # NaN where the column has one.
    return (base + above + mixture.align(poison)).astype(values.dtype)

  by_levels = _by_parts(mixture.parts, by_levels)
  output = _where_wide(is_narrow, by_levels, output.astype(values.dtype), floats, others, values)
  return output, (floats, others, values, center, is_narrow, mixed, pull)


def _backward(mixture, residuals, cotangent):
  floats, others, values, center, is_narrow, mixed, pull = residuals

  g = cotangent.astype(F32)
  pulled = g / (1 + mixed.astype(F32))
  d_floats, d_e = pull(pulled, (pulled - g).sum(-1, keepdims=True))
  d_values = d_e.astype(F32) * jnp.exp(values.astype(F32) - center)
  d_floats, d_values = _where_wide(
    is_narrow,
    _by_parts(mixture.parts, functools.partial(_gradient_of_levels, mixture)),
    (d_floats, d_values.astype(values.dtype)),
    floats,
    others,
    values,
    cotangent,
  )
  return d_floats, None, d_values


log_mixture_exp.defvjp(_forward, _backward)


def _center(low: Array, high: Array) -> Array:
  """The point of [low, high], and not above low + BELOW, that is nearest zero."""
  return jnp.minimum(jnp.clip(0.0, low, high), low + BELOW)


def _by_parts(parts: int, by_levels: Callable) -> Callable:
  """Returns by_levels(done, floats, others, *rest), of one part after the other; see `Mixture`."""
  if parts == 1:
    return by_levels

  def run(done, floats, others, *rest):
    def visit(i, done):
      def take(tree):
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i, 1), tree)

      part = by_levels(take(done), take(floats), others, *take(rest))
      return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, i, 0), done, part)

    return jax.lax.fori_loop(0, parts, visit, done)

  return run


def _where_wide(is_narrow: Array, by_levels: Callable, done: Any, *args: Any) -> Any:
  """Returns done, or by_levels(done, *args) if not is_narrow; by_levels closes over no array.

  A loop that runs once or never, in place of a conditional, as what it returns takes done's own
  memory. A vmap makes it a loop over entries, in the memory of one; so that is never run for what
  is narrow. Checkpoint policies see one operation, and do not look in it for what to keep.
  """

  @jax.custom_batching.custom_vmap
  def run(is_narrow, done, args):
    def visit(carry):
      return True, by_levels(carry[1], *args)

    return jax.lax.while_loop(lambda carry: ~carry[0], visit, (is_narrow, done))[1]

  @run.def_vmap
  def run_batch(axis_size, in_batched, is_narrow, done, args):
    is_narrow_batched, done_batched, args_batched = in_batched
    done = jax.tree.map(
      lambda x, batched: x if batched else jnp.broadcast_to(x, (axis_size, *x.shape)),
      done,
      done_batched,
    )
    if not is_narrow_batched:
      is_narrow = jnp.broadcast_to(is_narrow, axis_size)

    def one_by_one(done, is_narrow, *args):
      def visit(i, done):
        entry = jax.tree.map(lambda x, batched: x[i] if batched else x, args, tuple(args_batched))
        old = jax.tree.map(lambda x: x[i], done)
        new = _where_wide(is_narrow[i], by_levels, old, *entry)
        return jax.tree.map(lambda x, of_entry: x.at[i].set(of_entry), done, new)

      return jax.lax.fori_loop(0, axis_size, visit, done)

    done = _where_wide(jnp.all(is_narrow), one_by_one, done, is_narrow, *args)
    return done, jax.tree.map(lambda _: True, done)

  return run(is_narrow, done, args)


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
    return mixture.mix(floats, others, x.astype(values.dtype)).astype(F32)

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


def _gradient_of_levels(
  mixture: Mixture, _, floats, others, values: Array, cotangent: Array
) -> tuple[Any, Array]:
  """The gradients of floats and values, level by level."""
  base, above = _sum_of_levels(mixture, floats, others, values)
  cotangent = cotangent.astype(F32)

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
      _, pull = mixture.vjp(floats, others, jnp.expm1(gap).astype(values.dtype))
      by_e, d_e = pull(of_e)
      _, pull = mixture.vjp(floats, others, member.astype(values.dtype))
      by_level, _ = pull(of_level)
      d_floats = jax.tree.map(lambda s, a, b: s + a.astype(F32) + b, d_floats, by_e, by_level)
      d_values += jnp.where(member, d_e.astype(F32) * jnp.exp(gap), 0.0)
    return d_floats, d_values

  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, F32), (floats, values))
  sums = _over_levels(mixture, values.astype(F32), visit, zeros)
  return jax.tree.map(lambda s, x: s.astype(x.dtype), sums, (floats, values))
