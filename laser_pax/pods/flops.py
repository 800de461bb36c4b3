"""What a train step computes, in floating-point operations, and how long that must take.

The formulas are in docs/pods.md. One multiply-add is two operations.
"""

import dataclasses
import math

import jax
from jax.interpreters import partial_eval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flops:
  """Operations of one train step over all chips.

  Attributes:
    weights: 6 a weight and token: forward, and backward to inputs and to weights.
    attention: 12 T D a layer and token, over all T positions: the causal half is not taken off.
    rematerialisation: What is computed a second time for the backward pass.
  """

  weights: int
  attention: int
  rematerialisation: int

  @property
  def model(self) -> int:
    """What MFU counts: weights and attention."""
    return self.weights + self.attention

  @property
  def total(self) -> int:
    """All that is computed in matrix products."""
    return self.model + self.rematerialisation


def model_flops(experiment, parameters: int) -> tuple[int, int]:
  """Returns the operations of weights and of attention in one step of a language model.

  Biases and scales, a thousandth of the whole, are counted as if they were matrices.
  """
  tokens = experiment.GLOBAL_BATCH_SIZE * experiment.SEQ_LEN
  width = experiment.num_heads() * experiment.DIMS_PER_HEAD
  attention = 12 * experiment.SEQ_LEN * width * experiment.NUM_LAYERS
  return tokens * 6 * parameters, tokens * attention


def step_flops(experiment, parameters: int, jaxpr: jax.extend.core.ClosedJaxpr) -> Flops:
  """Itemises one step.

  Args:
    experiment: A language model.
    parameters: Its number of weights.
    jaxpr: The traced step, of which each product is counted as often as it runs. What the
      formulas do not account for is rematerialisation.
  """
  weights, attention = model_flops(experiment, parameters)
  rest = counted(jaxpr) - weights - attention
  return Flops(weights=weights, attention=attention, rematerialisation=max(0, rest))


def counted(jaxpr: jax.extend.core.ClosedJaxpr) -> int:
  """Operations of all matrix products of a traced function, without those whose result is unused.

  Loops count as often as they run.
  """
  used, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
  return _count(used)


def _count(jaxpr) -> int:
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      total += _dot(equation)
    total += _times(equation) * sum(
      _count(inner) for inner in jax.core.jaxprs_in_params(equation.params)
    )
  return total


def _times(equation) -> int:
  """How often what is inside an equation is computed, over all devices."""
  if equation.primitive.name == 'scan':
    return equation.params['length']
  # What is divided by hand is written for one device.
  return equation.params['mesh'].size if equation.primitive.name == 'shard_map' else 1


def _dot(equation) -> int:
  (contracted, _), _ = equation.params['dimension_numbers']
  left, output = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
  return 2 * math.prod(output) * math.prod(left[i] for i in contracted)
