r"""Fused attention as Praxis layers, standard and LASER.

    standard   O = softmax(cap(Q K^T)) V
    LASER      O = log( softmax(cap(Q K^T)) exp(V) )          the logits are never all in memory

A kernel is told whether its mask is causal, and the segment ids; it takes no T x T numbers. On a
CPU, attention by blocks of queries (laser_pax/ops/blocks.py) serves as the kernel. Praxis's decoder
turns segment ids into T x T numbers, from which segments could only be told by reading all of them.
`SegmentedTransformerLm` hands on the segment ids themselves, as `Segments`, to attentions
that know them. Every other mask of T rows takes the plain path, which is the standard class's own.

Fields and variables are those of the standard classes: checkpoints are interchangeable.

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
from laser_pax.layers import attention_paths, attention_statistics
from laser_pax.layers.attentions import LaserDotProductAttention
from laser_pax.layers.qk_norm import NormedStepsMixin
from laser_pax.layers.segments import Mask, Segments
from laser_pax.ops import by_heads, devices, fused

JTensor = pytypes.JTensor


@dataclasses.dataclass(kw_only=True)  # Makes its fields fields of the layers.
class FusedMixin:
  """A base before a Praxis attention: a kernel attends over whole sequences.

  The Praxis attention does what the kernel cannot do (see `plain_reason`), and all decoding.

  Attributes:
    kernel: The kernel that is asked for, as `fused_attention` takes it. None: what serves best
      among those that have run on the platform (laser_pax/ops/choice.py).
    summary_queries: Queries of the batch's first example whose probabilities are summarised in
      training, for TensorBoard; None for no summaries (docs/analysis.md).
  """

  kernel: str | None = None
  summary_queries: int | None = None

  def _dot_atten(
    self,
    query: JTensor,
    key: JTensor,
    value: JTensor,
    atten_mask: Mask,
    relative_bias: JTensor | None = None,
  ) -> tuple[JTensor, JTensor | None]:
    """Returns the context, and the probabilities; None for these where a kernel serves."""
    if self.summary_queries and not self.do_eval and self._plain_feature(relative_bias) is None:
      self._add_summaries(query, key, value, atten_mask)
    reason = self.plain_reason(query, key, atten_mask, relative_bias)
    layer = type(self).__name__
    if reason is not None:
      logging.log_first_n(logging.WARNING, '%s: no fused kernel: %s', 1, self.name, reason)
      attention_paths.tell(attention_paths.Path(layer, plain_reason=reason))
      if isinstance(atten_mask, Segments):
        atten_mask = atten_mask.dense(query.dtype)
      return super()._dot_atten(query, key, value, atten_mask, relative_bias)
    query, key, value = (self._shard_blnh(x) for x in (query, key, value))
    query = self._scaled_query(query)
    segments = _segments(atten_mask, query.shape[0], query.shape[1])
    lengths = query.shape[1], key.shape[1]
    case = fused.case_of(query, value, lengths, segments[0] is not None, self._cap())
    attention = self._attention(isinstance(atten_mask, Segments) and atten_mask.is_causal)
    attention_paths.tell(
      attention_paths.Path(
        layer,
        case,
        self.kernel,
        num_heads=query.shape[2],
        attention=self._alone(attention, value),
      )
    )
    attention = self._over_mesh(attention)
    return self._shard_blnh(self._attend(attention, query, key, value, *segments)), None

  def _attend(self, attention: Callable[..., JTensor], *arguments: JTensor | None) -> JTensor:
    """Calls the attention function over the mesh."""
    return attention(*arguments)

  def _scaled_query(self, query: JTensor) -> JTensor:
    query = self._scale_query(query)
    return query * query.shape[-1] ** -0.5 if self.scale_logits_by_head_dims else query

  def _add_summaries(self, query: JTensor, key: JTensor, value: JTensor, mask: Mask) -> None:
    """Adds summaries of some queries of the first example, whichever kernel serves."""
    length = query.shape[1]
    places = attention_statistics.sample(length, self.summary_queries)
    logits = jnp.einsum('BTNH,BSNH->BNTS', self._scaled_query(query[:1, places]), key[:1])
    mask = jax.tree.map(lambda x: x[:1], mask)
    attention_statistics.add_summaries(
      self, places, self._cap_logits(logits), value[:1], mask, length
    )

  def _attention(self, is_causal: bool) -> Callable[..., JTensor]:
    """Returns the attention function of (query, key, value, segment ids, key segment ids)."""
    return functools.partial(
      ops.fused_attention, is_causal=is_causal, logit_cap=self._cap(), kernel=self.kernel
    )

  def _alone(self, attention: Callable[..., JTensor], value: JTensor) -> Callable[..., JTensor]:
    """Returns the attention function as `_attend` calls it, free of this layer's variables."""
    del value
    return attention

  def _cap(self) -> float | None:
    return self.atten_logit_cap if self.atten_logit_cap > 0 else None

  def _over_mesh(self, attention: Callable[..., JTensor]) -> Callable[..., JTensor]:
    """Divides batch and heads over the mesh in context, as the layer is annotated."""
    mesh = devices.current_mesh()
    if mesh is None or mesh.size == 1:
      return attention
    batch, _, heads, _ = self._blnh_axes()
    return ops.over_mesh(attention, mesh, batch, heads)

  def _blnh_axes(self) -> tuple:
    """Returns the axes of the mesh that divide batch, length, heads and head size."""
    blnh = self.activation_split_dims_mapping.blnh
    return tuple(base_layer.to_partition_spec(blnh, self.mesh_axis_names))

  def plain_reason(
    self, query: JTensor, key: JTensor, atten_mask: Mask, relative_bias: JTensor | None
  ) -> str | None:
    """Returns why no kernel can serve these arguments of `_dot_atten`, or None.

    Args:
      query: [B, T, N, H].
      key: [B, S, N, H].
      atten_mask: [B|1, 1, T|1, S], or segments.
      relative_bias: [B|1, N, T, S], or None.
    """
    if not isinstance(atten_mask, Segments):
      if atten_mask.shape[2] != 1:
        return 'the mask has a row for each query, whose meaning a kernel cannot tell'
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
    return next((name for name, is_used in features.items() if is_used), None)

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
  """Returns segment ids of the queries [B, T], and of the keys [B, S]; None: those of queries.

  A mask [1|B, 1, 1, S] hides keys from all queries alike. Hidden keys form a segment of their own.
  """
  if isinstance(mask, Segments):
    return mask.segment_ids, None
  is_shown = mask[:, 0, 0] >= py_utils.get_large_negative_number(jnp.float32) / 2
  key_segments = jnp.broadcast_to(is_shown, (batch, is_shown.shape[1])).astype(jnp.int32)
  return jnp.ones((batch, length), jnp.int32), key_segments


