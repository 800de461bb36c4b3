"""The floating-point operations of a train step.

docs/pods.md has the formulas. One multiply-add is two operations.
"""

import dataclasses
import math

import jax.extend
from jax.interpreters import partial_eval

from laser_pax.costs.jaxprs import inner_jaxprs
from laser_pax.experiment.base import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flops:
  """Operations of one train step over all chips.

  Attributes:
    weights: Operations of the weights: 6 for each weight and token. They cover the forward pass,
      and the backward pass to inputs and to weights.
    attention: Operations of attention: 12 T N H for each layer and token. They cover all T
      positions, causal or not.
    rematerialisation: Operations that the backward pass computes a second time, also in the kernels
      of fused attention. They cover all T positions.
    skipped: Operations of attention and its rematerialisation that fused kernels leave out, because
      they lie above the causal diagonal.
  """

  weights: int
  attention: int
  rematerialisation: int
  skipped: int

  @property
  def model(self) -> int:
    """Operations that MFU counts: weights and attention."""
    return self.weights + self.attention

  @property
  def total(self) -> int:
    """Operations of all matrix products that run."""
    return self.model + self.rematerialisation - self.skipped


def step_flops(
  experiment: Experiment, parameters: int, jaxpr: jax.extend.core.ClosedJaxpr
) -> Flops:
  """Returns the operations of one step, item by item.

  The products of the traced step are counted as often as they run. The experiment's formulas give
  weights and attention; the rest is rematerialisation.

  Args:
    experiment: The experiment.
    parameters: Number of the model's weights.
    jaxpr: The traced step.
  """
  formulas = experiment.model_flops(parameters)
  plain, in_kernels = count_products(jaxpr)
  return Flops(
    weights=formulas.weights,
    attention=formulas.attention,
    rematerialisation=max(0, plain + in_kernels - formulas.weights - formulas.attention),
    skipped=round((1 - formulas.attended_share) * in_kernels),
  )


def count_products(jaxpr: jax.extend.core.ClosedJaxpr) -> tuple[int, int]:
  """Counts the operations of all matrix products of a traced function.

  Products whose result is unused do not count. The body of a scan counts as often as it runs, and a
  conditional counts as its cheaper branch. Loops of unknown length count as never run: LASER has
  them for columns with a very wide range of values (docs/numerics.md).

  Args:
    jaxpr: The traced function.

  Returns:
    The operations of the function itself, and those of all blocks of its fused kernels.
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
    bodies = [_count(j) for j in inner_jaxprs(params)]
    if name == 'cond':
      bodies = [min(bodies, key=sum)]
    # The body of a shard_map is the computation of one device.
    times = {'scan': params.get('length'), 'shard_map': _devices(params)}.get(name, 1)
    plain += times * sum(p for p, _ in bodies)
    in_kernels += times * sum(k for _, k in bodies)
  return plain, in_kernels


def _devices(params: dict) -> int:
  return params['mesh'].size if 'mesh' in params else 1


def _in_block(jaxpr) -> int:
  """Returns the operations of a kernel for one block. All branches of conditionals count."""
  total = 0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    times = params.get('length', 1) if name == 'scan' else 1
    total += _dot(equation) if name == 'dot_general' else 0
    total += times * sum(_in_block(j) for j in inner_jaxprs(params))
  return total


def _dot(equation) -> int:
  (contracted, _), _ = equation.params['dimension_numbers']
  left, output = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
  return 2 * math.prod(output) * math.prod(left[i] for i in contracted)
