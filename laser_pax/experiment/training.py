"""One training step whose batch is computed in parts, and a PAX train program that runs it.

PAX's own accumulation, ShardedStaticAccumulator, counts each part as a step. So the number of
steps, the learning rate's schedule and clipping change their meaning. Here they do not change.
"""

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from paxml import programs, sgf, tasks_lib, trainer_lib
from praxis import base_layer, py_utils, trees

from laser_pax import pax_fixes
from laser_pax.errors import UserError
from laser_pax.experiment import modes

# A step's result is read after so many more steps.
_READ_LATER = 4

# Scalars that count: they are summed over the parts. Other scalars are weighted means.
_COUNTS = ('num_predictions',)

# TensorBoard's name of the number of skipped steps.
_SKIPPED_STEPS = 'learning/skipped_steps' + base_layer.get_summary_type_suffix(
  base_layer.SummaryType.AGGREGATE_SCALAR
)

NestedMap = py_utils.NestedMap
# PAX's GradFnProtocol:
# (loss_fn, learner, mdl_vars, inputs, prng_key) -> ((loss, GradAuxInfo), gradients)
GradFn = Callable[..., tuple[Any, Any]]


# What `train_step` may tell of each variable, by its name: floats on the host.
Telling = Callable[[dict[str, dict[str, Any]]], None]


def train_step(
  micro_batches: int, tell: Telling | None = None
) -> Callable[..., tuple[Any, trainer_lib.StepFnOutput]]:
  """Returns the function of one step, for PAX's `partitioner.partition`.

  The step computes the same as one on the whole batch, up to rounding.

  Args:
    micro_batches: K, the number of parts. For 1 the function is PAX's own.
    tell: Function of the host that each step calls with what `measured` measures.
  """
  if micro_batches == 1 and tell is None:
    return trainer_lib.train_step_single_learner
  return functools.partial(_train_step, micro_batches, tell)


def measured(weights: Any, gradients: Any) -> dict[str, dict[str, jax.Array]]:
  """Returns, for each variable with a gradient, norms and the number of values not finite.

  Norms are float32: the root of the sum of squares of the finite values.
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(weights)
  found = {}
  for (path, weight), gradient in zip(leaves, jax.tree.leaves(gradients), strict=True):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    finite = jnp.isfinite(gradient)
    found[name] = {
      'weight_norm': _norm(weight),
      'gradient_norm': _norm(jnp.where(finite, gradient, 0)),
      'not_finite': jnp.sum(~finite),
      'values': jnp.asarray(gradient.size),
    }
  return found


def _norm(x: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32))))


def _telling(grad_fn: GradFn, tell: Telling) -> GradFn:
  def telling_grad_fn(loss_fn, learner, mdl_vars, inputs, prng_key):
    values, gradients = grad_fn(
      loss_fn=loss_fn, learner=learner, mdl_vars=mdl_vars, inputs=inputs, prng_key=prng_key
    )
    jax.debug.callback(tell, measured(mdl_vars, gradients))
    return values, gradients

  return telling_grad_fn


def _train_step(
  micro_batches: int,
  tell: Telling | None,
  task: tasks_lib.SingleTask,
  state: Any,
  prng_key: jax.Array,
  inputs: NestedMap,
  fprop_dtype: jnp.dtype,
  var_weight_hparams: Any,
  static_args: Any = None,
) -> tuple[Any, trainer_lib.StepFnOutput]:
  """Runs PAX's train_step_single_learner with gradients summed over the parts."""
  masks = trainer_lib.get_excluded_var_masks(var_weight_hparams, task.learners[0])
  grad_fn = pax_fixes.default_grad_fn(*masks)
  if micro_batches > 1:
    constrain = functools.partial(_shard_as_variables, task.model, var_weight_hparams, masks)
    grad_fn = accumulate(grad_fn, micro_batches, constrain)
  if tell is not None:
    grad_fn = _telling(grad_fn, tell)
  return trainer_lib.train_step_single_learner(
    task, state, prng_key, inputs, fprop_dtype, var_weight_hparams, static_args, grad_fn=grad_fn
  )


