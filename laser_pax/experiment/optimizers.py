"""Optimisers and schedules, built from those of PAX."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from praxis import base_layer, optimizers, pax_fiddle, py_utils, schedules

from laser_pax.experiment import checks
from laser_pax.layers.beta import UNDECAYED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hyperparameters:
  """What an optimiser and its schedule are set to.

  Attributes:
    learning_rate: Peak of the learning rate. At update t it is lr(t) = learning_rate x schedule(t),
      with the schedule of `warmup_cosine`.
    weight_decay: Decoupled weight decay; it is multiplied by lr(t).
    beta1: Decay of the first moment.
    beta2: Decay of the second moment.
    epsilon: Added to the root of the second moment.
    clip_gradient_norm: Greatest global norm of gradients after clipping. 0 switches clipping off.
    warmup_steps: Steps of linear warm-up.
    num_train_steps: Steps of the whole training. The number is also set on the task.
  """

  learning_rate: float
  weight_decay: float
  beta1: float
  beta2: float
  epsilon: float = 1e-8
  clip_gradient_norm: float = 0.0
  warmup_steps: int
  num_train_steps: int

  @classmethod
  def of(cls, experiment: Any) -> 'Hyperparameters':
    """Returns those of an experiment's attributes."""
    return cls(
      learning_rate=experiment.LEARNING_RATE,
      weight_decay=experiment.WEIGHT_DECAY,
      beta1=experiment.ADAM_BETA1,
      beta2=experiment.ADAM_BETA2,
      epsilon=experiment.ADAM_EPSILON,
      clip_gradient_norm=experiment.CLIP_GRADIENT_NORM_TO_VALUE,
      warmup_steps=experiment.WARMUP_STEPS,
      num_train_steps=experiment.NUM_TRAIN_STEPS,
    )


def set_adamw(task_p: pax_fiddle.Config, hyperparameters: Hyperparameters) -> None:
  """Sets AdamW with linear warm-up and cosine decay to zero at the last step [paper].

  The trajectory is that of optax.adamw. PAX's Adam also caps each update's root mean square at 1,
  and replaces infinite gradients by zeros: both are switched off. All weights decay but those of
  layer norms, which Praxis marks.

  Args:
    task_p: The task to change.
    hyperparameters: What it is set to.

  Raises:
    UserError: The warm-up does not end before the training.
  """
  optimizer = pax_fiddle.Config(
    optimizers.Adam,
    clip_threshold=0.0,
    maybe_inf_to_nan=False,
    decoupled_weight_decay=hyperparameters.weight_decay,
  )
  _set_optimizer(task_p, optimizer, hyperparameters)


def set_nadamw(task_p: pax_fiddle.Config, hyperparameters: Hyperparameters) -> None:
  """Sets AlgoPerf's NAdamW, with the schedule of `set_adamw`.

  All weights decay, biases and scales too, but for a learned beta of LASER. AlgoPerf adds 1e-6 to
  the norm of the gradients before it divides by it; PAX does not.

  Args:
    task_p: The task to change.
    hyperparameters: What it is set to.

  Raises:
    UserError: The warm-up does not end before the training.
  """
  optimizer = pax_fiddle.Config(NAdamW, decay_of_all_weights=hyperparameters.weight_decay)
  _set_optimizer(task_p, optimizer, hyperparameters)


def set_lamb(task_p: pax_fiddle.Config, hyperparameters: Hyperparameters) -> None:
  """Sets LAMB, with the schedule and the clipping of `set_adamw`.

  The learning rate is relative to a weight's norm. All weights decay but those of layer norms,
  before the trust ratio.

  Args:
    task_p: The task to change.
    hyperparameters: What it is set to.

  Raises:
    UserError: The warm-up does not end before the training.
  """
  optimizer = pax_fiddle.Config(Lamb, trusted_weight_decay=hyperparameters.weight_decay)
  _set_optimizer(task_p, optimizer, hyperparameters)


def _set_optimizer(
  task_p: pax_fiddle.Config, optimizer: pax_fiddle.Config, hyperparameters: Hyperparameters
) -> None:
  """Sets an optimiser with what all have in common: moments, clipping, schedule and steps."""
  warmup_steps, steps = hyperparameters.warmup_steps, hyperparameters.num_train_steps
  checks.check_schedule(warmup_steps, steps)
  task_p.train.num_train_steps = steps
  learner = task_p.train.learner
  learner.loss_name = 'total_loss'
  learner.repeat_prefix_sep = '_'  # PAX's own '#' does not survive some file systems.
  optimizer.beta1, optimizer.beta2 = hyperparameters.beta1, hyperparameters.beta2
  optimizer.epsilon = hyperparameters.epsilon
  optimizer.clip_gradient_norm_to_value = hyperparameters.clip_gradient_norm
  optimizer.learning_rate = hyperparameters.learning_rate
  optimizer.lr_schedule = warmup_cosine(warmup_steps, steps)
  learner.optimizer = optimizer


def init_moments(weights: Any) -> py_utils.NestedMap:
  """Returns the state of an Adam: the number of updates, and two moments of each weight."""
  m, v = (jax.tree.map(jnp.zeros_like, weights) for _ in range(2))
  return py_utils.NestedMap(count=jnp.zeros([], jnp.int32), m=m, v=v)


def moments_partition_spec(hparams: Any) -> py_utils.NestedMap:
  """Returns how the mesh divides the state of `init_moments`: moments as their weights."""
  specs = jax.tree.map(lambda spec: dataclasses.replace(spec, init=None), hparams)
  count = base_layer.WeightHParams(shape=[], init=None, dtype=jnp.int32, collections=None)
  return py_utils.NestedMap(count=count, m=specs, v=specs)


