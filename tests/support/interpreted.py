"""Fused attention as on a TPU, its kernels interpreted: slow, with the same numbers."""

import contextlib
import functools
from collections.abc import Iterator
from unittest import mock

from laser_pax.ops import devices, fused


@contextlib.contextmanager
def kernels() -> Iterator[mock.Mock]:
  """Interprets kernels in the `with` block. Yields what makes them, which counts its calls."""
  splash = fused.splash_attention_kernel
  interpreted = functools.partial(splash.make_splash_mha, interpret=True)
  with (
    mock.patch.object(splash, 'make_splash_mha', side_effect=interpreted) as make,
    mock.patch.object(devices, 'platform', lambda mesh=None: 'tpu'),
  ):
    yield make
