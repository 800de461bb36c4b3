"""Work of which input 1 ends its process, and input 3 hangs (tests/faults/test_fuzz.py)."""

import os
import time

from tests.faults import fuzz


def work(numbers, seed, results):
  """Takes the place of the fuzz's own work in a child."""
  del seed
  for number in numbers:
    results.send(number)
    if number == 1:
      os._exit(9)
    if number == 3:
      time.sleep(60)
    results.send(fuzz.Result(number, fuzz.stage_of(number), 'none', 'accepted'))
