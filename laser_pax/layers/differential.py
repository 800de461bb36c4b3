r"""Differential attention (arXiv 2410.05258) as Praxis layers, standard and LASER.

Queries and keys of a head are split in halves of size d, which make two maps of probabilities:

    P1 = softmax(cap(Q1 K1^T / sqrt(d)))     P2 = softmax(cap(Q2 K2^T / sqrt(d)))

    standard   O = P1 V - l P2 V
    LASER      O = log(P1 exp(V)) - l log(P2 exp(V))                          [ours]

    l = exp(lq1 . lk1) - exp(lq2 . lk2) + l0       output = (1 - l0) RMSNorm(O), each head its own

- LASER's paper reports differential attention with LASER [digest], and no source that we know gives
  the formula. Here each softmax map mixes values as LASER does [ours]. (P1 - l P2) exp(V) may be
  negative, and then has no logarithm. For small V both forms agree to first order.
- In the Differential Transformer's main form l0 grows with the layer: 0.8 - 0.6 exp(-0.3 (i - 1)).
  Its paper also tests one number for all layers. A loop over layers has one config for all of them,
  so l0 is 0.8 in each [ours].
- The vectors lq1, lk1, lq2, lk2 of size d serve all heads of a layer. They do not decay [ours].

One half of each query is set to zero, and all of the key stays: [Q1, 0] [K1, K2]^T = Q1 K1^T. So
each map is the attention of the base, whose kernels, masks, caps, caches and shardings serve
unchanged. The products of queries and keys cost twice what they need.

Heads are half as many as a Transformer's and twice as large, so projections have as many weights. A
layer has 4 d more for l, 2 d for the norm, and d for its per-dimension scale.

Shapes: B batch, T query length, S key length, N heads, H = 2 d head size.
"""

import flax.linen as nn
import jax.numpy as jnp
from praxis import base_layer, pax_fiddle, pytypes
from praxis.layers import normalizations

from laser_pax.errors import UserError
from laser_pax.layers.beta import UNDECAYED
from laser_pax.layers.fused_attention import (
  FusedDotProductAttention,
  LaserFusedDotProductAttention,
)
from laser_pax.layers.segments import Mask

JTensor = pytypes.JTensor

_VECTORS = ('lambda_q1', 'lambda_k1', 'lambda_q2', 'lambda_k2')
# The Differential Transformer's.
_INITIAL_STD, _EPSILON = 0.1, 1e-5


def check(size: int, *, is_rotary: bool, is_normed: bool) -> None:
  """Checks that the halves of a head can be two maps.

  Args:
    size: H, the size of a head.
    is_rotary: Whether positions are rotary.
    is_normed: Whether a norm of each head normalises queries and keys.

  Raises:
    UserError: They cannot.
  """
  reasons = {
    f'heads have size {size}. Set DIMS_PER_HEAD to an even number': size % 2 == 1,
    'rotary positions mix them. Set USE_ROTARY_POSITION_EMB = False': is_rotary,
    'QK-norm normalises them together. Set QK_NORM = False': is_normed,
  }
  for reason, holds in reasons.items():
    if holds:
      raise UserError(
        f'differential attention makes two maps of the halves of a head, but {reason}'
      )


class DifferentialMixin(nn.Module):  # Flax lets the setup of its own modules alone make variables.
  """A base before an attention, which makes it the difference of two maps.

  Attributes:
    lambda_init: l0, the initial weight of the second map.
  """

  lambda_init: float = 0.8

  def setup(self) -> None:
    """Makes the vectors of l, in float32 in every precision, and the norm."""
    size = self.dim_per_head or self.hidden_dim // self.num_heads
    check(size, is_rotary=self.use_rotary_position_emb, is_normed=self.ln_tpl is not None)
    super().setup()
    collections = base_layer.WeightHParamsCollection
    for name in _VECTORS:
      hparams = base_layer.WeightHParams(
        shape=[size // 2],
        init=base_layer.WeightInit.Gaussian(_INITIAL_STD),
        mesh_shape=self.mesh_shape,
        tensor_split_dims_mapping=None if self.mesh_shape is None else [-1],
        collections=[
          UNDECAYED,
          collections.SKIP_LP_REGULARIZATION,
          collections.DISALLOW_BFLOAT16_CONVERSION,
        ],
      )
      self.create_variable(name, hparams)
    norm = pax_fiddle.Config(
      normalizations.RmsNorm,
      dim=size,
      epsilon=_EPSILON,
      direct_scale=False,  # The scale is 1 + a variable, so that weight decay leads to 1.
      intermediate_dtype=jnp.float32,
    )
    self.create_child('norm', norm)

  def _lambda(self) -> JTensor:
    """Returns l, a float32 number."""
    q1, k1, q2, k2 = (jnp.asarray(self.theta[name]) for name in _VECTORS)
    return jnp.exp(q1 @ k1) - jnp.exp(q2 @ k2) + self.lambda_init

  def _scale_query(self, query: JTensor) -> JTensor:
    """Scales queries for keys of half the size."""
    query = super()._scale_query(query)
    is_scaled = self.internal_enable_query_scale or self.scale_logits_by_head_dims
    return query * 2**0.5 if is_scaled else query

  def _dot_atten(
    self,
    query: JTensor,
    key: JTensor,
    value: JTensor,
    atten_mask: Mask,
    relative_bias: JTensor | None = None,
  ) -> tuple[JTensor, JTensor | None]:
    """Returns the context, and the difference of the maps; None for it where a kernel serves."""
    first, second = _halves(query)
    # The last summaries of a name stay: those of the first map.
    contexts = [
      super(DifferentialMixin, self)._dot_atten(q, key, value, atten_mask, relative_bias)
      for q in (second, first)
    ]
    return self._difference(*reversed(contexts))

  def _dot_atten_one_step(self, query: JTensor, *args, **kwargs) -> tuple[JTensor, JTensor]:
    first, second = (
      super(DifferentialMixin, self)._dot_atten_one_step(q, *args, **kwargs) for q in _halves(query)
    )
    return self._difference(first, second)

  def _difference(
    self, first: tuple[JTensor, JTensor | None], second: tuple[JTensor, JTensor | None]
  ) -> tuple[JTensor, JTensor | None]:
    """Returns (1 - l0) RMSNorm(O1 - l O2), and P1 - l P2."""
    (first, first_probs), (second, second_probs) = first, second
    weight = self._lambda()
    output = first.astype(jnp.float32) - weight * second.astype(jnp.float32)
    output = self.norm(output) * (1 - self.lambda_init)
    if first_probs is None:
      return output.astype(first.dtype), None
    probs = first_probs - weight.astype(first_probs.dtype) * second_probs
    return output.astype(first.dtype), probs


def _halves(query: JTensor) -> tuple[JTensor, JTensor]:
  """Returns queries whose second half is zero, and queries whose first half is."""
  is_first = jnp.arange(query.shape[-1]) < query.shape[-1] // 2
  return jnp.where(is_first, query, 0), jnp.where(is_first, 0, query)


class DifferentialAttention(DifferentialMixin, FusedDotProductAttention):
  """Differential attention, each of whose maps is a FusedDotProductAttention."""


class LaserDifferentialAttention(DifferentialMixin, LaserFusedDotProductAttention):
  """Differential attention, each of whose maps mixes values by LASER [ours]."""
