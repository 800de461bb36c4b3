r"""Fused attention as Praxis layers, standard and LASER.

    standard   O = softmax(cap(Q K^T)) V
    LASER      O = log( softmax(cap(Q K^T)) exp(V) )          the logits are never all in memory

A kernel knows a mask by what it says, causal and segments, not by its T x T numbers. So does what
stands for one where there is none, on a CPU say (laser_pax/ops/blocks.py): it is meant below too.
Praxis's decoder makes such numbers of the segment ids, so that nobody after it can tell what they
say without reading them all. `SegmentedTransformerLm` hands on the segment ids themselves, as a
`CausalSegments`, to attentions that know it. Every other mask of T rows takes the plain path.

Fields and variables are those of the standard classes: checkpoints are interchangeable. The plain
path is the standard class's own.

Shapes: B batch, T query length, S key length, N heads, H head size.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import fiddle
import jax
import jax.numpy as jnp
from absl import logging
from praxis import base_layer, pax_fiddle, py_utils, pytypes
from praxis.layers import attentions, base_ops

from laser_pax import ops
from laser_pax.layers.attentions import LaserDotProductAttention
from laser_pax.ops import by_heads, devices

JTensor = pytypes.JTensor


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CausalSegments:
  """A mask by which a position sees the earlier ones of its own segment, and itself.

  Attributes:
    segment_ids: [B, T] int32. Padding is a segment too.
  """

  segment_ids: JTensor

  def dense(self, dtype: jnp.dtype) -> JTensor:
    """Returns it as Praxis has it: [B, 1, T, T], large negative numbers where masked."""
    return attentions.causal_segment_mask(self.segment_ids, dtype)


# As Praxis's layers take them, and one more.
Mask = JTensor | CausalSegments


class FusedMixin:
  """Stands before a Praxis attention among the bases, and takes whole sequences to a kernel.

  What the kernel cannot do, the base does: see `plain_reason`. Decoding step by step is the base's.
  """

  def _dot_atten(
    self,
    query: JTensor,
    key: JTensor,
    value: JTensor,
    atten_mask: Mask,
    relative_bias: JTensor | None = None,
  ) -> tuple[JTensor, JTensor | None]:
    """As Praxis's, but for the probabilities, which are None where a kernel serves."""
    reason = self.plain_reason(query, key, atten_mask, relative_bias)
    if reason is not None:
      logging.log_first_n(logging.WARNING, '%s: no fused kernel: %s', 1, self.name, reason)
      if isinstance(atten_mask, CausalSegments):
        atten_mask = atten_mask.dense(query.dtype)
      return super()._dot_atten(query, key, value, atten_mask, relative_bias)
    query, key, value = (self._shard_blnh(x) for x in (query, key, value))
    query = self._scale_query(query)
    if self.scale_logits_by_head_dims:
      query = query * query.shape[-1] ** -0.5
    segments = _segments(atten_mask, query.shape[0], query.shape[1])
    encoded = self._over_mesh(self._mixture(isinstance(atten_mask, CausalSegments)))(
      query, key, value, *segments
    )
    return self._shard_blnh(encoded), None

  def _mixture(self, is_causal: bool) -> Callable[..., JTensor]:
    """Returns the attention function of (query, key, value, segment ids, key segment ids)."""
    cap = self.atten_logit_cap if self.atten_logit_cap > 0 else None
    return functools.partial(ops.fused_attention, is_causal=is_causal, logit_cap=cap)

  def _over_mesh(self, attention: Callable[..., JTensor]) -> Callable[..., JTensor]:
    """Divides batch and heads over the mesh in context as the layer's annotation says."""
    mesh = devices.current_mesh()
    if mesh is None or mesh.size == 1:
      return attention
    batch, _, heads, _ = self._blnh_axes()
    return ops.over_mesh(attention, mesh, batch, heads)

  def _blnh_axes(self) -> tuple:
    """The axes of the mesh that divide batch, length, heads and head size."""
    blnh = self.activation_split_dims_mapping.blnh
    return tuple(base_layer.to_partition_spec(blnh, self.mesh_axis_names))

  def plain_reason(
    self, query: JTensor, key: JTensor, atten_mask: Mask, relative_bias: JTensor | None
  ) -> str | None:
    """Returns why no kernel can serve these arguments of `_dot_atten`, or None.

    Args:
      query: [B, T, N, H].
      key: [B, S, N, H].
      atten_mask: As `_dot_atten` takes it.
      relative_bias: As well.
    """
    if not isinstance(atten_mask, CausalSegments):
      if atten_mask.shape[2] != 1:
        return 'the mask has a row for each query, of which a kernel cannot tell what it says'
      if self.zero_fully_masked:
        return 'zero_fully_masked: a kernel does not tell which rows see nothing'
    return self._plain_feature(relative_bias) or self._plain_mesh(query)

  def _plain_feature(self, relative_bias: JTensor | None) -> str | None:
    """Returns which feature of the layer no kernel has, or None."""
    ngrammer = self.ngrammer_tpl
    features = {
      'a relative bias': relative_bias is not None,
      'dropout of probabilities': self.atten_dropout_prob > 0,
      'attention_extra_logit': self.attention_extra_logit is not None,
      'attention_mask_summary': self.attention_mask_summary,
      'an n-grammer that asks for the probabilities': ngrammer is not None
      and ngrammer.ngram_using_attention_scores,
      'a qk_einsum_tpl of another class': _is_changed(self.qk_einsum_tpl),
      'a pv_einsum_tpl of another class': _is_changed(self.pv_einsum_tpl),
    }
    return next((name for name, wanted in features.items() if wanted), None)

  def _plain_mesh(self, query: JTensor) -> str | None:
    """Returns why a kernel cannot be divided over the mesh in context, or None."""
    mesh = devices.current_mesh()
    if mesh is None or mesh.size == 1:
      return None
    if self.mesh_axis_names is None or self.activation_split_dims_mapping.blnh is None:
      return 'activation_split_dims_mapping.blnh does not say how to divide it over the mesh'
    batch, length, heads, size = self._blnh_axes()
    if length is not None or size is not None:
      return 'the mesh divides sequences or heads themselves'
    for name, axes, dim in (('batch', batch, query.shape[0]), ('heads', heads, query.shape[2])):
      axes = axes if isinstance(axes, tuple) else (axes,)
      shards = math.prod(1 if axis is None else mesh.shape[axis] for axis in axes)
      if dim % shards:
        return f'{shards} devices cannot share {name} of {dim}'
    return None


