r"""LASER where a column is too wide for exact.py: its values in levels, from the lowest up [ours].

A level holds the values within LEVEL of the lowest that is left. With its c_k, its E_k, and its
membership L_k (1 for the values in it, 0 for others),

    O_th = log( sum_k exp(b c_k) (P L_k + P E_k)_th ) / b          E_k = expm1(b (V - c_k))

LASER's b, beta, is 1; beta.py has the family. Each E_k is scaled before it is rounded, as in
exact.py. The width of a level is LEVEL / b.

The sum is a pair (base, above): the c_k of the level that weighs most in this row, and how far O
lies above it. A key that a row cannot see has probability 0 in every level. So neither padding, nor
other segments, nor the future ever decide a row's precision.

    dL/dp_ts = sum_k sum_h G_kth E_ksh + (G_kth - g_th / b) L_ksh  G_kth = g_th exp(b (c_k - O)) / b
    dL/dV_sh = b (L_k + E_k)_sh (P^T G_k)_sh                       k the level of V_sh

dO/db is what O varies within the levels and between them. With D and e = E / b of beta.py, m = P L,
the level's own mean e_k = P e / m, and its own output O_k = c_k + log1p(b e_k) / b,

    dO/db = sum_k exp(b (c_k - O)) (P D(e) - m D(e_k)) + m D(expm1(b (O_k - O)) / b)

A level costs two products. The gradients of keys of a probability below exp(-REACH) are too low.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from laser_pax.ops import columns
from laser_pax.ops.beta import excess, over, times
from laser_pax.ops.mixtures import Mixture, take_entry

Array = jax.Array
F32 = jnp.float32

# The width of a level.
LEVEL = 24.0
# A row's O may lie far below a level of keys that it hardly sees. The gradient is multiplied by
# exp(c_k - O), which is capped at exp(REACH). With expm1 of a gap of LEVEL, float32 then holds
# cotangents up to 1e7.
REACH = 48.0
# What a row sees of a level below it has no mean of its own that float32 could tell.
LEAST_MASS = 1e-30


def replace_wide_outputs(
  is_narrow: Array, mixture: Mixture, values: Array, beta: Array | None, outputs: Array
) -> Array:
  """Returns outputs with O in place of each wide entry.

  Args:
    is_narrow: Booleans over the batch axes.
    mixture: P.
    values: V. It is read in wide entries alone.
    beta: b of each column, above 0; None for LASER.
    outputs: The shape of P V.
  """

  def output(entry, given):
    mixture, *arrays = given
    entry_values, entry_beta = (take_entry(x, entry) for x in arrays)
    entry_mixture = mixture.entry(entry)
    base, above = sum_of_levels(entry_mixture, entry_values, entry_beta)
    # NaN where the column has a value that is not finite.
    poison = (0 * entry_values.astype(F32)).sum(mixture.mixed_axes, keepdims=True)
    return base + above + entry_mixture.align(poison)

  return _replace_wide(is_narrow, outputs, output, (mixture, values, beta))


def replace_wide_gradients(
  is_narrow: Array,
  mixture: Mixture,
  values: Array,
  beta: Array | None,
  cotangent: Array,
  gradients: tuple[Mixture, Array, Array | None],
) -> tuple[Mixture, Array, Array | None]:
  """Returns gradients of mixture, values and beta, with LASER's in place of wide entries.

  Args:
    is_narrow: Booleans over the batch axes.
    mixture: P.
    values: V. It is read in wide entries alone, as the cotangent is.
    beta: b of each column, above 0; None for LASER.
    cotangent: The cotangent of O.
    gradients: What stays in narrow entries.
  """

  def gradient(entry, given):
    mixture, *arrays = given
    return gradients_of_levels(mixture.entry(entry), *(take_entry(x, entry) for x in arrays))

  return _replace_wide(is_narrow, gradients, gradient, (mixture, values, beta, cotangent))


def _replace_wide(
  is_narrow: Array, results: Any, compute: Callable[[tuple[Array, ...], Any], Any], given: Any
) -> Any:
  """Returns results, a tree, with compute(entry, given) in place of each wide entry.

  A loop over the wide entries, which as a rule does not run at all. Unlike a conditional it needs
  no memory: what it returns takes the place of the results it was given. A branch over all values
  of a chip took 1.23 times the memory of standard attention, this 1.00: docs/numerics.md.
  """

  def visit(carry):
    is_ready, results = carry
    # The compiler would otherwise take the levels of a single entry before the loop, always. A
    # barrier of the whole carry breaks the TPU's compiler where a constant enters the loop.
    is_ready, given_now = jax.lax.optimization_barrier((is_ready, given))
    entry = jnp.unravel_index(jnp.argmin(is_ready), is_ready.shape)  # The first that is not.

    def put(result, x):
      start = (*entry, *(0,) * (result.ndim - len(entry)))
      return jax.lax.dynamic_update_slice(result, x.astype(result.dtype), start)

    return is_ready.at[entry].set(True), jax.tree.map(put, results, compute(entry, given_now))

  return jax.lax.while_loop(lambda carry: ~jnp.all(carry[0]), visit, (is_narrow, results))[1]


class Level(NamedTuple):
  """A level of the values.

  Attributes:
    members: L, 1 for the values in it and 0 for others; booleans, values' shape.
    center: c, of size 1 along the mixed axes, float32.
    scale: What E is multiplied by before it is rounded: k / b. It is shaped as center.
    gap: b (V - c) of its members, 0 for others; float32, values' shape.
  """

  members: Array
  center: Array
  scale: Array
  gap: Array


def _fold_levels(
  mixture: Mixture,
  values: Array,
  beta: Array | None,
  visit: Callable[[Any, Level], Any],
  state: Any,
) -> Any:
  """Calls state = visit(state, level) for each level, from the lowest up."""
  x, axes = values.astype(F32), mixture.mixed_axes

  def visit_next(carry):
    top_before, state = carry
    left = x > top_before
    low = jnp.where(left, x, jnp.inf).min(axes, keepdims=True)
    top = low + over(LEVEL, beta)
    members = left & (x <= top)
    high = jnp.where(members, x, -jnp.inf).max(axes, keepdims=True)
    # Columns have different numbers of levels. One that has run out gets a level without members,
    # at 0, so that nothing is inf - inf.
    center = jnp.where(jnp.isfinite(low), columns.center(low, high, beta), 0.0)
    scale = over(columns.scale(low, high, center, beta), beta)
    gap = jnp.where(members, times(x - center, beta), 0.0)
    level = Level(members, center, scale, gap)
    return top, visit(state, level)

  bottom = jnp.full_like(x.min(axes, keepdims=True), -jnp.inf)
  return jax.lax.while_loop(lambda carry: jnp.any(x > carry[0]), visit_next, (bottom, state))[1]


def sum_of_levels(
  mixture: Mixture, values: Array, beta: Array | None = None
) -> tuple[Array, Array]:
  """Returns O as a pair (base, above), float32, in the output's layout."""

  def mix(x):
    return mixture.mix(x.astype(values.dtype)).astype(F32)

  b = None if beta is None else mixture.align(beta)
  total = mix(jnp.ones_like(values))  # 1, but for the rounding of the probabilities.

  def visit(pair, level):
    mixed, mass = mix(level.scale * jnp.expm1(level.gap)), mix(level.members)
    mixed /= mixture.align(level.scale)
    is_most = mass > total / 2
    above = jnp.where(
      is_most,
      jnp.log1p(jnp.where(is_most, (mixed + (mass - total)) / total, 0.0)),
      jnp.log(jnp.where(is_most, 1.0, (mixed + mass) / total)),
    )
    return _log_add_exp(pair, (mixture.align(level.center), over(above, b)), b)

  nothing = jnp.zeros_like(total), jnp.full_like(total, -jnp.inf)
  return _fold_levels(mixture, values, beta, visit, nothing)


