"""LASER for any experiment: one mixin in front of the standard twin."""

from laser_pax import ops
from laser_pax.layers import use_laser


class LaserMixin:
  """Turns a standard experiment into its LASER twin, which differs in the attention alone.

  `class C4Laser2B(LaserMixin, C4Standard2B)` replaces every attention of the model by its LASER
  form. The variables are the same, so the twins can load each other's checkpoints.

  Attributes:
    NUMERICS: The way in which LASER is computed (docs/numerics.md). 'exact' is accurate in bfloat16
      for values of any size. 'paper' is the paper's Algorithm 1 to the letter.
  """

  NUMERICS: ops.Numerics = 'exact'  # [ours]

  def task(self):
    """Returns the standard twin's task with LASER attention."""
    task_p = super().task()
    use_laser(task_p.model, self.NUMERICS)
    return task_p
