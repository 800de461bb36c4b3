"""Attention by blocks of queries, in plain jax, against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from laser_pax.ops import blocks, laser_by_heads
from tests.support.capped_attention import B, draw, exact, segments, visible

TOLERANCE = {'float32': 2e-6, 'bfloat16': 0.01, 'float16': 0.002}


@functools.cache
def compiled_form(is_causal, cap, form):
  spec = blocks.AttentionSpec(is_causal, cap)
  attention = form(lambda *given: blocks.attention_by_blocks(*given, spec))

  @functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
  def run(query, key, value, cotangent, ids, key_ids):
    output, pull = jax.vjp(lambda *qkv: attention(*qkv, ids, key_ids), query, key, value)
    return output, *pull(cotangent.astype(output.dtype))

  return run


def found(query, key, value, cotangent, ids, key_ids, is_causal, cap, form=lambda f: f):
  ours = compiled_form(is_causal, cap, form)(query, key, value, cotangent, ids, key_ids)
  assert ours[0].dtype == (value.dtype if form is laser_by_heads else jnp.float32)
  assert all(x.dtype == value.dtype for x in ours[1:])
  return ours


def assert_near(ours, reference, tolerance):
  for x, expected in zip(ours, reference, strict=True):
    x = np.asarray(x, np.float64)
    assert np.isfinite(x).all()
    error = np.sqrt(np.mean((x - expected) ** 2) / max(np.mean(expected**2), 1e-30))
    assert error < tolerance


@pytest.mark.one_jax
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('cap', [None, 1.5, 50.0, 100.0])
@pytest.mark.parametrize(('t', 'is_packed'), [(40, False), (200, True), (530, True)])
def test_equals_float64_when_causal(t, is_packed, cap, dtype):
  """The lengths give one block, a shorter last block, and eight, the most there are."""
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


@pytest.mark.parametrize('form', [lambda f: f, laser_by_heads])
@pytest.mark.parametrize('cap', [None, 50.0])
def test_a_row_that_sees_nothing_is_finite_and_asks_nothing_of_query_and_key(cap, form):
  """The last 30 rows, one column being too wide for a float32's exponential."""
  query, key, value, cotangent = draw(130, 130)
  value = value.at[0, 0, 3, 5].set(100.0)
  ids = jnp.ones((B, 130), jnp.int32).at[:, 100:].set(7)
  key_ids = jnp.ones((B, 130), jnp.int32)
  given = query, key, value, cotangent, ids, key_ids, False, cap, form
  assert all(np.isfinite(np.asarray(x)).all() for x in found(*given))
  ours = found(query, key, value, cotangent.at[:, :, 100:].set(0.0), *given[4:])
  others = [query[:, :, :100], key, value, cotangent[:, :, :100]]
  seen = visible(100, 130, None, None, False)
  expected = exact(*others, seen, cap, is_laser=form is laser_by_heads)
  assert np.all(np.asarray(ours[1])[:, :, 100:] == 0)
  assert_near([x[:, :, :100] for x in ours[:2]] + list(ours[2:]), expected, 5e-6)


@pytest.mark.one_jax
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('sign', [1, -1])
@pytest.mark.parametrize('width', [43.0, 100.0])
def test_laser_has_the_whole_range_for_values_when_logits_are_at_the_cap(width, sign, dtype):
  """exp of the cap times exp of the values would be no number of float32."""
  query, key, value, cotangent = draw(140, 140, dtype)
  query, key = sign * (10 + jnp.abs(query)), 10 + jnp.abs(key)
  value = (jax.nn.sigmoid(3 * value.astype(jnp.float32)) * width).astype(dtype)
  given = query, key, value, cotangent
  ours = found(*given, None, None, True, 50.0, laser_by_heads)
  expected = exact(*given, visible(140, 140, None, None, True), 50.0, is_laser=True)
  tolerance = TOLERANCE[dtype] * (5 if width > 44 else 2)
  assert_near((ours[0], ours[3]), (expected[0], expected[3]), tolerance)
  assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in ours)


def test_a_row_that_sees_one_key_asks_nothing_of_it_in_bfloat16():
  """What cancels is rounded alike: the gradient of a probability of 1 is 0 to the bit."""
  query, key, value, cotangent = draw(70, 70, 'bfloat16', scale=4.0)
  ours = found(query, key, value + 3, cotangent, None, None, True, 50.0)
  assert np.all(np.asarray(ours[1], np.float32)[:, :, 0] == 0)
  expected = exact(query, key, value + 3, cotangent, visible(70, 70, None, None, True), 50.0)
  assert_near(ours, expected, 0.006)


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
