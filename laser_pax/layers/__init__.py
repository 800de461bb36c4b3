"""LASER attention as Praxis layers, a call that swaps it into any config, and a lean loss."""

from laser_pax.errors import require_pax

require_pax()

from laser_pax.layers.attentions import (  # noqa: E402
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
from laser_pax.layers.beta import FixedBeta, LearnedBeta  # noqa: E402
from laser_pax.layers.differential import (  # noqa: E402
  DifferentialAttention,
  LaserDifferentialAttention,
)
from laser_pax.layers.fused_attention import (  # noqa: E402
  FusedDotProductAttention,
  FusedMixin,
  LaserFusedDotProductAttention,
)
from laser_pax.layers.lean_softmax import LeanSharedEmbeddingSoftmax  # noqa: E402
from laser_pax.layers.rows_einsum import RowsEinsum, use_rows_einsum  # noqa: E402
from laser_pax.layers.segmented_lm import SegmentedTransformerLm, use_fused  # noqa: E402
from laser_pax.layers.segments import Segments  # noqa: E402
from laser_pax.layers.swap import Change, use_laser, use_standard  # noqa: E402

__all__ = [
  'Change',
  'DifferentialAttention',
  'FixedBeta',
  'FusedDotProductAttention',
  'FusedMixin',
  'LaserDifferentialAttention',
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
  'LearnedBeta',
  'LeanSharedEmbeddingSoftmax',
  'RowsEinsum',
  'SegmentedTransformerLm',
  'use_fused',
  'use_laser',
  'use_rows_einsum',
  'use_standard',
  'Segments',
]
