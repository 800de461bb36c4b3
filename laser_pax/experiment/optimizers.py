"""Optimisers and schedules, built from those of PAX."""

from praxis import optimizers, pax_fiddle, schedules

from laser_pax.experiment import checks


def set_adamw(
  task_p: pax_fiddle.Config,
  *,
  learning_rate: float,
  weight_decay: float,
  beta1: float,
  beta2: float,
  epsilon: float,
  clip_gradient_norm: float,
  warmup_steps: int,
  num_train_steps: int,
) -> None:
  """Sets AdamW with linear warm-up and cosine decay to zero at the last step [paper].

  At update t the learning rate is lr(t) = learning_rate x schedule(t), with the schedule of
  `warmup_cosine`. The trajectory is that of optax.adamw. PAX's Adam also caps each update's root
  mean square at 1, and replaces infinite gradients by zeros: both are switched off. All weights
  decay but those of layer norms, which Praxis marks.

  Args:
    task_p: The task to change.
    learning_rate: Peak of the learning rate.
    weight_decay: Decoupled weight decay; it is multiplied by lr(t).
    beta1: Decay of the first moment.
    beta2: Decay of the second moment.
    epsilon: Added to the root of the second moment.
    clip_gradient_norm: Greatest global norm of gradients after clipping. 0 switches clipping off.
    warmup_steps: Steps of linear warm-up.
    num_train_steps: Steps of the whole training. The number is also set on the task.

  Raises:
    UserError: The warm-up does not end before the training.
  """
  checks.check_schedule(warmup_steps, num_train_steps)
  task_p.train.num_train_steps = num_train_steps
  learner = task_p.train.learner
  learner.loss_name = 'total_loss'
  learner.repeat_prefix_sep = '_'  # PAX's own '#' does not survive some file systems.
  learner.optimizer = pax_fiddle.Config(
    optimizers.Adam,
    beta1=beta1,
    beta2=beta2,
    epsilon=epsilon,
    clip_threshold=0.0,
    maybe_inf_to_nan=False,
    decoupled_weight_decay=weight_decay,
    clip_gradient_norm_to_value=clip_gradient_norm,
    learning_rate=learning_rate,
    lr_schedule=warmup_cosine(warmup_steps, num_train_steps),
  )


def warmup_cosine(warmup_steps: int, num_train_steps: int) -> pax_fiddle.Config:
  """Returns the schedule of linear warm-up and cosine decay to zero.

  t is the number of updates so far, W is warmup_steps, and T is num_train_steps:

      schedule(t) = t / W                                     for t < W
      schedule(t) = (1 + cos(pi (t - W) / (T - W))) / 2       after

  Args:
    warmup_steps: W, the steps of linear warm-up.
    num_train_steps: T, the steps of the whole training.
  """
  return pax_fiddle.Config(
    schedules.LinearRampupCosineDecay,
    warmup_steps=warmup_steps,
    decay_start=warmup_steps,
    decay_end=num_train_steps,
    min_ratio=0.0,
    max=1.0,
  )
