"""The compiler's messages about steps that do not fit."""

import pytest

from laser_pax.costs import compiler


@pytest.mark.parametrize(
  ('message', 'required'),
  [
    ('Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm.', 17.5 * 2**30),
    (
      'unlikely to have enough device memory. Requires 259.57G, has 14.96G available.',
      259.57 * 2**30,
    ),
    ('Allocation (size=34359738368) would exceed memory (size=17179869184)', 2**35),
    ('something else', None),
  ],
)
def test_a_message_gives_the_bytes_that_a_step_requires(message, required):
  assert compiler._required_bytes(message) == (required and round(required))
