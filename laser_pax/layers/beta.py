r"""Where a LASER layer's beta comes from: it is fixed, or learned for each head and channel.

    O_th = log( sum_s p_ts exp(beta_h V_sh) ) / beta_h

0 is standard attention, 1 LASER, infinity the greatest visible value: laser_pax/ops/beta.py. A
LASER layer has one of these layers as its `beta_tpl`.
"""

import math

import jax
import jax.numpy as jnp
from praxis import base_layer, pax_fiddle, pytypes

from laser_pax.errors import UserError

JTensor = pytypes.JTensor

# The mark of a variable that no optimiser decays: AlgoPerf's decays all others.
UNDECAYED = 'laser_pax_undecayed'
PAPERS_HAS_NONE = (
  "numerics='paper' is the paper's Algorithm 1, which has no beta, with its shift or 'unshifted': "
  "leave beta out, or set numerics='exact'"
)


def check(value: object) -> None:
  """Checks a number for beta.

  Raises:
    UserError: It is no finite number.
  """
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if not is_number or not math.isfinite(value):
    raise UserError(
      'beta must be a finite number: 0 is standard attention, 1 is LASER, greater ones lead to the '
      f'greatest value, and negative ones to the least; got {value!r}'
    )


class FixedBeta(base_layer.BaseLayer):
  """The same beta for all columns; it adds no variable.

  Attributes:
    value: Beta, any finite number.
  """

  value: float = 1.0

  def setup(self) -> None:
    """Checks the number."""
    check(self.value)

  def __call__(self) -> float:
    """Returns beta."""
    return self.value


class LearnedBeta(base_layer.BaseLayer):
  """A beta for each column of each head whose values are mixed, learned like any weight.

  It may take any sign: the output is smooth through 0. It is float32 in every precision, and weight
  decay spares it.

  Attributes:
    initial: Beta at the start; 1 is LASER.
    num_heads: N; where several heads of queries share values, the number of heads of values. The
      attention sets it.
    dim_per_head: H. The attention sets it.
  """

  initial: float = 1.0
  num_heads: int = 0
  dim_per_head: int = 0

  def setup(self) -> None:
    """Makes the variable, sharded as `weight_split_dims_mapping.wt` says."""
    check(self.initial)
    collections = base_layer.WeightHParamsCollection
    hparams = base_layer.WeightHParams(
      shape=[self.num_heads, self.dim_per_head],
      init=base_layer.WeightInit.Constant(self.initial),
      mesh_shape=self.mesh_shape,
      tensor_split_dims_mapping=self.weight_split_dims_mapping.wt,
      collections=[
        UNDECAYED,
        collections.SKIP_LP_REGULARIZATION,
        collections.DISALLOW_BFLOAT16_CONVERSION,
      ],
    )
    self.create_variable('beta', hparams)

  def __call__(self) -> JTensor:
    """Returns beta, float32 [N, H]."""
    return jnp.asarray(self.theta.beta)


def template(beta: float | str | None) -> pax_fiddle.Config | None:
  """Returns the template of a beta that is given in words or numbers.

  Args:
    beta: None for LASER; a number; or 'learned', which begins as LASER.

  Returns:
    The template; None for LASER, which 1 is too.

  Raises:
    UserError: It is none of these.
  """
  if beta is None:
    return None
  if beta == 'learned':
    return pax_fiddle.Config(LearnedBeta)
  if isinstance(beta, str):
    raise UserError(f"beta must be a number, 'learned' or None; got {beta!r}")
  check(beta)
  return None if beta == 1 else pax_fiddle.Config(FixedBeta, value=float(beta))


@jax.custom_batching.custom_vmap
def place_in_vmap(x: JTensor) -> JTensor:
  """Returns which entry of the innermost jax.vmap over x this is; 0 outside of one.

  Praxis's multi-query attention maps its methods over key/value heads, and does not tell which head
  a call is for.
  """
  del x
  return jnp.zeros((), jnp.int32)


@place_in_vmap.def_vmap
def _places(axis_size: int, in_batched: list[bool], x: JTensor) -> tuple[JTensor, bool]:
  del in_batched, x
  return jnp.arange(axis_size, dtype=jnp.int32), True
