"""Settings that must stand before jax or TensorFlow is imported by any test."""

import functools
import os

import pytest

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

from laser_pax.cli import fast_import

fast_import.speed_up()


@pytest.fixture
def interpreted_kernels(monkeypatch):
  """Fused attention as on a TPU, its kernels interpreted: slow, the same numbers."""
  from laser_pax.ops import fused

  interpreted = functools.partial(fused.splash.make_splash_mha, interpret=True)
  monkeypatch.setattr(fused.splash, 'make_splash_mha', interpreted)
  monkeypatch.setattr(fused, 'platform', lambda: 'tpu')
