"""Measurements in turns, and their ratio; imports the standard library alone.

Whatever else a machine does, it does to all in equal parts if they take turns.
"""

import collections
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

_Name = TypeVar('_Name', bound=Hashable)


def in_turns(turns: Mapping[_Name, Callable[[], float]], rounds: int) -> dict[_Name, list[float]]:
  """Lets each take one turn a round, and returns the figures of its turns, by name.

  Each round begins with another one, so that each comes after each of the others.

  Args:
    turns: A function that takes a turn and returns its figure, by name.
    rounds: Number of rounds.
  """
  order, taken = collections.deque(turns), {name: [] for name in turns}
  for _ in range(rounds):
    for name in order:
      taken[name].append(turns[name]())
    order.rotate(-1)
  return taken


class Ratio(NamedTuple):
  """The ratio of two measurements, round by round.

  Attributes:
    median: The median of the rounds' ratios.
    low: Their first quartile.
    high: Their third quartile.
    rounds: The ratio of each round.
  """

  median: float
  low: float
  high: float
  rounds: list[float]


def ratio(taken: Sequence[float], base: Sequence[float]) -> Ratio:
  """Returns the ratio of the figures of two that took turns.

  Args:
    taken: Figure of each round.
    base: Figure that each is divided by, of the same rounds.
  """
  each = [a / b for a, b in zip(taken, base, strict=True)]
  quartiles = statistics.quantiles(each, method='inclusive') if len(each) > 1 else 3 * each
  return Ratio(statistics.median(each), quartiles[0], quartiles[-1], each)