def _log_add_exp(
  x: tuple[Array, Array], y: tuple[Array, Array], beta: Array | None
) -> tuple[Array, Array]:
  """Returns log(exp(b x) + exp(b y)) / b of pairs (base, above), with the greater one's base."""
  x_leads = sum(x) >= sum(y)
  base, above, other_base, other_above = (
    jnp.where(x_leads, a, b) for a, b in zip((*x, *y), (*y, *x), strict=True)
  )
  is_nothing = jnp.isneginf(other_above)
  gap = times((other_base - base) + (other_above - above), beta)
  gap = jnp.where(is_nothing, -jnp.inf, gap)
  return base, above + over(jnp.log1p(jnp.exp(gap)), beta)


def gradients_of_levels(
  mixture: Mixture, values: Array, beta: Array | None, cotangent: Array
) -> tuple[Mixture, Array, Array | None]:
  """Returns the gradients of mixture, values and beta, float32, summed level by level."""
  base, above = sum_of_levels(mixture, values, beta)
  b = None if beta is None else mixture.align(beta)
  g = over(cotangent.astype(F32), b)

  def gradients_at(x, d_mixed):
    mixed, residuals = mixture.mix_with_residuals(x.astype(values.dtype))
    return *mixture.gradients(residuals, mixed, d_mixed, d_total=None, unit=None), mixed

  def visit(state, level):
    # Capped, so that exp does not overflow: a level whose center lies more than REACH above O has a
    # weight below exp(-REACH) in this row.
    rise = mixture.align(level.center) - base - above
    scaled = g * jnp.exp(jnp.minimum(times(rise, b), REACH))
    d_mixture, d_values, d_beta = state
    aligned_scale = mixture.align(level.scale)
    d_mixed = scaled / aligned_scale
    parts = zip(_split(d_mixed, values.dtype), _split(scaled - g, values.dtype), strict=True)
    for mixed_part, rest_part in parts:
      by_e, d_e, mixed = gradients_at(level.scale * jnp.expm1(level.gap), mixed_part)
      by_members, _, mass = gradients_at(level.members, rest_part)
      d_mixture = jax.tree.map(lambda d, x, y: d + x.astype(F32) + y, d_mixture, by_e, by_members)
      slope = level.scale * jnp.exp(level.gap)
      d_values += jnp.where(level.members, d_e.astype(F32) * times(slope, beta), 0.0)
    if beta is not None:
      d_members = jnp.where(level.members, d_values, 0.0)
      rows = g * b, scaled * b, rise, mass.astype(F32), mixed.astype(F32)
      d_beta += _beta_gradient_of_level(mixture, level, beta, d_members, *rows)
    return d_mixture, d_values, d_beta

  *shapes, _ = jax.eval_shape(gradients_at, values, g)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, F32), (*shapes, beta))
  return _fold_levels(mixture, values, beta, visit, zeros)


