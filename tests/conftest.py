"""Settings that must stand before jax or TensorFlow is imported by any test."""

import functools
import os

import pytest

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

from laser_pax import pax_fixes

pax_fixes.read_lambdas_fast()


@pytest.fixture
def interpreted_kernels(monkeypatch):
  """Fused attention as on a TPU, its kernels interpreted: slow, the same numbers."""
  from laser_pax.ops import devices, fused

  interpreted = functools.partial(fused.splash_attention_kernel.make_splash_mha, interpret=True)
  monkeypatch.setattr(fused.splash_attention_kernel, 'make_splash_mha', interpreted)
  monkeypatch.setattr(devices, 'platform', lambda mesh=None: 'tpu')


@pytest.fixture(scope='session')
def commands(tmp_path_factory):
  """Starts commands in processes of their own; see tests/support/commands.py."""
  from tests.support.commands import Server

  server = Server(tmp_path_factory.mktemp('commands'))
  yield server
  server.close()


def pytest_collection_modifyitems(items):
  """Puts files with slow tests first, so that no worker is left with one at the end."""
  slow = {item.path for item in items if item.get_closest_marker('slow')}
  items.sort(key=lambda item: item.path not in slow)
