"""The mathematics of LASER, and of a lean loss, on jax and numpy alone."""

from laser_pax.ops.by_heads import laser_by_heads
from laser_pax.ops.cross_entropy import TOKENS_PER_CHUNK, CrossEntropy, cross_entropy
from laser_pax.ops.devices import TokenSharding
from laser_pax.ops.embedding import lookup
from laser_pax.ops.fused import fused_attention, fused_attention_by_heads, over_mesh
from laser_pax.ops.laser import Numerics, laser, log_weighted_sum_exp
from laser_pax.ops.oracle import laser_oracle, laser_oracle_vjp

__all__ = [
  'TOKENS_PER_CHUNK',
  'CrossEntropy',
  'Numerics',
  'TokenSharding',
  'cross_entropy',
  'fused_attention',
  'fused_attention_by_heads',
  'laser',
  'laser_by_heads',
  'laser_oracle',
  'laser_oracle_vjp',
  'log_weighted_sum_exp',
  'lookup',
  'over_mesh',
]