def _beta_gradient_of_level(
  mixture: Mixture,
  level: Level,
  beta: Array,
  d_members: Array,
  g: Array,
  scaled: Array,
  rise: Array,
  mass: Array,
  mixed: Array,
) -> Array:
  """Returns a level's part of dL/db; see this file's head.

  Args:
    mixture: P.
    level: The level.
    beta: b.
    d_members: dL/dV of the level's members, 0 for others.
    g: The cotangent of O.
    scaled: g exp(b (c - O)).
    rise: c - O.
    mass: P L.
    mixed: P of the scaled E.
  """
  b = mixture.align(beta)
  has_mass = mass > LEAST_MASS
  mean = jnp.where(has_mass, mixed / (mixture.align(level.scale) * b), 0.0)
  mean /= jnp.where(has_mass, mass, 1.0)
  own_rise = b * rise + jnp.log1p(b * mean)
  between = excess(jnp.expm1(jnp.minimum(own_rise, REACH)) / b, b)
  rows = jnp.where(has_mass, mass, 0.0) * (g * between - scaled * excess(mean, b))
  keys = d_members * jnp.exp(-level.gap) * excess(jnp.expm1(level.gap) / beta, beta)
  return keys.sum(mixture.mixed_axes, keepdims=True) + sum_to_columns(mixture, rows, beta)


def sum_to_columns(mixture: Mixture, x: Array, columns: Array) -> Array:
  """Sums x, of the output's layout, to columns' shape: the transpose of `Mixture.align`."""
  spread = jax.linear_transpose(
    lambda columns: jnp.broadcast_to(mixture.align(columns), x.shape), columns
  )
  return spread(x)[0]


def _split(x: Array, dtype: jnp.dtype) -> list[Array]:
  """Returns x as a sum: a part that dtype holds without rounding, and the rest.

  Where one key decides a row, dL/dp is a sum over columns that may all but cancel. The rounding of
  each must then not show.
  """
  rounded = x.astype(dtype).astype(F32)
  return [x] if dtype == F32 else [rounded, x - rounded]
