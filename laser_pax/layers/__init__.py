"""LASER attention as Praxis layers, one call that swaps it into any config, and a lean loss."""

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
from laser_pax.layers.softmax import LeanSharedEmbeddingSoftmax
from laser_pax.layers.swap import Change, use_laser

__all__ = [
  'Change',
  'LaserDotProductAttention',
  'LaserDotProductAttentionWithContext',
  'LaserDotProductAttentionWithContextXL',
  'LaserDotProductAttentionXL',
  'LaserGroupedQueryAttention',
  'LaserLocalSelfAttention',
  'LaserLocalSelfAttentionAlibi',
  'LaserLocalSelfAttentionRelativeBias',
  'LaserLocalSelfAttentionXL',
  'LaserMultiQueryDotProductAttention',
  'LeanSharedEmbeddingSoftmax',
  'use_laser',
]
