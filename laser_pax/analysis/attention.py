"""What a checkpoint's attention does on held-out rows: `laser_pax.analysis.lines` of it."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from paxml import trainer_lib
from praxis import pax_fiddle, py_utils

from laser_pax import layers
from laser_pax.analysis import observed
from laser_pax.analysis.lines import LASER, NORMS, STANDARD, Line
from laser_pax.errors import UserError
from laser_pax.experiment.base import Experiment

# Rows of a batch on each device. Plain attention forms all pairs of positions.
ROWS_PER_DEVICE = 4


class Model(Protocol):
  """The members that are used of a `laser_pax.evaluation.restored.Restored`."""

  def run(self, step_fn: Callable[..., Any], batch: py_utils.NestedMap) -> Any:
    """Runs one of PAX's evaluation steps on a batch, with the model's weights."""


class Twin:
  """One of the two attentions of an experiment: a step that takes any weights of the experiment.

  Attributes:
    form: 'standard' or 'LASER'.
  """

  def __init__(self, experiment: Experiment, form: str):
    """Builds the experiment's model with this attention, observed.

    Raises:
      UserError: The model has no attention, or one that cannot be observed or be this form.
    """
    self.form = form
    task_p = experiment.task()
    swap = layers.use_laser if form == LASER else layers.use_standard
    swap(task_p.model)
    observed.observe(task_p.model)
    self._task = pax_fiddle.instantiate(task_p)

  def step(self, task, state, prng_key, inputs, fprop_dtype, var_weight_hparams, static_args):
    """Returns PAX's pair of a step without a new state: loss, statistics and gradient norms.

    The loss is that of PAX's evaluation: without dropout and augmentation.
    """
    del task, var_weight_hparams  # They are those of the model without probes.
    hparams = self._task.model.abstract_init_with_metadata(inputs, do_eval=True)

    def loss(params):
      variables = {**state.mdl_vars, 'params': params}
      _, output = trainer_lib.eval_step_single_learner(
        self._task,
        state.replace(mdl_vars=variables),
        prng_key,
        inputs,
        fprop_dtype,
        None,
        static_args,
      )
      return output.loss, observed.statistics(output.summary_tensors)

    params = _with_probes(state.mdl_vars['params'], hparams['params'])
    (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    attentions = {
      path: {**parts, **observed.gradient_norms(gradients, path)}
      for path, parts in statistics.items()
    }
    return None, {'loss': value, 'attentions': attentions}


def own_form(experiment: Experiment) -> str:
  """Returns the form of an experiment's attention, 'standard' or 'LASER'.

  Raises:
    UserError: Its model has no attention.
  """
  return STANDARD if layers.use_laser(experiment.task().model) else LASER


def _with_probes(params: Mapping[str, Any], hparams: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the weights, and zeros for the variables of the probes."""
  result = dict(params)
  for name, child in hparams.items():
    if isinstance(child, Mapping):
      result[name] = _with_probes(result.get(name, {}), child)
    elif name not in result:
      result[name] = jnp.zeros((*(child.repeat_prefix or ()), *child.shape), jnp.float32)
  return result


def measure(
  model: Model, twins: Sequence[Twin], batches: Sequence[py_utils.NestedMap]
) -> list[Line]:
  """Returns the lines of one checkpoint.

  Args:
    model: The experiment's model with the checkpoint's weights.
    twins: The twins to evaluate these weights under. The first is the model's own attention, whose
      probabilities are described.
    batches: Held-out rows, from `held_out.batches`.

  Raises:
    UserError: A loss is no finite number.
  """
  rows = len(batches[0].FlattenItems()[0][1])
  result = []
  for twin in twins:
    outputs = [model.run(twin.step, batch) for batch in batches]
    loss = float(np.mean([output['loss'] for output in outputs]))
    if not math.isfinite(loss):
      raise UserError(f'its loss under {twin.form} attention is {loss}')
    by_layer = _by_layer([output['attentions'] for output in outputs])
    common = {'attention': twin.form, 'rows': rows * len(batches)}
    if twin is twins[0]:
      for layer, parts in enumerate(by_layer):
        result.append({'kind': 'attention', 'layer': layer, **common, **_described(parts)})
    for layer, parts in enumerate(by_layer):
      norms = {name: _mean(parts, name) for name in NORMS}
      fields = {'rows_at_once': rows, 'loss': loss, **norms}
      result.append({'kind': 'gradients', 'layer': layer, **common, **fields})
  return result


def _by_layer(outputs: Sequence[Mapping[str, Mapping[str, np.ndarray]]]) -> list[list[dict]]:
  """Returns for each layer, from the first to the last, what each batch gave.

  A turn of a loop over layers has all attentions of the loop's block.
  """
  turns = {
    path: range(len(x['query'])) if x['query'].ndim else (None,) for path, x in outputs[0].items()
  }
  places = [(turn, path) for path in turns for turn in turns[path]]
  places.sort(key=lambda place: (place[0] or 0, _natural(place[1])))

  def part(output, turn, path):
    return {name: x if turn is None else x[turn] for name, x in output[path].items()}

  return [[part(output, *place) for output in outputs] for place in places]


def _natural(path: str) -> list[str | int]:
  """Returns a key of order in which x_layers_10 comes after x_layers_9."""
  return [int(x) if x.isdigit() else x for x in re.split(r'(\d+)', path)]


def _described(parts: Sequence[Mapping[str, np.ndarray]]) -> Line:
  """Returns the fields of one layer's probabilities and values, of all batches."""
  pairs = math.fsum(float(p['pairs']) for p in parts)
  below = np.sum([np.asarray(p['below'], np.float64) for p in parts], axis=0) / max(pairs, 1)
  shares = {
    f'{threshold:g}': below[:, i].tolist() for i, threshold in enumerate(observed.THRESHOLDS)
  }
  greatest = np.max([p['value_range_max'] for p in parts], axis=0).tolist()
  mean = {name: _mean(parts, name) for name in ('value_std', 'value_range')}
  return {'pairs': int(pairs), 'share_below': shares, **mean, 'value_range_max': greatest}


def _mean(parts: Sequence[Mapping[str, np.ndarray]], name: str) -> list[float] | float:
  return np.mean([np.asarray(p[name], np.float64) for p in parts], axis=0).tolist()
