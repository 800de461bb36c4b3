"""The family between standard attention and LASER: its limits, its gradient, and its errors."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laser_pax.ops import (
  beta,
  fused_attention_by_heads,
  laser,
  laser_by_heads,
  laser_oracle,
  laser_oracle_vjp,
  log_weighted_sum_exp,
)
from tests.support import float64
from tests.support.programs import compiled, rounded_as_stated

B, T, N, H = 2, 24, 2, 6
CAUSAL = np.tril(np.ones((T, T), bool))
EQUATION = 'BNTS,BSNH->BTNH'


def rms_error(x, reference):
  x, reference = np.asarray(x, np.float64), np.asarray(reference, np.float64)
  return np.sqrt(np.mean((x - reference) ** 2) / np.mean(reference**2))


def draw(seed=0, scale=1.0, shape=(B, T, N, H)):
  """Returns query, key, value and cotangent, float32; values have standard deviation `scale`."""
  rng = np.random.default_rng(seed)
  arrays = [rng.standard_normal(shape).astype(np.float32) for _ in range(4)]
  arrays[2] *= np.float32(scale)
  return arrays


def probabilities(query, key):
  logits = jnp.einsum('BTNH,BSNH->BNTS', query, key, preferred_element_type=jnp.float32)
  seen = jnp.tri(query.shape[1], dtype=bool)
  logits = jnp.where(seen, logits * query.shape[3] ** -0.5, -1e30)
  return jax.nn.softmax(logits).astype(key.dtype)


def by_einsum(b, query, key, value):
  return log_weighted_sum_exp(EQUATION, probabilities(query, key), value, beta=b)


def by_wrapper(b, query, key, value):
  return laser(functools.partial(jax.nn.dot_product_attention, is_causal=True), beta=b)(
    query, key, value
  )


def by_blocks(b, query, key, value):
  """As fused layers have it on a CPU: heads first, and levels of one head at a time."""
  attention = laser_by_heads(functools.partial(fused_attention_by_heads, is_causal=True))
  swapped = (x.swapaxes(1, 2) for x in (query * query.shape[3] ** -0.5, key, value))
  return attention(*swapped, beta=b[:, None]).swapaxes(1, 2)


WAYS = {'einsum': by_einsum, 'wrapper': by_wrapper, 'blocks': by_blocks}


@functools.cache
def program(way):
  """Returns the output, and the gradients of query, key, value and beta."""

  def run(b, query, key, value, cotangent):
    output, pull = jax.vjp(WAYS[way], b, query, key, value)
    d_beta, *gradients = pull(cotangent)
    return output, *gradients, d_beta

  return compiled(run)


def errors(way, b, arrays):
  """Returns the errors of `program` against the oracle."""
  b = np.broadcast_to(np.asarray(b, np.float32), (N, H))
  found = program(way)(jnp.asarray(b), *arrays)
  assert all(np.isfinite(x).all() for x in found)
  *qkv, cotangent = arrays
  expected = (
    laser_oracle(*qkv, CAUSAL, beta=b),
    *laser_oracle_vjp(*qkv, cotangent, CAUSAL, beta=b),
  )
  return [rms_error(*pair) for pair in zip(found, expected, strict=True)]


# Each column has a beta of its own: both signs, zero, and what is only just not zero.
MIXED = [[0.0, 1e-3, 0.3, 1.0, -2.0, 1e-30], [5.0, -1e-5, 0.0, -1.0, 1e-8, 2.0]]


@pytest.mark.one_jax
@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('b', [0.0, 1e-12, 1e-3, 0.5, 3.0, -1.0, MIXED], ids=str)
def test_output_and_gradients_equal_the_oracles(way, b):
  assert max(errors(way, b, draw(1))) < 1e-5


@pytest.mark.one_jax
@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('b', [30.0, -1e4, MIXED], ids=str)
@pytest.mark.parametrize('scale', [1.0, 300.0])
def test_wide_columns(way, b, scale):
  """Levels: where beta is great, or where values are and beta of another column is near zero."""
  assert max(errors(way, b, draw(2, scale))) < 1e-5


@pytest.mark.one_jax
@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('b', [3e38, -3e38, 1e-38])
def test_extremes_are_finite(way, b):
  output, _, _, d_value, d_beta = program(way)(jnp.full((N, H), b), *draw(3, 50.0))
  assert all(np.isfinite(x).all() for x in (output, d_value, d_beta))


LONG = (1, 256, 16, 16)  # The first rows see few keys and decide the errors: heads average them.


def standard(_, query, key, value):
  product = functools.partial(jnp.einsum, EQUATION, preferred_element_type=jnp.float32)
  return product(probabilities(query, key), value).astype(value.dtype)


@functools.cache
def long_program(attend):
  def run(b, query, key, value, cotangent):
    output, pull = jax.vjp(functools.partial(attend, b), query, key, value)
    return output, *pull(cotangent)

  # Newer compilers drop the rounding of standard attention's gradient of the probabilities alone.
  return rounded_as_stated(run)


def long_errors(attend, b, arrays):
  """Returns the errors of the output, and of the gradients of query, key and value."""
  b_of_columns = jnp.full(LONG[2:], b, jnp.float32)
  found = [by_head(x) for x in long_program(attend)(b_of_columns, *arrays)]
  heads = zip(*(by_head(x) for x in arrays), strict=True)
  seen = np.tril(np.ones((LONG[1], LONG[1]), bool))
  expected = [float64.family(*qkv, seen, cotangent, b)[:4] for *qkv, cotangent in heads]
  expected = (np.stack(x) for x in zip(*expected, strict=True))
  return np.array([rms_error(*pair) for pair in zip(found, expected, strict=True)])


def by_head(x):
  return np.asarray(x, np.float64)[0].swapaxes(0, 1)


@pytest.mark.one_jax
def test_near_zero_it_is_standard_attention_to_rounding_in_bfloat16():
  arrays = [jnp.asarray(x, jnp.bfloat16) for x in draw(4, shape=LONG)]
  theirs = long_errors(standard, 0.0, arrays)
  for way, b in itertools.product(('einsum', 'blocks'), (0.0, 1e-3)):
    ratios = long_errors(WAYS[way], b, arrays) / theirs
    assert max(ratios) <= (1.3 if b else 1.02), (way, b, ratios)


@pytest.mark.one_jax
@pytest.mark.parametrize('b', [0.0, 1e-3, 0.5, -30.0])
def test_the_reference_is_the_oracle(b):
  arrays = draw(12, 3.0, (1, T, 1, H))
  expected = laser_oracle_vjp(*arrays, CAUSAL, beta=b)
  found = float64.family(*(by_head(x)[0] for x in arrays[:3]), CAUSAL, by_head(arrays[3])[0], b)
  for x, y in zip(found[1:], expected, strict=True):
    np.testing.assert_allclose(x, y.reshape(x.shape), rtol=1e-6, atol=1e-9)


def test_without_beta_or_with_one_it_is_laser_to_the_bit():
  query, key, value, _ = draw(5)
  programs = {
    jax.jit(functools.partial(by_einsum, b)).lower(query, key, value).as_text()
    for b in (None, 1, 1.0, np.float32(1))
  }
  assert len(programs) == 1
  # A beta that is learned may come to 1, and passes it.
  found = program('einsum')(jnp.ones((N, H)), *draw(5))[0]
  laser_output = compiled(functools.partial(by_einsum, None))(query, key, value)
  np.testing.assert_allclose(found, laser_output, atol=1e-6)


def test_beta_and_values_of_the_other_sign_give_the_other_output():
  query, key, value, cotangent = draw(6)
  found = program('blocks')(jnp.asarray(MIXED), query, key, value, cotangent)
  other = program('blocks')(-jnp.asarray(MIXED), query, key, -value, cotangent)
  is_zero = np.asarray(MIXED) == 0  # Zero has one sign: its bits may differ.
  np.testing.assert_allclose(other[0], -found[0], rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(other[0][..., ~is_zero], -found[0][..., ~is_zero])
  np.testing.assert_allclose(other[4], found[4], rtol=1e-4, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(-40, 40, width=32), st.floats(0, 20, width=32))
def test_it_grows_with_beta_from_the_least_value_to_the_greatest(seed, b, step):
  query, key, value, cotangent = draw(seed, 2.0)
  arguments = query, key, value, abs(cotangent)
  low, *_, slope = program('einsum')(jnp.full((N, H), b), *arguments)
  high = program('einsum')(jnp.full((N, H), b + step), *arguments)[0]
  assert (high >= low - 1e-5).all() and (slope >= -1e-4).all()
  seen = np.where(CAUSAL[None, :, :, None, None], value[:, None], np.nan)
  assert (low >= np.nanmin(seen, 2) - 1e-5).all() and (high <= np.nanmax(seen, 2) + 1e-5).all()


def test_a_great_beta_gives_the_greatest_visible_value():
  query, key, value, cotangent = draw(7)
  seen = np.where(CAUSAL[None, :, :, None, None], value[:, None], np.nan)
  for b, extreme in ((1e9, np.nanmax), (-1e9, np.nanmin)):
    output = program('blocks')(jnp.full((N, H), b), query, key, value, cotangent)[0]
    np.testing.assert_allclose(output, extreme(seen, 2), atol=1e-6)


def test_zero_weight_is_one_more_key_of_value_zero():
  query, key, value, _ = draw(8)
  weights, w0 = 0.7 * probabilities(query, key), jnp.full((B, N, T), 0.3)
  mix = compiled(lambda w, v, w0, b: log_weighted_sum_exp(EQUATION, w, v, w0, beta=b))
  found = mix(weights, value, w0, jnp.asarray(MIXED))
  longer = jnp.concatenate([value, jnp.zeros_like(value[:, :1])], 1)
  longer = mix(jnp.concatenate([weights, w0[..., None]], -1), longer, None, jnp.asarray(MIXED))
  np.testing.assert_allclose(found, longer, atol=1e-6)
  # Missing mass adds nothing in standard attention.
  expected = jnp.einsum(EQUATION, weights, value)
  np.testing.assert_allclose(mix(weights, value, w0, jnp.zeros((N, H))), expected, atol=1e-6)


def test_grouped_queries_share_the_beta_of_their_values():
  query, key, value, _ = draw(9)
  b, queries = np.asarray(MIXED, np.float32), np.repeat(query, 3, 2)
  repeated = (np.repeat(x, 3, 2) for x in (key, value))
  expected = laser_oracle(queries, *repeated, CAUSAL, beta=np.repeat(b, 3, 0))
  found = compiled(by_wrapper)(b, queries, key, value)
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
  ('b', 'message'),
  [
    (float('nan'), 'finite number'),
    (np.float32('inf'), 'finite number'),
    (np.array([0.5, -np.inf]), 'finite number'),
    ('learned', 'finite number'),
    (True, 'finite number'),
    (np.array(['a']), 'finite number'),
    (np.ones(3), r'broadcasts to \(2, 1, 2, 6\).*got \(3,\)'),
    (np.ones((T, 1, 1)), r'got \(24, 1, 1\)'),
    (np.ones((7, 1, 1, 1, 1)), r'got \(7, 1, 1, 1, 1\)'),
  ],
)
def test_a_beta_that_cannot_be(b, message):
  for attend in (by_einsum, by_wrapper):
    with pytest.raises(ValueError, match=message):
      attend(b, *draw(10)[:3])


@pytest.mark.parametrize('attend', [by_einsum, by_wrapper])
def test_the_papers_numerics_have_no_beta(attend):
  *qkv, _ = draw(11)
  for form in ('paper', 'unshifted'):
    with pytest.raises(ValueError, match=f"got '{form}' with a beta, which 'exact' alone has"):
      log_weighted_sum_exp(EQUATION, probabilities(*qkv[:2]), qkv[2], numerics=form, beta=0.5)


@pytest.mark.parametrize('b', [2.0**-48, 1e-3, 1.0, 50.0])
def test_the_excess_is_that_of_float64(b):
  w = np.concatenate([-np.geomspace(1e-6, 0.94, 60), np.geomspace(1e-6, 1e4, 200)])
  exact = ((1 + w) * np.log1p(w) - w) / b**2
  small = abs(w) < 0.01
  series = sum((-w) ** n / ((n + 1) * (n + 2)) for n in range(8))
  exact[small] = (w**2 / b**2 * series)[small]
  found = beta.excess(jnp.asarray(w / b, jnp.float32), jnp.float32(b))
  np.testing.assert_allclose(found, exact, rtol=5e-6)
