"""What the compiler says of steps that do not fit."""

import pytest

from laser_pax.costs import compiler


@pytest.mark.parametrize(
  ('message', 'needed'),
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
def test_what_a_step_needs_that_does_not_fit(message, needed):
  assert compiler._needed(message) == (needed and round(needed))
