"""Fused attention, its kernels interpreted, against the oracle and against plain jax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from laser_pax.ops import (
  by_heads,
  choice,
  devices,
  fused,
  fused_attention,
  laser,
  laser_oracle,
  laser_oracle_vjp,
)
from tests.support import stand_in_kernels

B, N = 2, 2
TOLERANCE = {'float32': 1e-5, 'bfloat16': 0.02}


def draw(t, h, dtype='float32', seed=0):
  """Query, scaled, key, value and a cotangent: [B, T, N, H]."""
  rng = np.random.default_rng(seed)
  arrays = (rng.standard_normal((B, t, N, h)).astype(np.float32) for _ in range(4))
  query, key, value, cotangent = (jnp.asarray(x, dtype) for x in arrays)
  return query * h**-0.5, key, value, cotangent


def segments(t):
  """Rows packed differently; the last segment stands for padding."""
  position = np.arange(t)
  rows = [position * 3 // t, (position > t // 5).astype(int) + (position > t - 9)]
  return jnp.asarray(np.stack(rows), jnp.int32)


def rms_error(x, reference):
  x, reference = np.asarray(x, np.float64), np.asarray(reference, np.float64)
  return np.sqrt(np.mean((x - reference) ** 2) / np.mean(reference**2))


def forward_and_backward(attention, *arrays):
  @functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
  def run(query, key, value, cotangent):
    output, vjp = jax.vjp(attention, query, key, value)
    return output, *vjp(cotangent.astype(output.dtype))

  return run(*arrays)


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize(('t', 'h', 'is_packed'), [(128, 128, False), (200, 64, True)])
def test_fused_laser_equals_the_oracle(t, h, is_packed, dtype, interpreted_kernels, monkeypatch):
  """At 200 and 64 both sizes are padded, and there are two blocks a side."""
  monkeypatch.setattr(fused, '_BLOCKS', (128,))
  inputs = draw(t, h, dtype)
  ids = segments(t) if is_packed else None
  attention = laser(functools.partial(fused_attention, is_causal=True))
  found = forward_and_backward(lambda *qkv: attention(*qkv, ids), *inputs)
  mask = np.tril(np.ones((t, t), bool))[None, None]
  if is_packed:
    mask = mask & (ids[:, :, None] == ids[:, None, :])[:, None]
  query, key, value, cotangent = (np.asarray(x, np.float64) for x in inputs)
  expected = laser_oracle(query, key, value, mask, scale=1.0)
  assert found[0].dtype == dtype
  assert rms_error(found[0], expected) < TOLERANCE[dtype]
  exact = laser_oracle_vjp(query, key, value, cotangent, mask, scale=1.0)
  for ours, gradient in zip(found[1:], exact, strict=True):
    assert rms_error(ours, gradient) < 3 * TOLERANCE[dtype]


@pytest.mark.parametrize('form', [lambda f: f, laser])
def test_a_kernel_equals_plain_jax_with_a_cap_and_segments(form, interpreted_kernels, monkeypatch):
  inputs, ids = draw(128, 64), segments(128)
  attention = form(functools.partial(fused_attention, is_causal=True, logit_cap=1.5))
  run = functools.partial(forward_and_backward, lambda *qkv: attention(*qkv, ids), *inputs)
  by_kernel = run()
  monkeypatch.setattr(devices, 'platform', lambda mesh=None: 'cpu')
  for ours, plain in zip(by_kernel, run(), strict=True):
    assert rms_error(ours, plain) < 1e-5


def test_hidden_keys_and_lengths_that_are_padded(interpreted_kernels, monkeypatch):
  query, key, value, cotangent = draw(130, 32)
  query, cotangent = query[:, :100], cotangent[:, :100]
  shown = jnp.asarray(np.arange(130) < np.array([[130], [70]]), jnp.int32)
  for ids in ((None, None), (jnp.ones((B, 100), jnp.int32), shown)):
    attention = functools.partial(fused_attention, is_causal=False)
    if ids[0] is not None:
      attention = functools.partial(attention, segment_ids=ids[0], key_segment_ids=ids[1])
    run = functools.partial(forward_and_backward, attention, query, key, value, cotangent)
    monkeypatch.setattr(devices, 'platform', lambda mesh=None: 'tpu')
    by_kernel = run()
    monkeypatch.setattr(devices, 'platform', lambda mesh=None: 'cpu')
    for ours, plain in zip(by_kernel, run(), strict=True):
      assert rms_error(ours, plain) < 1e-5


def test_values_are_mixed_linearly(interpreted_kernels):
  query, key, value, other = draw(128, 128)
  mix = functools.partial(fused_attention, query, key, is_causal=True)
  np.testing.assert_allclose(mix(2 * value - other), 2 * mix(value) - mix(other), atol=1e-5)


@pytest.mark.parametrize(
  ('length', 'block', 'share'), [(128, 128, 1), (1024, 512, 3 / 4), (1100, 384, 2 / 3)]
)
def test_blocks(length, block, share):
  assert fused.block_size(length) == block
  assert fused.computed_share(length) == share


def test_a_gpu_is_given_the_same_attention(monkeypatch):
  """What cuDNN's kernel is asked for, by jax's own other implementation of the same function."""
  inputs, ids = draw(64, 32, 'bfloat16'), segments(64)
  by_xla = jax.nn.dot_product_attention

  def without_cudnn(*args, implementation, **kwargs):
    assert implementation == 'cudnn'
    return by_xla(*args, implementation='xla', **kwargs)

  attention = functools.partial(fused_attention, *inputs[:3], ids, is_causal=True)
  plain = attention()
  monkeypatch.setattr(devices, 'platform', lambda mesh=None: 'gpu')
  monkeypatch.setattr(jax.nn, 'dot_product_attention', without_cudnn)
  assert rms_error(attention(), plain) < 0.02


@pytest.mark.parametrize('platform', ['tpu', 'gpu', 'cpu'])
@pytest.mark.parametrize('kernel', [None, 'triton', 'blocks'])
@pytest.mark.parametrize('cap', [None, 50.0])
@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_what_runs_is_what_is_said(platform, kernel, cap, dtype, monkeypatch):
  """The one that is called is the one that `choose` names."""
  called = stand_in_kernels.record(monkeypatch, platform)
  query, key, value, _ = draw(64, 32, dtype)
  fused_attention(query, key, value, segments(64), is_causal=True, logit_cap=cap, kernel=kernel)
  case = choice.Case(platform, jnp.dtype(dtype), 32, 32, (64, 64), True, cap)
  assert called == [choice.choose(case, kernel).kernel]


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'key': jnp.zeros((B, 128, 3, 128))}, 'must be'),
    ({'query': jnp.zeros((B, 64, N, 128))}, 'as many keys as queries'),
    ({'segment_ids': jnp.zeros((B, 64), jnp.int32)}, 'segment ids must be'),
    ({'key_segment_ids': jnp.zeros((B, 128), jnp.int32)}, 'no segment_ids'),
    ({'kernel': 'flash'}, "kernel must be one of .*; got 'flash'"),
  ],
)
def test_what_does_not_fit_is_refused(change, words):
  arrays = dict(zip(('query', 'key', 'value'), draw(128, 128), strict=False))
  with pytest.raises(ValueError, match=words):
    fused_attention(**{**arrays, **change}, is_causal=True)


@pytest.mark.one_jax
@pytest.mark.parametrize(('scale', 'center'), [(0.02, 30.0), (20.0, 0.0)], ids=['narrow', 'wide'])
def test_padding_outside_of_laser_changes_nothing(center, scale, interpreted_kernels):
  """Zeros in place of repeated keys would make columns about 30 wide, and their range another."""
  query, key, value, cotangent = draw(20, 8)
  value = center + scale * value
  kernel = functools.partial(fused.fused_attention_by_heads, is_causal=False)
  laser_attention = by_heads.laser_by_heads(kernel)
  seen = jnp.asarray(np.arange(20) < 17, jnp.int32)[None].repeat(B, 0)
  for ids in ((), (jnp.ones_like(seen), seen)):
    results = []
    for function in (fused.padded_to_lanes(laser_attention), laser_attention):
      attention = by_heads.heads_swapped(function)
      attend = lambda *qkv, f=attention, ids=ids: f(*qkv, *ids)  # noqa: E731
      results.append(forward_and_backward(attend, query, key, value, cotangent))
    for x, reference in zip(*results, strict=True):
      assert x.shape == reference.shape
      assert rms_error(x, reference) < 1e-5
