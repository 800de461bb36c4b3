"""LASER attention as Praxis layers, and one call that swaps it into any config."""

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
from laser_pax.layers.fused import (
  CausalSegments,
  FusedDotProductAttention,
  FusedMixin,
  LaserFusedDotProductAttention,
  SegmentedTransformerLm,
  use_fused,
)
from laser_pax.layers.swap import Change, use_laser

__all__ = [
  'CausalSegments',
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
  'SegmentedTransformerLm',
  'use_fused',
  'use_laser',
]
