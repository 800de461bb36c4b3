"""The mathematics of LASER, on jax and numpy alone."""

from laser_pax.ops.fused import fused_attention, over_mesh
from laser_pax.ops.laser import Numerics, laser, log_weighted_sum_exp
from laser_pax.ops.oracle import laser_oracle, laser_oracle_vjp

__all__ = [
  'Numerics',
  'fused_attention',
  'laser',
  'laser_oracle',
  'laser_oracle_vjp',
  'log_weighted_sum_exp',
  'over_mesh',
]
