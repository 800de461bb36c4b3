"""LASER attention on PAX: `log(softmax(Q K^T) exp(V))` as layers, experiments and launchers.

Importing this package is fast: each public name is loaded at its first use. Names of
`laser_pax.ops` need jax and numpy alone, the others PAX.
"""

import importlib

_HOMES = {
  'laser': 'laser_pax.ops',
  'log_weighted_sum_exp': 'laser_pax.ops',
  'laser_oracle': 'laser_pax.ops',
  'fused_attention': 'laser_pax.ops',
  'use_laser': 'laser_pax.layers',
  'LaserDotProductAttention': 'laser_pax.layers',
  'LaserDotProductAttentionXL': 'laser_pax.layers',
  'LaserLocalSelfAttention': 'laser_pax.layers',
  'LaserMultiQueryDotProductAttention': 'laser_pax.layers',
  'LaserGroupedQueryAttention': 'laser_pax.layers',
}

__all__ = list(_HOMES)


def __getattr__(name: str):
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])
