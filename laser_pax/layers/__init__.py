"""LASER attention as Praxis layers, a call that swaps it into any config, and a lean loss."""

from laser_pax.layers.attentions import (
  LaserDotProductAttention,
  LaserDotProductAttentionWithContext,
  LaserDotProductAttentionWithContextXL,
  LaserDotProductAttentionXL,
  LaserGroupedQueryAttention,
  LaserLocalSelfAttention,
  LaserLocalSelfAttentionAlibi,
  LaserLocalSelfAttentionRelativeBias,
  LaserLocalSelfAttentionXL,
  LaserMultiQueryDotProductAttention,
)
from laser_pax.layers.fused_attention import (
  FusedDotProductAttention,
  FusedMixin,
  LaserFusedDotProductAttention,
  Segments,
)
from laser_pax.layers.lean_softmax import LeanSharedEmbeddingSoftmax
from laser_pax.layers.rows_einsum import RowsEinsum, use_rows_einsum
from laser_pax.layers.segmented_lm import SegmentedTransformerLm, use_fused
from laser_pax.layers.swap import Change, use_laser

__all__ = [
  'Change',
  'FusedDotProductAttention',
  'FusedMixin',
  'LaserDotProductAttention',
  'LaserDotProductAttentionWithContext',
  'LaserDotProductAttentionWithContextXL',
  'LaserDotProductAttentionXL',
  'LaserFusedDotProductAttention',
  'LaserGroupedQueryAttention',
  'LaserLocalSelfAttention',
  'LaserLocalSelfAttentionAlibi',
  'LaserLocalSelfAttentionRelativeBias',
  'LaserLocalSelfAttentionXL',
  'LaserMultiQueryDotProductAttention',
  'LeanSharedEmbeddingSoftmax',
  'RowsEinsum',
  'SegmentedTransformerLm',
  'use_fused',
  'use_laser',
  'use_rows_einsum',
  'Segments',
]
