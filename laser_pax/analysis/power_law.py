r"""Power laws of the loss in the number of parameters, with bands, and what LASER saves.

    L(N) = E + A N^-alpha                 E >= 0, A >= 0, alpha > 0

The fit minimises the sum of squares of (L(N_i) - L_i) / L_i over all points, one for each run. For
a given alpha that is linear in E and A, so the search has one dimension and misses no minimum. With
three sizes E is taken as 0: three losses fit any E, A and alpha, whatever the noise [ours].

Bands are 95%, by a bootstrap: each draw adds noise to the fitted losses, with the residuals' size,
and is fitted again. The noise's variance is itself drawn, from the residuals' by their degrees of
freedom, because few points know it badly. For a straight line that gives Student's intervals.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from laser_pax.errors import UserError

DRAWS = 2_000
SEED = 0
BAND = (2.5, 97.5)
FEWEST_SIZES = 3
# Sizes from which on the limit E is fitted.
SIZES_FOR_LIMIT = 4
_ALPHAS = np.geomspace(3e-3, 3.0, 33)
# Each turn looks closer around the best alpha, until it is known to a hundred-thousandth.
_REFINEMENTS, _CLOSER = 8, 9


class Point(NamedTuple):
  """The loss of one run.

  Attributes:
    parameters: N, the parameters of its model.
    loss: Its loss, in nats.
    variant: The kind of its attention, such as 'standard'.
    seed: Its seed.
  """

  parameters: float
  loss: float
  variant: str
  seed: int | None = None


class Interval(NamedTuple):
  """A figure and its 95% band."""

  value: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Fit:
  """A power law, and the draws of its bootstrap.

  Attributes:
    sizes: The sizes of its points, ascending, each once.
    has_limit: Whether E was fitted. Otherwise it is 0.
    limit: E.
    factor: A.
    exponent: alpha.
    draws: [DRAWS, 3], E, A and alpha of each draw.
  """

  sizes: np.ndarray
  has_limit: bool
  limit: float
  factor: float
  exponent: float
  draws: np.ndarray

  def loss(self, parameters: float | np.ndarray) -> np.ndarray:
    """Returns L(N)."""
    return self.limit + self.factor * np.asarray(parameters, float) ** -self.exponent

  def losses(self, parameters: np.ndarray) -> np.ndarray:
    """Returns L(N) of each draw, [DRAWS, N]."""
    limit, factor, exponent = (self.draws[:, i, None] for i in range(3))
    return limit + factor * np.asarray(parameters, float) ** -exponent

  def intervals(self) -> dict[str, Interval]:
    """Returns E, A and alpha with their bands, by these names."""
    values = {'E': self.limit, 'A': self.factor, 'alpha': self.exponent}
    return {
      name: Interval(value, *_band(self.draws[:, i]))
      for i, (name, value) in enumerate(values.items())
    }


def read(file: pathlib.Path) -> list[Point]:
  """Reads JSON lines with `parameters`, `loss`, `variant` and perhaps `seed`.

  Raises:
    UserError: The file cannot be read, or a line is no such point.
  """
  try:
    lines = file.read_text().splitlines()
  except (OSError, UnicodeDecodeError) as e:
    raise UserError(f'{file} cannot be read: {e}') from e
  points = []
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      fields = json.loads(line)
      point = Point(
        float(fields['parameters']),
        float(fields['loss']),
        str(fields['variant']),
        fields.get('seed'),
      )
    except (ValueError, KeyError, TypeError) as e:
      raise UserError(
        f'{file}, line {number}: expected {{"parameters": N, "loss": L, "variant": NAME, "seed": '
        f'S}}; {type(e).__name__}: {e}'
      ) from e
    if not (0 < point.parameters < math.inf and 0 < point.loss < math.inf):
      raise UserError(f'{file}, line {number}: expected parameters and a loss above 0, got {line}')
    points.append(point)
  return points


def fit_each(points: Sequence[Point]) -> dict[str, Fit]:
  """Fits a power law to each variant, all of one form: E is fitted if all have enough sizes.

  Raises:
    UserError: A variant has fewer than three sizes, or its losses do not fall with the size.
  """
  by_variant: dict[str, list[Point]] = {}
  for point in points:
    by_variant.setdefault(point.variant, []).append(point)
  sizes = {name: len({p.parameters for p in own}) for name, own in by_variant.items()}
  for name, count in sizes.items():
    if count < FEWEST_SIZES:
      raise UserError(f'a power law needs {FEWEST_SIZES} sizes or more; {name} has {count}')
  has_limit = min(sizes.values()) >= SIZES_FOR_LIMIT
  return {name: _fit(own, has_limit) for name, own in by_variant.items()}


def fit(points: Sequence[Point]) -> Fit:
  """Fits a power law to the points of one variant; raises as `fit_each` does."""
  (law,) = fit_each(points).values()
  return law


def _fit(points: Sequence[Point], has_limit: bool) -> Fit:
  parameters = np.array([p.parameters for p in points])
  losses = np.array([p.loss for p in points])
  sizes = np.unique(parameters)
  scale = math.exp(np.log(parameters).mean())  # N is counted in this, so that A is no tiny number.
  x = parameters / scale
  best = _solve(x, losses[None], has_limit)[0]
  if not _ALPHAS[0] < best[2] < _ALPHAS[-1]:
    raise UserError(
      f'the losses of {points[0].variant} follow no power law: the best alpha is not between '
      f'{_ALPHAS[0]:g} and {_ALPHAS[-1]:g}. Do they fall as models grow?'
    )
  draws = _bootstrap(x, losses, best, has_limit)
  for values in (best[None], draws):
    values[:, 1] *= scale ** values[:, 2]
  return Fit(sizes, has_limit, *best.tolist(), draws)


def _bootstrap(x: np.ndarray, losses: np.ndarray, best: np.ndarray, has_limit: bool) -> np.ndarray:
  """Returns the parameters of each draw, [DRAWS, 3]."""
  rng = np.random.default_rng(SEED)
  fitted = best[0] + best[1] * x ** -best[2]
  freedom = max(1, len(x) - (3 if has_limit else 2))
  squares = (((fitted - losses) / losses) ** 2).sum()
  sigma = np.sqrt(squares / rng.chisquare(freedom, (DRAWS, 1)))
  noisy = fitted * (1 + sigma * rng.standard_normal((DRAWS, len(x))))
  return _solve(x, np.maximum(noisy, 1e-9 * fitted), has_limit)


def _solve(x: np.ndarray, losses: np.ndarray, has_limit: bool) -> np.ndarray:
  """Returns E, A and alpha of each row of losses, [R, 3].

  Args:
    x: [P], sizes.
    losses: [R, P].
    has_limit: Whether E is free.
  """
  rows = np.arange(len(losses))
  alphas = np.broadcast_to(_ALPHAS, (len(losses), len(_ALPHAS)))
  for _ in range(_REFINEMENTS + 1):
    limits, factors, squares = _linear(x, losses, alphas, has_limit)
    best = squares.argmin(1)
    result = np.stack([a[rows, best] for a in (limits, factors, alphas)], axis=-1)
    low = alphas[rows, np.maximum(best - 1, 0)]
    high = alphas[rows, np.minimum(best + 1, alphas.shape[1] - 1)]
    alphas = np.linspace(low, high, _CLOSER, axis=-1)
  return result


def _linear(x: np.ndarray, losses: np.ndarray, alphas: np.ndarray, has_limit: bool) -> tuple:
  """Returns E, A and the sum of squares for each row and each of its alphas, all [R, K].

  E and A minimise the sum of ((E + A u_i) / L_i - 1)^2, with u_i = x_i^-alpha, both at least 0.
  """
  u = x[None, None] ** -alphas[..., None]  # [R, K, P]
  w = 1 / losses[:, None]  # [R, 1, P]
  v = u * w
  ww, vv, vw = (w * w).sum(-1), (v * v).sum(-1), (v * w).sum(-1)
  w1, v1 = w.sum(-1), v.sum(-1)
  alone = v1 / vv
  if has_limit:
    determinant = ww * vv - vw**2
    safe = np.where(determinant > 1e-12 * ww * vv, determinant, np.inf)
    limit = (vv * w1 - vw * v1) / safe
    factor = (ww * v1 - vw * w1) / safe
    is_inside = (limit >= 0) & (factor >= 0)
    limit, factor = np.where(is_inside, limit, 0), np.where(is_inside, factor, alone)
  else:
    limit, factor = np.zeros_like(alone), alone
  squares = ((limit[..., None] * w + factor[..., None] * v - 1) ** 2).sum(-1)
  return limit, factor, squares


class Saving(NamedTuple):
  """What a variant saves against a baseline, at the loss that it reaches with N parameters.

  Attributes:
    parameters: N.
    loss: The variant's loss at N, by its fit.
    multiple: Parameters that the baseline needs for this loss, as a multiple of N. Infinite if the
      baseline never reaches it.
    saved: 1 - 1 / multiple: the share of the baseline's parameters that the variant does without.
  """

  parameters: float
  loss: float
  multiple: Interval
  saved: Interval


def savings(baseline: Fit, variant: Fit) -> list[Saving]:
  """Returns what a variant saves at each of its sizes."""
  result = []
  for size in variant.sizes:
    loss = variant.loss(size)
    value = _parameters_for(
      loss[None], np.array([[baseline.limit, baseline.factor, baseline.exponent]])
    )[0]
    needed = _parameters_for(variant.losses(np.array([size]))[:, 0], baseline.draws)
    multiple = Interval(value / size, *_band(needed / size))
    saved = Interval(*(1 - 1 / m for m in multiple))
    result.append(Saving(float(size), float(loss), multiple, saved))
  return result


def _parameters_for(losses: np.ndarray, laws: np.ndarray) -> np.ndarray:
  """Returns N with L(N) = loss under each law, a row of E, A and alpha; infinity if none has."""
  limit, factor, exponent = laws.T
  rest = losses - limit
  with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
    return np.where(rest > 0, (factor / np.maximum(rest, 1e-300)) ** (1 / exponent), np.inf)


def _band(draws: np.ndarray) -> tuple[float, float]:
  """Returns the 95% band of draws, some of which may be infinite."""
  low, high = np.percentile(draws, BAND, method='nearest')
  return float(low), float(high)
