"""LASER for any experiment: one mixin over the standard twin."""

from laser_pax.layers import use_laser


class LaserMixin:
  """Makes a standard experiment its LASER twin: the same but for the attention.

  `class C4Laser2B(LaserMixin, C4Standard2B)` replaces every attention of the model by its LASER
  form, with the same variables, so that checkpoints are interchangeable.

  Attributes:
    NUMERICS: How LASER is computed: 'exact', which is accurate in bfloat16 for values of any size,
      or 'paper', its Algorithm 1 to the letter (docs/numerics.md).
  """

  NUMERICS = 'exact'  # [ours]

  def task(self):
    """Returns the standard twin's task with LASER attention."""
    task_p = super().task()
    use_laser(task_p.model, self.NUMERICS)
    return task_p
