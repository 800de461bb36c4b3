r"""LASER in every attention of Praxis: the probabilities are Praxis's own, the context is LASER's.

    O_th = log( sum_s p_ts exp(V_sh) )        p: whatever the standard layer attends with
    O_th = log( sum_s p_ts exp(beta_h V_sh) ) / beta_h                   where beta_tpl is set

Each class here derives from the standard class and overrides the few methods in which probabilities
meet values. An override lets the standard method run, keeps the probabilities that it returns, and
mixes the values itself. The compiler removes the standard context, which nobody uses (a test
compares the FLOPs). Masks, caps, position biases, rotary embeddings, projections, caches and
shardings therefore are Praxis's. So are the variables: checkpoints of both forms have one tree.

The order of the bases matters. `DotProductAttentionWithContext` narrows the mask and then calls
super(). A class that lists it before `LaserDotProductAttention` gives LASER the narrowed mask.

Shapes: B batch, T query length, S key length, N heads, K key/value heads, G query heads per
key/value head, H head size. Blocked local attention has U blocks of W queries and C keys.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from fiddle import get_callable
from jax.ad_checkpoint import checkpoint_name
from praxis import base_layer, pax_fiddle, py_utils, pytypes
from praxis.layers import (
  attentions,
  base_ops,
  conformers,
  grouped_query_attention,
  multi_query_attention,
  stochastics,
)

from laser_pax import ops
from laser_pax.errors import UserError
from laser_pax.layers import beta
from laser_pax.layers.qk_norm import NormedStepsMixin

JTensor = pytypes.JTensor

_PLAIN_TEMPLATES = {
  'pv_einsum_tpl': (base_ops.EinsumOp, 'LASER mixes the values itself, and would bypass it'),
  'dropout_tpl': (stochastics.Dropout, 'LASER must know by how much the kept weights were raised'),
}


def changed_template(attention) -> str | None:
  """Returns why a template field of an attention rules LASER out, or None.

  Args:
    attention: A Praxis attention layer, or its config.
  """
  for name, (plain, reason) in _PLAIN_TEMPLATES.items():
    template = getattr(attention, name, None)
    if template is not None and get_callable(template) is not plain:
      given = get_callable(template).__qualname__
      return f'its {name} is {given}, not {plain.__qualname__}: {reason}. Leave {name} unset'
  return None


class _LaserMixin(nn.Module):  # Flax lets the setup of its own modules alone make children.
  """All LASER layers have it as a base, before a standard class.

  Attributes:
    numerics: How LASER is computed: 'exact', 'paper' for the paper's Algorithm 1 to the letter, or
      'unshifted' for the same without its shift.
    beta_tpl: Where beta comes from: a `FixedBeta` or a `LearnedBeta`. None: it is 1, the paper's
      LASER.
  """

  numerics: str = 'exact'
  beta_tpl: pax_fiddle.Config | None = base_layer.template_field(None)

  def setup(self) -> None:
    reason = changed_template(self)
    if self.beta_tpl is not None and self.numerics != 'exact':
      reason = beta.PAPERS_HAS_NONE
    if reason is not None:
      raise UserError(f'{type(self).__qualname__} {self.name!r}: {reason}')
    super().setup()
    if self.beta_tpl is not None:
      template = self.beta_tpl.clone()
      if issubclass(get_callable(template), beta.LearnedBeta):
        template.num_heads, sharding = self._value_heads()
        template.dim_per_head = self.dim_per_head or self.hidden_dim // self.num_heads
        template.weight_split_dims_mapping.wt = sharding and list(sharding)
      self.create_child('beta', template)

  def _value_heads(self) -> tuple[int, base_layer.SplitDimsMapping]:
    """Returns how many heads values have, and how the mesh divides their heads and their size."""
    proj = self.weight_split_dims_mapping.proj
    return self.num_heads, proj and proj[1:]

  def _beta(self, value: JTensor) -> float | JTensor | None:
    """Returns beta of values, a number or [N, H]; None for the paper's LASER."""
    del value
    return None if self.beta_tpl is None else self.beta()

  def _keep_prob(self) -> float:
    """Returns the probability that dropout keeps a weight in this pass; 1 if dropout is off."""
    active = not self.do_eval or self.atten_dropout.dropout_at_eval
    return self.atten_dropout.keep_prob if active else 1.0

  def _laser_context(
    self, equation: str, probs: JTensor, value: JTensor, keep_prob: float = 1.0
  ) -> JTensor:
    r"""Mixes values by probabilities, whatever these sum to.

        O_th = 1/keep log( sum_s w_ts exp(V_sh) + (1 - sum_s w_ts) exp(0) ),    w = keep probs

    Dropout, or the sink of `attention_extra_logit`, takes some of the mass. It goes to a key of
    value zero, as in standard attention: docs/laser.md, "Probabilities that do not sum to 1".
    Without either this is the paper's LASER. With beta, exp(V) is exp(beta V), and the logarithm is
    divided by beta.

    Args:
      equation: An einsum of probs and value. The last axis of probs is the keys.
      probs: Attention probabilities as Praxis returns them. Dropout has multiplied those that it
        kept by 1/keep.
      value: Values.
      keep_prob: The probability with which dropout kept each of probs.

    Returns:
      The context, in the layout that the equation names, in value's dtype.
    """
    if keep_prob == 1.0 and getattr(self, 'attention_extra_logit', None) is None:
      return ops.log_weighted_sum_exp(
        equation, probs, value, numerics=self.numerics, beta=self._beta(value)
      )
    weights = probs * keep_prob
    # The missing mass is that of the rounded weights, so that the total is 1.
    missing = jnp.maximum(1.0 - weights.sum(-1, dtype=jnp.float32), 0.0)
    mixed = ops.log_weighted_sum_exp(
      equation, weights, value, missing, self.numerics, self._beta(value)
    )
    return mixed / keep_prob

  def _zero_fully_masked(self, encoded: JTensor, atten_mask: JTensor) -> JTensor:
    """Zeroes the rows that see no key, where the layer asks for it.

    Args:
      encoded: [..., N, H].
      atten_mask: [..., S], broadcastable; large negative numbers where masked.

    Returns:
      The context, with zeros in fully masked rows if `zero_fully_masked` is set.
    """
    if not self.zero_fully_masked:
      return encoded
    visible = atten_mask >= py_utils.get_large_negative_number(jnp.float32) / 2
    return jnp.where(visible.any(-1)[..., None, None], encoded, 0)