def _shard_as_variables(model: Any, hparams: Any, masks: tuple[Any, Any], gradients: Any) -> Any:
  """Constrains each gradient to the sharding of its variable."""
  if model.ici_mesh_shape is None:
    return gradients
  specs = base_layer.var_partition_specs(hparams, model.ici_mesh_shape, model.mesh_axis_names)
  specs = jax.tree.map(lambda grad, opt, s: {} if grad and opt else s, *masks, specs)
  return jax.tree.map(py_utils.with_sharding_constraint, gradients, specs)


def accumulate(
  grad_fn: GradFn, micro_batches: int, constrain: Callable[[Any], Any] = lambda x: x
) -> GradFn:
  """Returns a gradient function that calls `grad_fn` on one part of the rows after another.

  Part k has the loss weight w_k (its number of tokens) and the gradient g_k. The gradient of the
  whole is sum_k w_k g_k / sum_k w_k, summed in float32. The loss and every weighted scalar have the
  same form.

  Args:
    grad_fn: A gradient function by PAX's GradFnProtocol.
    micro_batches: K, the number of parts. It must divide the rows of the batch.
    constrain: Function that sets the sharding of the summed gradients. It runs after each part.
  """

  def micro_grad_fn(loss_fn, learner, mdl_vars, inputs, prng_key):
    # By `jit` it is traced once for its two calls, of which one only asks for shapes.
    @functools.partial(jax.jit, inline=True)
    def part_gradient(part, key):
      return grad_fn(loss_fn=loss_fn, learner=learner, mdl_vars=mdl_vars, inputs=part, prng_key=key)

    def add(total, part_and_key):
      ((loss, info), gradients) = part_gradient(*part_and_key)
      weight = jnp.asarray(1.0 if info.loss_weight is None else info.loss_weight, jnp.float32)
      weighted = jax.tree.map(lambda t, g: t + weight * g.astype(t.dtype), total, gradients)
      return constrain(weighted), (loss, weight, info.aux_info)

    parts = jax.tree.map(functools.partial(_split_rows, micro_batches), inputs)
    keys = jax.random.split(prng_key, micro_batches)
    first = jax.tree.map(lambda x: x[0], (parts, keys))
    _, shapes = jax.eval_shape(part_gradient, *first)
    zeros = constrain(jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes))
    total, (losses, weights, aux) = jax.lax.scan(add, zeros, (parts, keys))
    weight = weights.sum()
    gradients = jax.tree.map(lambda t, s: (t / _positive(weight)).astype(s.dtype), total, shapes)
    info = sgf.GradAuxInfo(loss_weight=weight, aux_info=_merge(aux, weights))
    return (_mean(losses, weights), info), gradients

  return micro_grad_fn


def _split_rows(micro_batches: int, x: jax.Array) -> jax.Array:
  """Reshapes [B, ...] to [K, B / K, ...], where part k has the rows k, k + K, ...

  A device that holds neighbouring rows then holds its share of each part, so it sends no row.
  """
  return jnp.moveaxis(x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:]), 1, 0)


def _join_rows(x: jax.Array) -> jax.Array:
  """Reshapes [K, B / K, ...] back to [B, ...]."""
  return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])


def _positive(weight: jax.Array) -> jax.Array:
  return jnp.maximum(weight, 1e-8)


def _mean(values: jax.Array, weights: jax.Array) -> jax.Array:
  """Returns the weighted mean over the parts: values [K, ...] and weights [K] give [...]."""
  dtype, values = values.dtype, values.astype(jnp.float32)
  return (jnp.tensordot(weights, values, axes=1) / _positive(weights.sum())).astype(dtype)