class _WithOwnDecay(optimizers.BaseOptimizer):
  """An optimiser that decays weights itself, and knows which of them it spares."""

  def get_grad_transformation(
    self, var_weight_hparams: Any = None, include_ema: bool = True
  ) -> optimizers.ShardedGradientTransformation:
    """Returns the base's transformation; notes which of the weights decay."""
    self._decays = jax.tree.map(lambda w: not self._spared(w), var_weight_hparams)
    return super().get_grad_transformation(var_weight_hparams, include_ema)

  def _spared(self, hparams: base_layer.WeightHParams) -> bool:
    """Whether the weight that is described does not decay."""
    raise NotImplementedError

  def _decaying(self, weights: Any) -> Any:
    """Returns the weights, with zeros in place of those that do not decay."""
    if self._decays is None:
      return weights

    def decaying(w, decays):  # PAX leaves out the weights of another repeat prefix.
      return w if decays or py_utils.is_optax_masked_node(w) else jnp.zeros_like(w)

    return jax.tree.map(decaying, weights, self._decays, is_leaf=py_utils.is_optax_masked_node)


class NAdamW(_WithOwnDecay):
  r"""Adam with Nesterov momentum and decoupled weight decay, as AlgoPerf has it.

  Update t = 1, 2, ... of the weights w by their gradient g is:

      m = b1 m + (1 - b1) g                      v = b2 v + (1 - b2) g^2
      n = (b1 m + (1 - b1) g) / (1 - b1^t)       d = v / (1 - b2^t)
      w = w - lr(t - 1) (n / (sqrt(d) + epsilon) + decay w)

  optax.nadamw is another optimiser: it divides m by 1 - b1^(t+1), and g by 1 - b1^t.

  Attributes:
    beta1: b1, decay of the first moment.
    beta2: b2, decay of the second moment.
    epsilon: Added to the root of the second moment.
    decay_of_all_weights: Weight decay. PAX's `decoupled_weight_decay` spares layer norms; this one
      spares only what AlgoPerf's models lack, a learned beta of LASER.
  """

  beta1: float = 0.9
  beta2: float = 0.999
  epsilon: float = 1e-8
  decay_of_all_weights: float = 0.0

  def _spared(self, hparams: base_layer.WeightHParams) -> bool:
    return UNDECAYED in (hparams.collections or [])

  def _get_raw_grad_transformation(self, lr) -> optimizers.ShardedGradientTransformation:
    """Returns the transformation of gradients to the changes of the weights."""
    b1, b2 = self.beta1, self.beta2

    def update(gradients, state, weights):
      steps = state.count + 1
      m = jax.tree.map(lambda g, m: b1 * m + (1 - b1) * g, gradients, state.m)
      v = jax.tree.map(lambda g, v: b2 * v + (1 - b2) * g**2, gradients, state.v)
      first, second = _one_minus_power(b1, steps), _one_minus_power(b2, steps)

      def change(g, m, v, w):
        nesterov = (b1 * m + (1 - b1) * g) / first
        step = nesterov / (jnp.sqrt(v / second) + self.epsilon)
        return -lr(state.count) * (step + self.decay_of_all_weights * w)

      changes = jax.tree.map(change, gradients, m, v, self._decaying(weights))
      return changes, py_utils.NestedMap(count=steps, m=m, v=v)

    return optimizers.ShardedGradientTransformation(init_moments, update, moments_partition_spec)


class Lamb(_WithOwnDecay):
  r"""LAMB (arXiv 1904.00962), as optax.lamb has it.

  Update t = 1, 2, ... of a variable w by its gradient g is:

      m = b1 m + (1 - b1) g                      v = b2 v + (1 - b2) g^2
      u = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + epsilon) + decay w
      w = w - lr(t - 1) u |w| / |u|              |w| / |u| is 1 if either is 0

  Norms are over one variable; of a loop's stacked variables, over one layer's. PAX's own Lamb lacks
  what its optimisers on a mesh need, a description of its state.

  Attributes:
    beta1: b1, decay of the first moment.
    beta2: b2, decay of the second moment.
    epsilon: Added to the root of the second moment.
    trusted_weight_decay: Weight decay, before the trust ratio. PAX's `decoupled_weight_decay` comes
      after it. Both spare layer norms, and a learned beta of LASER.
  """

  beta1: float = 0.9
  beta2: float = 0.999
  epsilon: float = 1e-6
  trusted_weight_decay: float = 0.0

  def _spared(self, hparams: base_layer.WeightHParams) -> bool:
    return base_layer.var_skip_lp_regularization(hparams)

  def _get_raw_grad_transformation(self, lr) -> optimizers.ShardedGradientTransformation:
    """Returns the transformation of gradients to the changes of the weights."""
    adam = optax.scale_by_adam(self.beta1, self.beta2, self.epsilon)
    trust = optax.scale_by_trust_ratio()

    def update(gradients, state, weights):
      moments = optax.ScaleByAdamState(state.count, state.m, state.v)
      steps, moments = adam.update(gradients, moments)
      decaying = self._decaying(weights)
      steps = jax.tree.map(lambda u, w: u + self.trusted_weight_decay * w, steps, decaying)
      steps, _ = trust.update(steps, trust.init(weights), weights)
      changes = jax.tree.map(lambda u: -lr(state.count) * u, steps)
      return changes, py_utils.NestedMap(count=moments.count, m=moments.mu, v=moments.nu)

    return optimizers.ShardedGradientTransformation(init_moments, update, moments_partition_spec)


def _one_minus_power(base: float, exponent: jax.Array) -> jax.Array:
  """Returns 1 - base^exponent, also where float32 has few digits of it."""
  return -jnp.expm1(exponent * math.log(base)) if base else jnp.ones([])


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
