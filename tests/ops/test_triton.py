"""The Triton kernel, interpreted, against float64; and lowered for a GPU that is not here."""

import contextlib
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas

from laser_pax.ops import blocks, devices, fused_attention, laser, laser_by_heads, triton
from tests.support.capped_attention import draw, exact, segments, visible

TOLERANCE = {'float32': 2e-6, 'bfloat16': 0.01}


@pytest.fixture
def interpreted():
  """Interprets kernels, and counts the calls."""
  call = functools.partial(pallas.pallas_call, interpret=True)
  with mock.patch.object(pallas, 'pallas_call', side_effect=call) as counted:
    yield counted


def run(attention, query, key, value, cotangent):
  @functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
  def both(query, key, value, cotangent):
    output, pull = jax.vjp(attention, query, key, value)
    return output, *pull(cotangent.astype(output.dtype))

  return both(query, key, value, cotangent)


def assert_near(ours, reference, tolerance):
  for x, expected in zip(ours, reference, strict=True):
    x = np.asarray(x, np.float64)
    error = np.sqrt(np.mean((x - expected) ** 2) / np.mean(expected**2))
    assert error < tolerance


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize(('t', 'is_packed', 'cap'), [(256, False, None), (200, True, 1.5)])
@pytest.mark.parametrize('form', [lambda f: f, laser_by_heads], ids=['standard', 'laser'])
def test_equals_float64_when_causal(t, is_packed, cap, dtype, form, interpreted):
  """There are two blocks of queries and four of keys; at 200 some rows are padding."""
  inputs = draw(t, t, dtype)
  ids = segments(t) if is_packed else None
  spec = blocks.AttentionSpec(True, cap)
  attention = form(lambda *given: triton.triton_attention(*given, spec))
  ours = run(lambda *qkv: attention(*qkv, ids, ids), *inputs)
  is_laser = form is laser_by_heads
  expected = exact(*inputs, visible(t, t, ids, ids, True), cap, is_laser=is_laser)
  assert_near(ours, expected, TOLERANCE[dtype] * (2 if is_laser else 1))
  assert all(x.dtype == dtype for x in ours)
  assert interpreted.call_count >= 3


@pytest.mark.parametrize(('is_packed', 'cap'), [(False, None), (True, 1.5)])
def test_other_keys_of_which_some_are_hidden(cap, is_packed, interpreted):
  """Neither length is one that blocks divide, and a block of queries is all padding."""
  inputs = draw(130, 90)
  ids, key_ids = (segments(130), segments(90)) if is_packed else (None, None)
  spec = blocks.AttentionSpec(False, cap)
  attention = lambda *qkv: triton.triton_attention(*qkv, ids, key_ids, spec)  # noqa: E731
  seen = visible(130, 90, ids, key_ids, False)
  assert_near(run(attention, *inputs), exact(*inputs, seen, cap), 2e-6)


def test_a_row_that_sees_nothing_is_finite_and_asks_nothing(interpreted):
  query, key, value, cotangent = draw(128, 128)
  ids = jnp.ones((2, 128), jnp.int32).at[:, 100:].set(7)
  key_ids = jnp.ones((2, 128), jnp.int32)
  spec = blocks.AttentionSpec(False, 50.0)
  attention = lambda *qkv: triton.triton_attention(*qkv, ids, key_ids, spec)  # noqa: E731
  ours = run(attention, query, key, value, cotangent)
  assert all(np.isfinite(np.asarray(x)).all() for x in ours)
  assert np.all(np.asarray(ours[1])[:, :, 100:] == 0)
  seen = visible(100, 128, None, None, False)
  expected = exact(query[:, :, :100], key, value, cotangent[:, :, :100], seen, 50.0)
  assert_near([x[:, :, :100] for x in ours[:2]] + list(ours[2:]), expected, 2e-6)


@pytest.mark.parametrize('sign', [1, -1])
def test_logits_far_above_the_cap(sign, interpreted):
  query, key, value, cotangent = draw(128, 128)
  inputs = jnp.abs(query) * 1e4 * sign, jnp.abs(key), value, cotangent
  spec = blocks.AttentionSpec(True, 50.0)
  ours = run(lambda *qkv: triton.triton_attention(*qkv, None, None, spec), *inputs)
  expected = exact(*inputs, visible(128, 128, None, None, True), 50.0)
  assert_near(ours[:1] + ours[3:], expected[:1] + expected[3:], 1e-3)
  assert all(np.isfinite(np.asarray(x)).all() for x in ours)


@pytest.mark.parametrize('form', [lambda f: f, laser], ids=['standard', 'laser'])
@pytest.mark.parametrize('h', [64, 128])
def test_it_can_be_lowered_for_a_gpu(h, form, monkeypatch):
  """Triton's own checks of its IR pass; that is as far as a machine without a GPU gets."""
  monkeypatch.setattr(devices, 'platform', lambda mesh=None: 'gpu')
  array = jax.ShapeDtypeStruct((1, 1024, 2, h), jnp.bfloat16)
  ids = jax.ShapeDtypeStruct((1, 1024), jnp.int32)
  attention = functools.partial(fused_attention, is_causal=True, logit_cap=50.0, kernel='triton')

  def both(query, key, value, cotangent, ids):
    output, pull = jax.vjp(lambda *qkv: form(attention)(*qkv, ids), query, key, value)
    return output, *pull(cotangent)

  with as_on_a_gpu():
    lowered = (
      jax.jit(both).trace(array, array, array, array, ids).lower(lowering_platforms=('cuda',))
    )
  assert lowered.as_text().count('__gpu$xla.gpu.triton') >= 3


def as_on_a_gpu():
  """Later versions of jax must be told for which GPU."""
  if not hasattr(jax.sharding, 'AbstractDevice'):
    return contextlib.nullcontext()
  kind = 'NVIDIA H100 80GB HBM3'
  device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=132, platform='gpu')
  return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))