class FusedDotProductAttention(FusedMixin, NormedStepsMixin, attentions.DotProductAttention):
  """DotProductAttention by a fused kernel. It has the base's fields and variables."""


class LaserFusedDotProductAttention(FusedMixin, LaserDotProductAttention):
  """LASER by a fused kernel, to which it gives exponentials of values.

  Where no kernel serves, it is LaserDotProductAttention.
  """

  def _attention(self, is_causal: bool) -> Callable[..., JTensor]:
    if self.numerics != 'exact':
      return ops.laser(super()._attention(is_causal), numerics=self.numerics)
    # Heads first, as the kernel wants them: it and the loop over wide columns read the same arrays.
    attention = functools.partial(
      ops.fused_attention_by_heads, is_causal=is_causal, logit_cap=self._cap(), kernel=self.kernel
    )
    return by_heads.heads_swapped(fused.padded_to_lanes(ops.laser_by_heads(attention)))

  def _attend(self, attention: Callable[..., JTensor], *arguments: JTensor | None) -> JTensor:
    beta = self._beta(arguments[2])
    if beta is None:
      return attention(*arguments)
    return attention(*arguments, beta=beta[:, None] if isinstance(beta, JTensor) else beta)

  def _alone(self, attention: Callable[..., JTensor], value: JTensor) -> Callable[..., JTensor]:
    beta = self._beta(value)
    if beta is None:
      return attention
    if not isinstance(beta, JTensor):
      return functools.partial(attention, beta=beta)
    n, h = beta.shape
    return lambda *arguments: attention(*arguments, beta=jnp.ones((n, 1, h)))
