"""Corrupted files end in one of two right ways; see tests/faults/fuzz.py for thousands of them."""

import random

import pytest

from tests.faults import corruptions, fuzz, oracle
from tests.support import failing_work

# In each stage so many inputs, of a seed that the long runs do not use.
SEED = 7
INPUTS = {'prepare': 60, 'vocab': 40, 'train': 5}


@pytest.mark.parametrize('stage', INPUTS)
def test_each_corrupted_input_is_accepted_exactly_or_refused_by_name(stage):
  numbers = [number for number in range(1_000) if fuzz.stage_of(number) == stage]
  results = [fuzz.run_one(number, SEED) for number in numbers[: INPUTS[stage]]]
  assert not [result for result in results if result.end == 'fault']
  assert 'refused' in {result.end for result in results}


def test_an_input_is_decided_by_its_number_and_the_seed():
  for number in (0, 5):
    first, again = (fuzz.run_one(number, SEED)._replace(text='') for _ in 'ab')
    assert first == again
  drawn = {corruptions.corrupt(b'0123456789' * 9, b'other', random.Random(i)) for i in range(99)}
  assert len(drawn) > 50


@pytest.mark.parametrize(
  'spoil', [lambda data: oracle.Content(['one more', *data.texts], data.blank), None]
)
def test_a_wrong_end_is_seen(monkeypatch, spoil):
  """With a reader that expects something else, the harness must report faults."""
  read = oracle.read

  def other(*args):
    content = read(*args)
    if spoil is None:
      raise oracle.RefusedError('refused')
    return spoil(content)

  monkeypatch.setattr(oracle, 'read', other)
  ends = {fuzz.run_one(number, SEED).end for number in range(5)}
  assert 'fault' in ends


def test_a_process_that_ends_or_hangs_is_a_fault_of_its_input():
  results = list(fuzz.run(range(5), 0, 1.0, work=failing_work.work))
  assert [result.number for result in results] == [0, 1, 2, 3, 4]
  assert [result.end for result in results] == [
    'accepted',
    'fault',
    'accepted',
    'fault',
    'accepted',
  ]
  assert results[1].text == 'its process ended with code 9'
  assert results[3].text.startswith('no end within')
