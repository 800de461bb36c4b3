"""What a train step computes, in floating-point operations, and how long that must take.

The formulas are in docs/pods.md. One multiply-add is two operations.
"""

import dataclasses
import math

import jax
from jax.interpreters import partial_eval

from laser_pax.experiment.base import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flops:
  """Operations of one train step over all chips.

  Attributes:
    weights: 6 a weight and token: forward, and backward to inputs and to weights.
    attention: 12 T D a layer and token, over all T positions: the causal half is not taken off.
    rematerialisation: What is computed a second time for the backward pass, by fused attention's
      own kernels too, over all T positions as well.
    skipped: Of attention and its rematerialisation, what fused kernels leave out, because it lies
      above the causal diagonal.
  """

  weights: int
  attention: int
  rematerialisation: int
  skipped: int

  @property
  def model(self) -> int:
    """What MFU counts: weights and attention."""
    return self.weights + self.attention

  @property
  def total(self) -> int:
    """All that is computed in matrix products."""
    return self.model + self.rematerialisation - self.skipped


def step_flops(
  experiment: Experiment, parameters: int, jaxpr: jax.extend.core.ClosedJaxpr
) -> Flops:
  """Itemises one step.

  Args:
    experiment: Whose step it is.
    parameters: Its number of weights.
    jaxpr: The traced step, of which each product is counted as often as it runs. What the
      experiment's formulas do not account for is rematerialisation.
  """
  formulas = experiment.model_flops(parameters)
  plain, in_kernels = counted(jaxpr)
  return Flops(
    weights=formulas.weights,
    attention=formulas.attention,
    rematerialisation=max(0, plain + in_kernels - formulas.weights - formulas.attention),
    skipped=round((1 - formulas.attended_share) * in_kernels),
  )


def counted(jaxpr: jax.extend.core.ClosedJaxpr) -> tuple[int, int]:
  """Operations of all matrix products of a traced function, without those whose result is unused.

  Scans count as often as they run, and of a conditional the cheaper branch. Loops of a length that
  is not known beforehand count as never run: LASER's are for columns of values that are very wide
  (docs/numerics.md).

  Returns:
    Those of the function itself, and those in fused kernels, with all their blocks.
  """
  used, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
  return _count(used)


def _count(jaxpr) -> tuple[int, int]:
  plain = in_kernels = 0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    if name == 'pallas_call':
      in_kernels += math.prod(params['grid_mapping'].grid) * _in_block(params['jaxpr'])
      continue
    if name == 'while':
      continue
    if name == 'dot_general':
      plain += _dot(equation)
    inner = [_count(j) for j in jax.core.jaxprs_in_params(params)]
    if name == 'cond':
      inner = [min(inner, key=sum)]
    # What is divided by hand is written for one device.
    times = {'scan': params.get('length'), 'shard_map': _devices(params)}.get(name, 1)
    plain += times * sum(p for p, _ in inner)
    in_kernels += times * sum(k for _, k in inner)
  return plain, in_kernels


def _devices(params: dict) -> int:
  return params['mesh'].size if 'mesh' in params else 1


def _in_block(jaxpr) -> int:
  """Operations that a kernel does for one block; its branches are steps that some blocks have."""
  total = 0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    times = params.get('length', 1) if name == 'scan' else 1
    total += _dot(equation) if name == 'dot_general' else 0
    total += times * sum(_in_block(j) for j in jax.core.jaxprs_in_params(params))
  return total


def _dot(equation) -> int:
  (contracted, _), _ = equation.params['dimension_numbers']
  left, output = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
  return 2 * math.prod(output) * math.prod(left[i] for i in contracted)
