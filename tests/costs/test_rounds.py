"""Turns of a benchmark, and the ratio of what takes them."""

import pytest

from laser_pax.costs import rounds


def test_each_round_begins_with_another_one():
  taken = []
  turns = {name: lambda name=name: taken.append(name) or len(taken) for name in 'abc'}
  figures = rounds.in_turns(turns, 4)
  assert ''.join(taken) == 'abcbcacababc'
  assert figures == {'a': [1, 6, 8, 10], 'b': [2, 4, 9, 11], 'c': [3, 5, 7, 12]}


def test_what_slows_a_whole_round_leaves_the_ratio_as_it_is():
  base, slowed = [1.0, 2.0, 4.0, 8.0], [1.0, 20.0, 400.0, 8.0]
  taken = [1.1 * x for x in slowed]
  assert rounds.ratio(taken, slowed).median == pytest.approx(1.1)
  assert rounds.ratio(slowed, base) == (5.5, 1.0, 32.5, [1.0, 10.0, 100.0, 1.0])


def test_one_round_has_no_spread():
  assert rounds.ratio([3.0], [2.0]) == (1.5, 1.5, 1.5, [1.5])