def _merge(aux: tuple[Any, ...], weights: jax.Array) -> tuple[Any, ...]:
  """Merges the parts' second results of PAX's loss function: leaves [K, ...] become [...].

  Summaries and the model's own updates, such as moving averages, become means over the parts. If
  they are not floating-point numbers, the last part's are taken.
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


def is_valid(outputs: trainer_lib.StepFnOutput) -> jax.Array:
  """Returns whether PAX applied a step: 1 or 0.

  PAX silently skips a step whose gradients are not finite.
  """
  for name, value in outputs.summary_tensors.items():
    if 'is_valid_step' in name:
      return value[0] if isinstance(value, (list, tuple)) else value
  return jnp.isfinite(outputs.loss).astype(jnp.float32)


class SkippedSteps:
  """Counts skipped steps, and ends the training after too many in a row.

  A step's result is read some steps later, so that no step waits for it. All processes read the
  same results at the same step, and end together.
  """

  def __init__(self, most_in_a_row: int | None):
    """Takes the number of skipped steps in a row that ends the training; None for no end."""
    self._most, self._in_a_row = most_in_a_row, 0
    self._pending: collections.deque[tuple[int, jax.Array]] = collections.deque()

  def add(self, step: int, is_valid: jax.Array) -> None:
    """Takes a step's number and result.

    Raises:
      UserError: The steps before it were skipped.
    """
    if self._most is None:
      return
    self._pending.append((step, is_valid))
    while len(self._pending) > _READ_LATER:
      self._read(*self._pending.popleft())

  def _read(self, step: int, is_valid: jax.Array) -> None:
    self._in_a_row = 0 if bool(is_valid) else self._in_a_row + 1
    if self._in_a_row == self._most:
      first = step - self._most + 1
      raise UserError(
        f'steps {first} to {step} were skipped, as their gradients were not finite; the weights '
        f'are those of step {first - 1}. `python -m laser_pax replay JOB_LOG_DIR --step={first}` '
        'shows which gradients these are, and keeps the batch. Look at it, at the loss before, and '
        'at LEARNING_RATE; MAX_SKIPPED_IN_A_ROW sets after how many such steps a training ends'
      )


class TrainProgram(programs.SingleTaskTrainProgram):
  """PAX's train program with a step in parts, and with data that continue after a restart."""

  def __init__(self, micro_batches: int = 1, *, max_skipped_in_a_row: int | None = None):
    """Makes the program.

    Args:
      micro_batches: Number of parts of a step's batch.
      max_skipped_in_a_row: So many skipped steps in a row end the training; None for no end.
    """
    super().__init__()
    self._micro_batches = micro_batches
    self._has_run = False
    self._skipped_steps: jax.Array | float = 0.0
    self._skipped = SkippedSteps(max_skipped_in_a_row)
    self._tell: Telling | None = None

  def setup(self, task, train_input, *args, **kwargs) -> None:
    """Sets the program up, and moves the data to the step where training continues."""
    super().setup(task, train_input, *args, **kwargs)
    modes.close_at_exit(self._exitstack.close)
    modes.close_at_exit(self._train_summary_handler.close)  # Before it: they end in reverse.
    if hasattr(train_input, 'go_to'):
      train_input.go_to(self._initial_step)

  def run(self, state, step):
    """Runs one step; the first one on a copy of the state, if on a CPU.

    A restored state lies in memory that is not XLA's. A step gives its state's memory away, and one
    that was compiled by an earlier process (`compiled` in the cache folder) then crashes on a CPU.
    """
    if jax.default_backend() == 'cpu' and not self._has_run:
      state = jax.tree.map(jnp.copy, state)
    self._has_run = True
    return super().run(state, step)

  def train_step(self, step, state, prng_key, inputs, static_args):
    """Runs one step, and adds to its summaries how many steps this process has skipped."""
    new_step, new_state, outputs = super().train_step(step, state, prng_key, inputs, static_args)
    self._skipped_steps = self._skipped_steps + (1.0 - is_valid(outputs))
    self._skipped.add(new_step, is_valid(outputs))
    outputs.summary_tensors[_SKIPPED_STEPS] = self._skipped_steps
    return new_step, new_state, outputs

  def _get_train_step(self, inputs):
    """Compiles the step at the first call, like the method that it overrides."""
    if not self._train_step_created:
      self._train_step_fn, self._train_step_input_partition_spec = self._partitioner.partition(
        train_step(self._micro_batches, self._tell), trees.get_shape_dtype(inputs), is_eval=False
      )
      self._train_step_created = True
    return self._train_step_fn, self._train_step_input_partition_spec
