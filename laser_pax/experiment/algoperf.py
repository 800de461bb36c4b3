"""What AlgoPerf's workloads share: its NAdamW, with warm-up and cosine."""

from laser_pax.experiment import base, checks, family
from laser_pax.experiment.optimizers import Hyperparameters, set_nadamw


class AlgoPerf(base.Experiment):
  """A workload of AlgoPerf, trained by NAdamW.

  Attributes:
    NUM_TRAIN_STEPS: Steps of the training. The learning rate reaches zero at the last.
    WARMUP_STEPS: Steps of linear warm-up.
    LEARNING_RATE: Peak of the learning rate.
    WEIGHT_DECAY: Decoupled weight decay of all weights.
    ADAM_BETA1: Decay of the first moment.
    ADAM_BETA2: Decay of the second moment.
    ADAM_EPSILON: Added to the root of the second moment.
    CLIP_GRADIENT_NORM_TO_VALUE: Greatest global norm of gradients. 0 switches clipping off.
  """

  WARMUP_STEPS: int
  LEARNING_RATE: float
  WEIGHT_DECAY: float
  ADAM_BETA1: float
  ADAM_BETA2: float
  ADAM_EPSILON = 1e-8
  CLIP_GRADIENT_NORM_TO_VALUE = 0.0

  def set_optimizer(self, task_p: family.Task) -> None:
    """Sets NAdamW and its schedule."""
    set_nadamw(task_p, Hyperparameters.of(self))

  def describe_optimizer(self) -> dict[str, str]:
    """Returns the rows of `show` about the optimiser."""
    return {
      'optimiser': (
        f'NAdamW, betas {self.ADAM_BETA1} and {self.ADAM_BETA2}, epsilon {self.ADAM_EPSILON}, '
        f'weight decay {self.WEIGHT_DECAY} of all weights, gradients clipped to '
        f'{self.CLIP_GRADIENT_NORM_TO_VALUE or "nothing"}'
      ),
      'learning rate': (
        f'0 to {self.LEARNING_RATE} in {self.WARMUP_STEPS:,} steps, then by a cosine to 0 at step '
        f'{self.NUM_TRAIN_STEPS:,}'
      ),
    }

  def check_optimizer(self) -> None:
    """Checks the numbers of the optimiser and its schedule.

    Raises:
      UserError: One is out of its range; the message has the fix.
    """
    checks.check_at_least(self, 0, ('WEIGHT_DECAY', 'CLIP_GRADIENT_NORM_TO_VALUE'))
    checks.check_adam(self.LEARNING_RATE, self.ADAM_BETA1, self.ADAM_BETA2, self.ADAM_EPSILON)
    checks.check_schedule(self.WARMUP_STEPS, self.NUM_TRAIN_STEPS)
