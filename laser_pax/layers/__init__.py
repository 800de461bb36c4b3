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
  'use_laser',
]