class LaserDotProductAttention(_LaserMixin, NormedStepsMixin, attentions.DotProductAttention):
  """DotProductAttention with LASER's context. It has the base's fields and variables."""

  def _dot_atten(
    self,
    query: JTensor,
    key: JTensor,
    value: JTensor,
    atten_mask: JTensor,
    relative_bias: JTensor | None = None,
  ) -> tuple[JTensor, JTensor]:
    _, probs = super()._dot_atten(query, key, value, atten_mask, relative_bias)
    value = self._shard_blnh(value)
    encoded = self._laser_context('BNTS,BSNH->BTNH', probs, value, self._keep_prob())
    encoded = self._zero_fully_masked(encoded, atten_mask[:, 0])
    return self._shard_blnh(checkpoint_name(encoded, 'context')), probs

  def _dot_atten_one_step(
    self,
    query: JTensor,
    key_state_name: str,
    value_state_name: str,
    atten_mask: JTensor,
    relative_bias: JTensor | None = None,
    time_step: JTensor | None = None,
  ) -> tuple[JTensor, JTensor]:
    _, probs = super()._dot_atten_one_step(
      query, key_state_name, value_state_name, atten_mask, relative_bias, time_step
    )
    value = self._shard_blnh(self.get_decode_state(value_state_name))
    return self._laser_context_one_step(probs, value, atten_mask[:, 0]), probs

  def _laser_context_one_step(self, probs: JTensor, value: JTensor, atten_mask: JTensor) -> JTensor:
    """Returns the context [B, N, H] of probs [B, N, S], value [B, S, N, H], and mask [B, S].

    The batch of value and mask may be smaller: in cross attention several consecutive queries may
    share an entry of the cache.
    """
    value, atten_mask = (
      jnp.repeat(x, probs.shape[0] // x.shape[0], axis=0) for x in (value, atten_mask)
    )
    encoded = self._laser_context('BNS,BSNH->BNH', probs, value)
    return self._shard_bnh(self._zero_fully_masked(encoded, atten_mask))


class LaserDotProductAttentionXL(LaserDotProductAttention, attentions.DotProductAttentionXL):
  """DotProductAttentionXL (Transformer-XL positions) with LASER's context."""


class LaserDotProductAttentionWithContext(
  conformers.DotProductAttentionWithContext, LaserDotProductAttention
):
  """DotProductAttentionWithContext, the Conformer's default, with LASER's context."""


class LaserDotProductAttentionWithContextXL(
  conformers.DotProductAttentionWithContextXL, LaserDotProductAttentionXL
):
  """DotProductAttentionWithContextXL with LASER's context."""


class LaserLocalSelfAttention(attentions.LocalSelfAttention, LaserDotProductAttention):
  """LocalSelfAttention, blocked or simulated, with LASER's context."""

  def _dot_atten(
    self,
    query: JTensor,
    key: JTensor,
    value: JTensor,
    atten_mask: JTensor,
    relative_bias: JTensor | None = None,
  ) -> tuple[JTensor, JTensor]:
    encoded, probs = super()._dot_atten(query, key, value, atten_mask, relative_bias)
    if self.simulated:
      return encoded, probs  # LaserDotProductAttention computed both, with the narrowed mask.
    b, t, n, h = query.shape
    value_blocks = attentions.extract_block_context(
      self._shard_blnh(value),
      block_size=probs.shape[3],
      left_context=self.left_context,
      right_context=self.right_context,
    )
    encoded = self._laser_context('BNUWC,BUCNH->BUWNH', probs, value_blocks, self._keep_prob())
    encoded = encoded.reshape(b, -1, n, h)[:, :t]
    window = attentions.limited_context_mask(
      self.left_context, self.right_context, t, column_time_size=value.shape[1]
    )
    encoded = self._zero_fully_masked(encoded, jnp.minimum(atten_mask[:, 0], window))
    return self._shard_blnh(checkpoint_name(encoded, 'context')), probs

  def _dot_atten_one_step(
    self,
    query: JTensor,
    key_state_name: str,
    value_state_name: str,
    atten_mask: JTensor,
    relative_bias: JTensor | None = None,
    time_step: JTensor | None = None,
  ) -> tuple[JTensor, JTensor]:
    query = self._normed_query(query)  # The base of local attention does not call super().
    _, probs = super()._dot_atten_one_step(
      query, key_state_name, value_state_name, atten_mask, relative_bias, time_step
    )
    value = self._shard_blnh(self.get_decode_state(value_state_name))
    # A position outside the sequence has probability 0: any value will do, here the nearest.
    window = jnp.arange(self.left_context + self.right_context) + time_step + 1 - self.left_context
    value, atten_mask = (jnp.take(x, window, 1, mode='clip') for x in (value, atten_mask[:, 0]))
    return self._laser_context_one_step(probs, value, atten_mask), probs


class BiasByBlocks:
  """Local attention whose position bias Praxis computes only for whole sequences in blocks."""

  def setup(self) -> None:
    if self.simulated:
      raise UserError(
        f'{type(self).__qualname__} {self.name!r}: simulated=True has no position bias in Praxis. '
        'Set simulated=False'
      )
    super().setup()

  def extend_step(self, *args, **kwargs) -> JTensor:
    raise NotImplementedError(
      f'{type(self).__qualname__}.extend_step: Praxis adds no position bias in a single step, so '
      'decoding would not match training. To decode, use LaserLocalSelfAttention, or '
      'LaserDotProductAttentionXL'
    )


class LaserLocalSelfAttentionXL(
  BiasByBlocks, LaserLocalSelfAttention, attentions.LocalSelfAttentionXL
):
  """LocalSelfAttentionXL with LASER's context, for whole sequences in blocks."""


class LaserLocalSelfAttentionRelativeBias(
  BiasByBlocks, LaserLocalSelfAttention, attentions.LocalSelfAttentionRelativeBias
):
  """LocalSelfAttentionRelativeBias with LASER's context, for whole sequences in blocks."""


class LaserLocalSelfAttentionAlibi(
  BiasByBlocks, LaserLocalSelfAttention, attentions.LocalSelfAttentionAlibi
):
  """LocalSelfAttentionAlibi with LASER's context, for whole sequences in blocks."""


class LaserMultiQueryDotProductAttention(
  _LaserMixin, multi_query_attention.MultiQueryDotProductAttention
):
  """MultiQueryDotProductAttention with LASER's context, for any number of key/value heads.

  Praxis maps the methods below over several key/value heads: each call sees one, [B, S, H].
  """

  def _value_heads(self) -> tuple[int, base_layer.SplitDimsMapping]:
    weights = self.weight_split_dims_mapping
    if self.num_kv_heads > 1:
      return self.num_kv_heads, weights.proj and weights.proj[1:]
    return 1, weights.proj_headless and (None, weights.proj_headless[1])

  def _beta(self, value: JTensor) -> float | JTensor | None:
    all_heads = super()._beta(value)
    if not isinstance(all_heads, JTensor):
      return all_heads
    return all_heads[beta.place_in_vmap(jax.lax.stop_gradient(value))]

  def _atten_context(
    self,
    query: JTensor,
    key: JTensor,
    value: JTensor,
    atten_mask: JTensor,
    relative_bias: JTensor | None = None,
  ) -> tuple[JTensor, JTensor]:
    _, probs = super()._atten_context(query, key, value, atten_mask, relative_bias)
    encoded = self._laser_context('BNTS,BSH->BTNH', probs, value, self._keep_prob())
    return self._shard_blnh(checkpoint_name(encoded, 'context')), probs

  def _atten_context_chunked_attn_seq_split(
    self,
    query: JTensor,
    key: JTensor,
    value: JTensor,
    atten_mask: JTensor,
    relative_bias: JTensor | None = None,
  ) -> tuple[JTensor, None]:
    """Attends a chunk of queries at a time, to the keys up to its end: for causal masks."""
    length, chunks = value.shape[1], self.chunked_attn_num_seq_split
    if length % chunks:
      raise UserError(
        f'chunked_attn_num_seq_split={chunks} does not divide the sequence of {length} positions'
      )
    atten_mask = jnp.broadcast_to(atten_mask, (*atten_mask.shape[:2], length, length))
    contexts = []
    for end in range(length // chunks, length + 1, length // chunks):
      queries = slice(end - length // chunks, end)
      context, _ = self._atten_context(
        query[:, queries],
        key[:, :end],
        value[:, :end],
        atten_mask[:, :, queries, :end],
        None if relative_bias is None else relative_bias[:, :, queries, :end],
      )
      contexts.append(context)
    return self._shard_blnh(jnp.concatenate(contexts, axis=1)), None

  def _dot_atten_one_step_from_qkv(
    self,
    query: JTensor,
    key: JTensor,
    value: JTensor,
    atten_mask: JTensor,
    relative_bias: JTensor | None,
    time_step: JTensor | None = None,
  ) -> tuple[JTensor, JTensor]:
    _, probs = super()._dot_atten_one_step_from_qkv(
      query, key, value, atten_mask, relative_bias, time_step
    )
    one_step = query.ndim == 3
    equation = 'BNS,BSH->BNH' if one_step else 'BNTS,BSH->BTNH'
    return self._laser_context(equation, probs, value), probs


class LaserGroupedQueryAttention(_LaserMixin, grouped_query_attention.GroupedQueryAttention):
  """GroupedQueryAttention with LASER's context; one method serves training and decoding."""

  def _value_heads(self) -> tuple[int, base_layer.SplitDimsMapping]:
    weights = self.weight_split_dims_mapping
    dkh = weights.dkh or weights.dnh
    return self.num_kv_heads, dkh and (None if self.num_kv_heads == 1 else dkh[1], dkh[2])

  def _keep_prob(self) -> float:
    return 1.0 if self.do_eval else 1.0 - self.atten_dropout_prob

  def _atten_context(
    self, query: JTensor, key: JTensor, value: JTensor, atten_mask: JTensor
  ) -> tuple[JTensor, JTensor]:
    _, probs = super()._atten_context(query, key, value, atten_mask)
    encoded = self._laser_context('BKGTS,BSKH->BTKGH', probs, value, self._keep_prob())
    return checkpoint_name(encoded.reshape(query.shape), 'context'), probs