def _is_changed(einsum_tpl: pax_fiddle.Config | None) -> bool:
  return einsum_tpl is not None and fiddle.get_callable(einsum_tpl) is not base_ops.EinsumOp


def _segments(mask: Mask, batch: int, length: int) -> tuple[JTensor | None, JTensor | None]:
  """Returns segment ids of the queries [B, T], and of the keys [B, S] where they are others.

  A mask [1|B, 1, 1, S] hides keys from all queries alike: those form a segment without queries.
  """
  if isinstance(mask, CausalSegments):
    return mask.segment_ids, None
  seen = mask[:, 0, 0] >= py_utils.get_large_negative_number(jnp.float32) / 2
  seen = jnp.broadcast_to(seen, (batch, seen.shape[1])).astype(jnp.int32)
  return jnp.ones((batch, length), jnp.int32), seen


class FusedDotProductAttention(FusedMixin, attentions.DotProductAttention):
  """DotProductAttention by a fused kernel. Fields and variables are those of the base."""


class LaserFusedDotProductAttention(FusedMixin, LaserDotProductAttention):
  """LASER by a fused kernel, which is given exponentials of values.

  Where no kernel serves it is LaserDotProductAttention.
  """

  def _mixture(self, is_causal: bool) -> Callable[..., JTensor]:
    attention = super()._mixture(is_causal)
    if self.numerics != 'exact':
      return ops.laser(attention, numerics=self.numerics)
    # Heads come first, as the kernel wants them: then it and the loop over wide columns read the
    # same arrays.
    fused_by_heads = functools.partial(ops.fused_attention_by_heads, **attention.keywords)
    return by_heads.heads_swapped(ops.laser_by_heads(fused_by_heads))
