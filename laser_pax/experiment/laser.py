"""LASER for any experiment: one mixin in front of the standard twin."""

from typing import Literal

from laser_pax import ops
from laser_pax.layers import use_laser


class LaserMixin:
  r"""Turns a standard experiment into its LASER twin, which differs in the attention alone.

  `class C4Laser2B(LaserMixin, C4Standard2B)` replaces every attention of the model by its LASER
  form. The variables are the same, so the twins can load each other's checkpoints.

  Attributes:
    NUMERICS: The way in which LASER is computed (docs/numerics.md). 'exact' is accurate in bfloat16
      for values of any size. 'paper' is the paper's Algorithm 1 to the letter. 'unshifted' is that
      without its shift, and overflows (docs/ablations.md).
    BETA: None for the paper's LASER. A number leads from standard attention (0) through LASER (1)
      to the greatest value: O = log(P exp(BETA V)) / BETA (docs/laser.md). 'learned' makes it a
      variable for each head and channel, which the standard twin has not.
  """

  NUMERICS: ops.Numerics = 'exact'  # [ours]
  BETA: float | Literal['learned'] | None = None

  def task(self):
    """Returns the standard twin's task with LASER attention."""
    task_p = super().task()
    use_laser(task_p.model, self.NUMERICS, self.BETA)
    return task_p

  def describe(self):
    """Returns the standard twin's rows of `show`; and beta's, where there is one."""
    rows = super().describe()
    if self.BETA is not None:
      learned = 'learned for each head and channel, 1 at the start'
      rows['beta'] = learned if self.BETA == 'learned' else f'{self.BETA:g}'
    return rows
