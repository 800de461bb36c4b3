"""The attention of two experiments alone, measured in turns by length, on one device."""

import functools
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp

from laser_pax.costs import rounds, timing
from laser_pax.layers.attention_paths import Path
from laser_pax.ops import choice

# The calls of a turn take about so long together.
TURN_SECONDS = 0.05
FORWARD, BOTH = 'forward', 'forward and backward'


def default_lengths(path: Path) -> list[int]:
  """Returns 1, 2, 4 and 8 times the length that an experiment trains on."""
  return [factor * path.case.lengths[0] for factor in (1, 2, 4, 8)]


def kernel(path: Path, length: int) -> choice.Kernel:
  """Returns the name of the kernel that serves at a length."""
  return choice.choose(path.case._replace(lengths=(length, length)), path.kernel).kernel


def measure(
  paths: Mapping[str, Path], lengths: Sequence[int], positions: int, num_rounds: int
) -> Iterator[dict]:
  """Yields the measurements of each length, forward alone and with the backward pass.

  Queries, keys and values are random, and of unit variance, as are the cotangents.

  Args:
    paths: The attention that each experiment takes, by the experiment's name.
    lengths: Numbers of queries, which are those of keys too.
    positions: Positions of a call: a length T has positions / T rows, at least one.
    num_rounds: Number of rounds.
  """
  for length, what in itertools.product(lengths, (FORWARD, BOTH)):
    batch = max(1, positions // length)
    calls = {name: _call(path, what, batch, length) for name, path in paths.items()}
    numbers = {name: timing.calls_of_a_turn(call, TURN_SECONDS) for name, call in calls.items()}
    turns = {
      name: functools.partial(timing.seconds, call, numbers[name]) for name, call in calls.items()
    }
    taken = rounds.in_turns(turns, num_rounds)
    yield {
      'pass': what,
      'length': length,
      'rows': batch,
      'heads': {name: path.num_heads for name, path in paths.items()},
      'head_size': {name: path.case.head_size for name, path in paths.items()},
      'dtype': {name: jnp.dtype(path.case.dtype).name for name, path in paths.items()},
      'kernel': {name: kernel(path, length) for name, path in paths.items()},
      'seconds': {name: statistics.median(each) for name, each in taken.items()},
      'rounds': taken,
    }


def _call(path: Path, what: str, batch: int, length: int) -> functools.partial:
  """Compiles one pass of an attention; returns its call on random arrays."""
  case, n = path.case, path.num_heads
  sizes = (case.head_size, case.head_size, case.value_size, case.value_size)
  query, key, value, cotangent = (
    jax.random.normal(random_key, (batch, length, n, size), case.dtype)
    for random_key, size in zip(jax.random.split(jax.random.PRNGKey(0), 4), sizes, strict=True)
  )
  query = query * case.head_size**-0.5
  segment_ids = jnp.ones((batch, length), jnp.int32) if case.has_segments else None
  if what == FORWARD:
    function, arrays = path.attention, (query, key, value, segment_ids)
  else:
    function = timing.with_gradients(path.attention)
    arrays = (query, key, value, cotangent, segment_ids)
  return functools.partial(jax.jit(function).lower(*arrays).compile(), *arrays)
