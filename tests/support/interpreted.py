"""Fused attention as on a TPU, its kernels interpreted: slow, with the same numbers."""

import contextlib
import functools
from collections.abc import Iterator
from unittest import mock

from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

from laser_pax.ops import devices


@contextlib.contextmanager
def kernels() -> Iterator[mock.Mock]:
  """Interprets kernels in the `with` block. Yields what makes them, which counts its calls."""
  make_kernel = functools.partial(splash_attention_kernel.make_splash_mha, interpret=True)
  with (
    mock.patch.object(splash_attention_kernel, 'make_splash_mha', side_effect=make_kernel) as make,
    mock.patch.object(devices, 'platform', lambda mesh=None: 'tpu'),
  ):
    yield make
