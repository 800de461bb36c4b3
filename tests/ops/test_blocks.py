"""Attention by blocks of queries, in plain jax, against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from laser_pax.ops import blocks

B, N, H = 2, 2, 16
TOLERANCE = {'float32': 2e-6, 'bfloat16': 0.01, 'float16': 0.002}


def draw(t, s, dtype='float32', scale=1.0, seed=0):
  rng = np.random.default_rng(seed)
  sizes = (t, s, s, t)
  query, *rest = (rng.standard_normal((B, N, x, H)) for x in sizes)
  return [jnp.asarray(x, dtype) for x in (query * scale * H**-0.5, *rest)]


def segments(t):
  ids = np.arange(t) * 3 // t
  return jnp.asarray(np.stack([ids, ids // 2]), jnp.int32)


def visible(t, s, ids, key_ids, is_causal):
  seen = np.ones((B, 1, t, s), bool)
  if is_causal:
    seen &= np.tril(np.ones((t, s), bool))
  if ids is not None:
    seen &= (np.asarray(ids)[:, :, None] == np.asarray(key_ids)[:, None, :])[:, None]
  return seen


def exact(query, key, value, cotangent, seen, cap):
  """Output and gradients in float64, by the plain formulas; rows that see nothing are 0."""
  q, k, v, g = (np.asarray(x, np.float64) for x in (query, key, value, cotangent))
  a = q @ k.swapaxes(-1, -2)
  capped = cap * np.tanh(a / cap) if cap else a
  capped = np.where(seen, capped, -np.inf)
  greatest = capped.max(-1, keepdims=True)
  p = np.exp(capped - np.where(np.isfinite(greatest), greatest, 0))
  p /= np.where(p.sum(-1, keepdims=True) == 0, 1, p.sum(-1, keepdims=True))
  d_p = g @ v.swapaxes(-1, -2)
  d_a = p * (d_p - (p * d_p).sum(-1, keepdims=True))
  if cap:
    d_a *= 1 - np.tanh(a / cap) ** 2
  return p @ v, d_a @ k, d_a.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ g


def found(query, key, value, cotangent, ids, key_ids, is_causal, cap):
  @jax.jit
  def run(query, key, value, cotangent):
    attention = functools.partial(blocks.attention_by_blocks, is_causal=is_causal, logit_cap=cap)
    output, pull = jax.vjp(lambda *qkv: attention(*qkv, ids, key_ids), query, key, value)
    return output, *pull(cotangent)

  ours = run(query, key, value, cotangent)
  assert all(x.dtype == value.dtype for x in ours)
  return ours


def assert_near(ours, reference, tolerance):
  for x, expected in zip(ours, reference, strict=True):
    x = np.asarray(x, np.float64)
    assert np.isfinite(x).all()
    error = np.sqrt(np.mean((x - expected) ** 2) / max(np.mean(expected**2), 1e-30))
    assert error < tolerance


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('cap', [None, 1.5, 50.0, 100.0])
@pytest.mark.parametrize(('t', 'is_packed'), [(40, False), (200, True), (1030, True)])
def test_equals_float64_when_causal(t, is_packed, cap, dtype):
  """Of one block, of some with a shorter last one, and of eight, the most there are."""
  inputs = draw(t, t, dtype)
  ids = segments(t) if is_packed else None
  seen = visible(t, t, ids, ids, True)
  ours = found(*inputs, ids, ids, True, cap)
  assert_near(ours, exact(*inputs, seen, cap), TOLERANCE[dtype])


@pytest.mark.parametrize('cap', [None, 50.0])
def test_other_keys_of_which_some_are_hidden(cap):
  inputs = draw(150, 90)
  ids, key_ids = segments(150), segments(90)
  seen = visible(150, 90, ids, key_ids, False)
  assert_near(found(*inputs, ids, key_ids, False, cap), exact(*inputs, seen, cap), 2e-6)
  seen = visible(150, 90, None, None, False)
  assert_near(found(*inputs, None, None, False, cap), exact(*inputs, seen, cap), 2e-6)


@pytest.mark.parametrize('cap', [None, 50.0])
def test_a_row_that_sees_nothing_is_zero_and_asks_for_nothing(cap):
  inputs = draw(130, 130)
  ids = jnp.ones((B, 130), jnp.int32).at[:, 100:].set(7)
  key_ids = jnp.ones((B, 130), jnp.int32)
  seen = visible(130, 130, ids, key_ids, False)
  ours = found(*inputs, ids, key_ids, False, cap)
  assert np.all(np.asarray(ours[0])[:, :, 100:] == 0)
  assert_near(ours, exact(*inputs, seen, cap), 2e-6)


@pytest.mark.parametrize(('cap', 'scale'), [(None, 100.0), (50.0, 1e4), (100.0, 1e4)])
@pytest.mark.parametrize('sign', [1, -1])
def test_logits_at_the_cap_and_without_one_are_finite(cap, scale, sign):
  """Every logit of some rows at the cap, or hundreds from zero, on either side."""
  query, key, value, cotangent = draw(70, 70)
  query = jnp.abs(query) * scale * sign
  inputs = query, jnp.abs(key), value, cotangent
  ours = found(*inputs, None, None, True, cap)
  expected = exact(*inputs, visible(70, 70, None, None, True), cap)
  # float32 logits of a thousand are known to 1e-4 of one: so far may weights be apart.
  assert_near(ours[:1] + ours[3:], expected[:1] + expected[3:], 1e-3)
  assert all(np.isfinite(np.asarray(x)).all() for x in ours)


def test_half_of_the_pairs_are_not_computed():
  def pairs(is_causal):
    cuts = blocks._blocks(1024, 1024, is_causal)
    assert [x.start for x, _ in cuts] == [*range(0, 1024, 128)]
    return sum((rows.stop - rows.start) * keys.stop for rows, keys in cuts)

  assert pairs(False) == 1024**2
  assert pairs(True) == 1024**2 * 9 / 16 == 1024**2 * blocks.computed_share(1024)
  assert blocks.computed_share(64) == 1.0
