"""One training step whose batch is computed in parts, and PAX's train program for it.

PAX's own accumulation, ShardedStaticAccumulator, takes a step for each part, so that steps, the
learning rate's schedule and clipping all change their meaning. Here a step stays a step.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from paxml import programs, sgf, tasks_lib, trainer_lib
from praxis import base_layer, py_utils, trees

from laser_pax import pax_fixes

# Metrics that count, and so are summed; all others are means, with their weights.
_COUNTS = ('num_predictions',)

NestedMap = py_utils.NestedMap
# (loss_fn, learner, mdl_vars, inputs, prng_key) -> ((loss, GradAuxInfo), gradients), as PAX has it.
GradFn = Callable[..., tuple[Any, Any]]


def train_step(micro_batches: int) -> Callable[..., tuple[Any, trainer_lib.StepFnOutput]]:
  """Returns the function of one step, to be given to PAX's `partitioner.partition`.

  Args:
    micro_batches: K, the parts; the step is that of the whole batch, to rounding. 1: PAX's own.
  """
  if micro_batches == 1:
    return trainer_lib.train_step_single_learner
  return functools.partial(_train_step, micro_batches)


def _train_step(
  micro_batches: int,
  task: tasks_lib.SingleTask,
  state: Any,
  prng_key: jax.Array,
  inputs: NestedMap,
  fprop_dtype: jnp.dtype,
  var_weight_hparams: Any,
  static_args: Any = None,
) -> tuple[Any, trainer_lib.StepFnOutput]:
  """As PAX's train_step_single_learner, in `micro_batches` parts."""
  masks = trainer_lib.get_excluded_var_masks(var_weight_hparams, task.learners[0])
  grad_fn = accumulate(
    pax_fixes.default_grad_fn(*masks),
    micro_batches,
    functools.partial(_like_variables, task.model, var_weight_hparams, masks),
  )
  return trainer_lib.train_step_single_learner(
    task, state, prng_key, inputs, fprop_dtype, var_weight_hparams, static_args, grad_fn=grad_fn
  )


def _like_variables(model: Any, hparams: Any, masks: tuple[Any, Any], gradients: Any) -> Any:
  """Asks that each gradient be spread over the devices as its variable is."""
  if model.ici_mesh_shape is None:
    return gradients
  specs = base_layer.var_partition_specs(hparams, model.ici_mesh_shape, model.mesh_axis_names)
  specs = jax.tree.map(lambda grad, opt, s: {} if grad and opt else s, *masks, specs)
  return jax.tree.map(py_utils.with_sharding_constraint, gradients, specs)


def accumulate(
  grad_fn: GradFn, micro_batches: int, constrain: Callable[[Any], Any] = lambda x: x
) -> GradFn:
  """Returns a gradient function that calls `grad_fn` on one part of the rows after another.

  With w_k the loss's weight in part k (its tokens) and g_k its gradient, the gradient is
  sum_k w_k g_k / sum_k w_k, summed in float32; likewise the loss and every weighted scalar.

  Args:
    grad_fn: Of PAX's GradFnProtocol.
    micro_batches: K; the rows of the batch must be divisible by it.
    constrain: Applied to the sum of gradients after each part, for its sharding.
  """

  def micro_grad_fn(loss_fn, learner, mdl_vars, inputs, prng_key):
    def of_part(part, key):
      return grad_fn(loss_fn=loss_fn, learner=learner, mdl_vars=mdl_vars, inputs=part, prng_key=key)

    def add(total, part_and_key):
      ((loss, info), gradients) = of_part(*part_and_key)
      weight = jnp.asarray(1.0 if info.loss_weight is None else info.loss_weight, jnp.float32)
      weighted = jax.tree.map(lambda t, g: t + weight * g.astype(t.dtype), total, gradients)
      return constrain(weighted), (loss, weight, info.aux_info)

    parts = jax.tree.map(functools.partial(_split_rows, micro_batches), inputs)
    keys = jax.random.split(prng_key, micro_batches)
    first = jax.tree.map(lambda x: x[0], (parts, keys))
    _, shapes = jax.eval_shape(of_part, *first)
    zeros = constrain(jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes))
    total, (losses, weights, aux) = jax.lax.scan(add, zeros, (parts, keys))
    weight = weights.sum()
    gradients = jax.tree.map(lambda t, s: (t / _positive(weight)).astype(s.dtype), total, shapes)
    info = sgf.GradAuxInfo(loss_weight=weight, aux_info=_merge(aux, weights))
    return (_mean(losses, weights), info), gradients

  return micro_grad_fn


def _split_rows(micro_batches: int, x: jax.Array) -> jax.Array:
  """[B, ...] to [K, B / K, ...], part k having the rows k, k + K, ...

  A device that holds neighbouring rows then holds its share of each part, and sends none.
  """
  return jnp.moveaxis(x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:]), 1, 0)


def _join_rows(x: jax.Array) -> jax.Array:
  """[K, B / K, ...] back to [B, ...]."""
  return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])


def _positive(weight: jax.Array) -> jax.Array:
  return jnp.maximum(weight, 1e-8)


def _mean(values: jax.Array, weights: jax.Array) -> jax.Array:
  """The weighted mean over the parts: values [K, ...], weights [K]."""
  dtype, values = values.dtype, values.astype(jnp.float32)
  return (jnp.tensordot(weights, values, axes=1) / _positive(weights.sum())).astype(dtype)


def _merge(aux: tuple[Any, ...], weights: jax.Array) -> tuple[Any, ...]:
  """What PAX's loss function gives beside the loss, of the whole batch: leaves [K, ...] to [...].

  Summaries and the model's own updates (of moving averages, say) are means over the parts, or the
  last part's where they are no real numbers.
  """
  mean_loss, scalars, updated_vars, summaries, per_example, clu_metrics = aux

  def mean_or_last(x):
    return _mean(x, jnp.ones_like(weights)) if jnp.issubdtype(x.dtype, jnp.floating) else x[-1]

  merged_scalars = type(scalars)()
  for name, (value, weight) in scalars.items():
    if name in _COUNTS:
      merged_scalars[name] = (value.sum(0), weight[-1])
    else:
      total = weight.astype(jnp.float32).sum().astype(weight.dtype)
      merged_scalars[name] = (_mean(value, weight.astype(jnp.float32)), total)
  return (
    _mean(mean_loss, weights),
    merged_scalars,
    jax.tree.map(mean_or_last, updated_vars),
    jax.tree.map(mean_or_last, summaries),
    jax.tree.map(_join_rows, per_example),
    {name: metric.reduce() for name, metric in clu_metrics.items()},
  )


class TrainProgram(programs.SingleTaskTrainProgram):
  """PAX's train program, whose step may be computed in parts, and whose data never start anew."""

  def __init__(self, micro_batches: int = 1):
    """Takes the number of parts of a step's batch."""
    super().__init__()
    self._micro_batches = micro_batches

  def setup(self, task, train_input, *args, **kwargs) -> None:
    """Sets the program up; the data go on where training does."""
    super().setup(task, train_input, *args, **kwargs)
    if hasattr(train_input, 'go_to'):
      train_input.go_to(self._initial_step)

  def _get_train_step(self, inputs):
    """Compiles the step at the first call, as the method that it replaces."""
    if not self._train_step_created:
      self._train_step_fn, self._train_step_input_partition_spec = self._partitioner.partition(
        train_step(self._micro_batches), trees.get_shape_dtype(inputs), is_eval=False
      )
      self._train_step_created = True
    return self._train_step_fn, self._train_step_input_partition_spec
