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

The levels cost two products each, and are run only where a column asks for them: in a loop over
what is wide, which as a rule is nothing. The gradient is written down, not derived, because
rounding is: with G_th = g_th exp(c_h - O_th),

    dL/dp_ts = sum_h G_th E_sh + sum_h (G_th - g_th)         dL/dV_sh = (1 + E_sh) (P^T G)_sh

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
    apart: Leading axes of each of floats, of values and of mixed, examples and heads say, whose
      entries are mixed apart, so that the functions take any number of them; others have the first
      of these axes. Levels are taken of one entry after the other, in the memory of one.
  """

  mix: Callable[[Any, Any, Array], Array]
  vjp: Callable[[Any, Any, Array], tuple[Array, Callable]]
  axes: tuple[int, ...]
  align: Callable[[Array], Array]
  apart: int = 0


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
  # Of values as they are, not of x: the compiler then reads them once for both.
  low, high = (f(values, mixture.axes, keepdims=True).astype(F32) for f in (jnp.min, jnp.max))
  center = _center(low, high)
  is_narrow = jnp.all(high - center <= WIDTH, tuple(range(mixture.apart, x.ndim)))
  # Of what is wide e holds the values and, in the backward pass, pulled the cotangent: levels then
  # need no array that is not there for the rest.
  e = _where(is_narrow, jnp.expm1(x - center), x).astype(values.dtype)
  mixed, pull = mixture.vjp(floats, others, e)

  def by_levels(floats, others, values):
    base, above = _sum_of_levels(mixture, floats, others, values)
    # NaN where the column has a value that is not finite.
    poison = 0 * values.astype(F32).sum(mixture.axes, keepdims=True)
    return base + above + mixture.align(poison)

  # Of what is wide the output itself takes the place of what was mixed. A kernel's pull keeps that
  # as well, and may take it from there, as its gradients of what is wide are not used.
  settled = _replace_wide(is_narrow, by_levels, mixed, floats, others, e)
  pull = jax.tree.map(lambda x: settled if x is mixed else x, pull)
  output = settled.astype(F32)
  output = _where(is_narrow, mixture.align(center) + jnp.log1p(output), output)
  residuals = floats, others, is_narrow, e, settled, pull
  return output.astype(values.dtype), residuals


def _backward(mixture, residuals, cotangent):
  floats, others, is_narrow, e, settled, pull = residuals
  # As it was mixed: the compiler would compute it anew, of values, and keep those until then.
  e = jax.lax.optimization_barrier(e)

  g = cotangent.astype(F32)
  pulled = _where(is_narrow, g / (1 + settled.astype(F32)), g)
  gradients = _replace_wide(
    is_narrow,
    functools.partial(_gradient_of_levels, mixture),
    pull(pulled, (pulled - g).sum(-1, keepdims=True)),
    floats,
    others,
    e,
    pulled.astype(cotangent.dtype),
  )
  d_floats, d_e = gradients[0], gradients[1].astype(F32)
  d_values = _where(is_narrow, d_e * (1 + e.astype(F32)), d_e)
  return d_floats, None, d_values.astype(e.dtype)


log_mixture_exp.defvjp(_forward, _backward)


def _center(low: Array, high: Array) -> Array:
  """The point of [low, high], and not above low + BELOW, that is nearest zero."""
  return jnp.minimum(jnp.clip(0.0, low, high), low + BELOW)


def _where(is_narrow: Array, x: Array, y: Array) -> Array:
  """Selects x, or y, by a condition over their leading axes."""
  return jnp.where(is_narrow.reshape(is_narrow.shape + (1,) * (x.ndim - is_narrow.ndim)), x, y)


def _replace_wide(
  is_narrow: Array, by_levels: Callable, done: Any, floats: Any, others: Any, *values: Array
) -> Any:
  """Returns done, each entry that is not narrow replaced by by_levels(floats, others, *values).

  A loop over these entries in place of a conditional: as a rule it does not run at all, and what it
  returns takes done's own memory.

  Args:
    is_narrow: Over the axes that are `Mixture.apart`.
    by_levels: Closes over no array. It is called with one entry, in which these axes have size 1.
    done: A tree of arrays that begin with these axes; it keeps its dtypes.
    floats: As `Mixture` takes them, and others.
    others: As well.
    *values: Arrays that begin with these axes.
  """

  def visit(carry):
    is_done, done = carry
    entry = jnp.unravel_index(jnp.argmin(is_done), is_done.shape)  # The first that is not done.

    def start(x, entry):
      return *entry, *(0,) * (x.ndim - len(entry))

    def take(tree, entry):
      def of(x):
        sizes = (1,) * len(entry) + x.shape[len(entry) :]
        return jax.lax.dynamic_slice(x, start(x, entry), sizes)

      return jax.tree.map(of, tree)

    def put(x, of_entry):
      return jax.lax.dynamic_update_slice(x, of_entry.astype(x.dtype), start(x, entry))

    new = by_levels(take(floats, entry), take(others, entry[:1]), *take(values, entry))
    return is_done.at[entry].set(True), jax.tree.map(put, done, new)

  return jax.lax.while_loop(lambda carry: ~jnp.all(carry[0]), visit, (is_narrow, done))[1]


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
  mixture: Mixture, floats, others, values: Array, cotangent: Array
) -> tuple[Any, Array]:
  """The gradients of floats and values, float32, level by level."""
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
  return _over_levels(mixture, values.astype(F32), visit, zeros)
