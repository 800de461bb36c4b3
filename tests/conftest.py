"""Settings that must stand before jax or TensorFlow is imported by any test."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

from laser_pax.cli import fast_import

fast_import.speed_up()
