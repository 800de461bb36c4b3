r"""The family between standard attention and LASER: how strongly values are bent before they mix.

    O_th = log( sum_s p_ts exp(b_h V_sh) ) / b_h            b: beta, a number for each column

    b -> 0      sum_s p_ts V_sh, standard attention
    b = 1       LASER [paper]
    b -> inf    the greatest value that t sees;  b -> -inf: the least

It is a generalised mean of the values, as the Free Energy Mixer (arXiv 2602.07160) reads them. It
is symmetric: O(-b, V) = -O(b, -V). So exact.py and levels.py are written for b > 0. With V measured
in units of 1 / b they are LASER's, but at b = 0 there is no such unit. Hence E is kept in units of
V: (k / b) expm1(b (V - c)) tends to k (V - c).

b has a derivative. With q_s the share of key s, p_s exp(b (V_s - O)),

    dO/db = (E_q[V] - O) / b  -> Var_p(V) / 2  at b = 0

Near 0 that form is a difference of equals. With e = expm1(b (V - c)) / b and m = sum p e it is

    dO/db = (sum_s p_s D(e_s) - D(m)) / (1 + b m)     D(e) = ((1 + b e) log1p(b e) - b e) / b^2

D is convex and tends to e^2 / 2: the numerator is what Jensen's inequality lacks [ours].
"""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
F32 = jnp.float32
# A number; or an array that broadcasts to values, of size 1 along the mixed axes; None: 1, LASER.
Beta = float | Array | None

# |beta| is taken as at least LEAST and at most GREATEST. Float32 cannot tell the difference, unless
# values are greater than 1 / (LEAST 2^24), 1.7e7; or differ by less than 90 / GREATEST, 3e-13.
LEAST, GREATEST = 2.0**-48, 2.0**48
# Below it D is summed as a series, to a relative error of 1e-8; above it the form loses 2e-6.
_SERIES_BELOW = 1 / 8
_SERIES = tuple((-1) ** n / ((n + 1) * (n + 2)) for n in range(7))


def of_columns(beta: Beta, values: tuple[int, ...], mixed_axes: tuple[int, ...]) -> Array | None:
  """Returns beta of each column of values.

  Args:
    beta: Beta.
    values: The shape of values.
    mixed_axes: The axes that are mixed.

  Returns:
    float32, of values' shape with size 1 along mixed axes. None for LASER: beta is None, or the
    number 1.

  Raises:
    ValueError: beta is not finite, or no number, or its shape does not fit.
  """
  if beta is None or (is_number(beta) and beta == 1):
    return None
  check(beta)
  columns = tuple(1 if i in mixed_axes else n for i, n in enumerate(values))
  shape = jnp.shape(beta)
  try:
    fits = jnp.broadcast_shapes(shape, columns) == columns
  except ValueError:
    fits = False
  if not fits:
    raise ValueError(
      f'beta must be a number, or have a shape that broadcasts to {columns}, one for each column '
      f'of values; got {shape}'
    )
  return jnp.broadcast_to(jnp.asarray(beta, F32), columns)


def is_number(beta: object) -> bool:
  """Whether it is a single number that is known now, no array."""
  return isinstance(beta, int | float | np.number) and not isinstance(beta, bool)


def check(beta: object) -> None:
  """Checks that beta is a finite number or an array; of a traced array only that it has numbers.

  Raises:
    ValueError: It is not.
  """
  is_array = isinstance(beta, jax.Array | np.ndarray) and jnp.issubdtype(beta.dtype, jnp.number)
  is_known = is_number(beta) or isinstance(beta, np.ndarray)
  if not (is_array or is_number(beta)) or (is_known and not np.all(np.isfinite(beta))):
    raise ValueError(
      'beta must be a finite number (0 is standard attention, 1 is LASER), or an array of such '
      f'numbers; got {beta!r}'
    )


def times(x: Array, beta: Array | None) -> Array:
  """Returns x beta; x for LASER."""
  return x if beta is None else x * beta


def over(x: Array | float, beta: Array | None) -> Array | float:
  """Returns x / beta; x for LASER."""
  return x if beta is None else x / beta


def excess(e: Array, beta: Array) -> Array:
  """Returns D(e); see this file's head."""
  w = beta * e
  series = jnp.polyval(jnp.array(_SERIES[::-1], F32), w)
  is_small = abs(w) < _SERIES_BELOW
  far = jnp.where(is_small, 1.0, jnp.maximum(w, -1 + 2.0**-24))  # At -1 the logarithm has no end.
  return jnp.where(is_small, e * e * series, ((1 + far) * jnp.log1p(far) - far) / beta / beta)
