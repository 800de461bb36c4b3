"""The committed results in tests/golden, which tests compare theirs to."""

import os
import pathlib

FOLDER = pathlib.Path(__file__).parents[1] / 'golden'
REWRITE = 'LASER_PAX_REWRITE_GOLDEN'


def are_rewritten() -> bool:
  """Returns whether this run replaces them by its own results."""
  return bool(os.environ.get(REWRITE))
