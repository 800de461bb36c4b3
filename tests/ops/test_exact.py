"""The exact form: a bound on its error that holds for any finite values, and how it is run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from laser_pax.ops import (
  columns,
  fused_attention_by_heads,
  laser,
  laser_by_heads,
  levels,
  log_weighted_sum_exp,
)
from tests.support.programs import compiled

UNIT = {'bfloat16': 2.0**-8, 'float32': 2.0**-22}  # Of rounding; float32's sums lose some bits.
EQUATION = 'TS,SH->TH'


@functools.partial(
  jax.jit, static_argnames='numerics', compiler_options={'xla_backend_optimization_level': 0}
)
def run(weights, values, cotangent, numerics='exact'):
  """Returns the output and the gradients of weights and values."""
  mix = functools.partial(log_weighted_sum_exp, EQUATION, numerics=numerics)
  output, vjp = jax.vjp(mix, weights, values)
  return output, *vjp(cotangent.astype(output.dtype))


def masks(rng, kind, length):
  seen = np.tril(np.ones((length, length), bool))
  if kind == 'packed':
    segments = np.sort(rng.integers(0, 3, length))
    seen &= segments[:, None] == segments
  elif kind == 'padded':  # In front: the first rows see nothing, and attend to all keys alike.
    seen &= np.arange(length) >= length // 3
  elif kind == 'window':
    seen &= np.arange(length)[:, None] - np.arange(length) < 3
  elif kind == 'all':
    seen[:] = True
  return seen


def probabilities(rng, seen, spread):
  logits = np.where(seen, spread * rng.standard_normal(seen.shape), -np.inf)
  logits = np.where(seen.any(1, keepdims=True), logits, 0)
  weights = np.exp(logits - logits.max(1, keepdims=True))
  return weights / weights.sum(1, keepdims=True)


def draw_columns(rng, length, width, scale, change):
  values = scale * rng.standard_normal((length, width))
  at = rng.integers(length)
  if change == 'one huge':
    values[at] = 1e4
  elif change == 'one low':
    values[at] = -1e4
  elif change == 'last':
    values[-1] = values.max(0) + 300
  elif change == 'constant':
    values[:] = values[0]
  elif change == 'far from zero':
    values += 1e3
  elif change == 'two kinds':
    values += np.where(rng.random(values.shape) < 0.5, 0, -60)
  elif change == 'greatest':
    values[at] = 3e38
    values[0] = -3e38
  return values


@pytest.mark.one_jax
@settings(max_examples=500, deadline=None)
@example(1268, 32, 8, 'window', 'bfloat16', 1.0, 4.0, 'none')  # 0.77 of the bound.
@given(
  seed=st.integers(0, 2**31 - 1),
  length=st.sampled_from([1, 5, 32]),
  width=st.sampled_from([1, 8]),
  mask=st.sampled_from(['causal', 'packed', 'padded', 'window', 'all']),
  dtype=st.sampled_from(['bfloat16', 'float32']),
  scale=st.sampled_from([0.0, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0, 1e4]),
  spread=st.sampled_from([0.1, 1.0, 4.0]),
  change=st.sampled_from(
    ['none', 'one huge', 'one low', 'last', 'constant', 'far from zero', 'two kinds', 'greatest']
  ),
)
def test_error_is_bounded_whatever_the_values(
  seed, length, width, mask, dtype, scale, spread, change
):
  """|error of O| <= u (|O| + exp(r) - 1), r = min(R, log 2 (R + 1)), R = min(8, range of V).

  u is the unit of rounding. c lies r above the lowest value. E is rounded by half a unit, and the
  weights sum to 1 up to half a unit; log1p makes of each exp(c - O) at most. Gradients alike.
  """
  rng = np.random.default_rng(seed)
  weights = jnp.asarray(probabilities(rng, masks(rng, mask, length), spread), dtype)
  values = jnp.asarray(draw_columns(rng, length, width, scale, change), dtype)
  cotangent = jnp.asarray(rng.standard_normal((length, width)), dtype)
  results = [np.asarray(x, np.float64) for x in run(weights, values, cotangent)]
  assert all(np.isfinite(x).all() for x in results)
  output, d_weights, d_values = results

  # In float64, of the very numbers that were given.
  p, v, g = (np.asarray(x, np.float64) for x in (weights, values, cotangent))
  p /= p.sum(1, keepdims=True)
  with np.errstate(divide='ignore'):
    terms = np.log(p)[:, :, None] + v
  exact_output = np.logaddexp.reduce(terms, axis=1)
  share = np.exp(terms - exact_output[:, None])  # [T, S, H], sums to 1 over S.
  unit, size = UNIT[dtype], np.minimum(8, v.max(0) - v.min(0))
  above = np.expm1(np.minimum(size, np.log(2 * (size + 1))))
  assert (abs(output - exact_output) <= unit * (abs(exact_output) + above) + 1e-15).all()

  relative = 8 * unit + 1e-5  # An exponent of 100 in float32 has the second.
  bound = relative * (share * abs(g)[:, None]).sum(0)
  assert (abs(d_values - (share * g[:, None]).sum(0)) <= bound + 1e-15).all()
  # What reaches the logits: p (dp - sum p dp).
  d_logits = p * (d_weights - (p * d_weights).sum(1, keepdims=True))
  exact_d_logits = ((share - p[:, :, None]) * g[:, None]).sum(2)
  scale_of_row = ((share + p[:, :, None]) * abs(g)[:, None]).sum(2)
  mass = p * scale_of_row.sum(1, keepdims=True)
  assert (abs(d_logits - exact_d_logits) <= relative * (scale_of_row + mass) + 1e-15).all()


@pytest.mark.one_jax
@settings(max_examples=100, deadline=None)
@given(
  seed=st.integers(0, 2**31 - 1),
  dtype=st.sampled_from(['bfloat16', 'float32']),
  scale=st.floats(-5, -1).map(lambda x: 10**x),
  spread=st.sampled_from([0.0, 0.1, 1.0]),
  hidden=st.sampled_from([0.0, -1.0, 10.0, 1e3]),
)
def test_errors_of_small_values_cancel_over_many_keys(seed, dtype, scale, spread, hidden):
  """|error of O| <= u |O| + 6 (u / 2) sqrt(sum (p E)^2) + 2^-15 sum p |E|, whatever is hidden.

  Rounding changes each E by at most u / 2 of it. If these errors are independent and their mean is
  zero, their sum exceeds the second term once in 30 million (Hoeffding). The third term is what is
  left of the mean. No term is the size of V itself.
  """
  rng = np.random.default_rng(seed)
  seen = np.arange(4096) < np.array([[1], [7], [64], [512], [2048], [3000], [4000], [4095]])
  weights = jnp.asarray(probabilities(rng, seen, spread), dtype)
  values = scale * rng.standard_normal((4096, 8))
  values[-1] = hidden  # No row sees it.
  values = jnp.asarray(values, dtype)
  output = np.asarray(run(weights, values, jnp.ones((8, 8)))[0], np.float64)

  p, v = np.asarray(weights, np.float64), np.asarray(values, np.float64)
  p /= p.sum(1, keepdims=True)
  e = np.where(v == hidden, 0.0, np.expm1(np.minimum(v, 1)))
  exact_output = np.log1p(p @ e)
  unit = UNIT[dtype]
  by_chance = 3 * unit * np.sqrt(p**2 @ e**2)
  bound = unit * abs(exact_output) + by_chance + 2**-15 * (p @ abs(e))
  assert (abs(output - exact_output) <= bound + 1e-15).all()


def test_it_tends_to_standard_attention():
  """At a standard deviation of 1e-5 hardly an output differs, and none by more than a rounding."""
  rng = np.random.default_rng(0)
  weights = jnp.asarray(probabilities(rng, masks(rng, 'causal', 512), 1.0), jnp.bfloat16)
  values = jnp.asarray(1e-5 * rng.standard_normal((512, 64)), jnp.bfloat16)
  cotangent = jnp.asarray(rng.standard_normal((512, 64)), jnp.bfloat16)
  ours = run(weights, values, cotangent)

  def standard(weights, values):
    mixed = jnp.matmul(weights, values, preferred_element_type=jnp.float32)
    return mixed.astype(values.dtype)

  output, pull = jax.vjp(standard, weights, values)
  for x, y in zip((ours[0], ours[2]), (output, pull(cotangent)[1]), strict=True):
    x, y = (np.asarray(a, np.float64) for a in (x, y))
    assert (x == y).mean() > 0.99
    np.testing.assert_allclose(x, y, rtol=2**-7)


@pytest.mark.parametrize('size', [3e38, -3e38])
def test_two_of_the_greatest_values_there_are(size):
  values = jnp.array([[size], [size], [0.0]])
  weights = jnp.full((3, 3), 1 / 3)
  output = run(weights, values, jnp.ones((3, 1)))[0]
  np.testing.assert_allclose(output, np.full((3, 1), max(size, np.log(1 / 3))), rtol=1e-6)


def spread_column():
  """A later value that the first rows cannot see lies 1,000 above theirs."""
  return jnp.array([[0.5], [0.25], [1000.0]]), jnp.tril(jnp.ones((3, 3))) / jnp.arange(1, 4)[
    :, None
  ]


def test_the_papers_form_has_two_faults_and_the_exact_form_has_neither():
  values, weights = spread_column()
  ours, papers = (run(weights, values, jnp.ones((3, 1)), n)[0] for n in ('exact', 'paper'))
  assert np.isneginf(papers[:2]).all()
  np.testing.assert_allclose(ours[0], 0.5, rtol=1e-6)
  np.testing.assert_allclose(ours[2], 1000 - np.log(3), rtol=1e-6)

  rng = np.random.default_rng(0)
  small = jnp.asarray(0.01 * rng.standard_normal((256, 16)), jnp.bfloat16)
  weights = jnp.asarray(probabilities(rng, masks(rng, 'causal', 256), 1.0), jnp.bfloat16)
  p, v = np.asarray(weights, np.float64), np.asarray(small, np.float64)
  reference = np.log(p / p.sum(1, keepdims=True) @ np.exp(v))
  rms = {}
  for numerics in ('exact', 'paper'):
    output = np.asarray(run(weights, small, jnp.ones((256, 16)), numerics)[0], np.float64)
    rms[numerics] = np.sqrt(np.mean((output - reference) ** 2) / np.mean(reference**2))
  assert rms['exact'] < 0.005 < 0.1 < rms['paper']


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_values_that_are_not_finite_show(bad):
  values, weights = spread_column()
  output = run(weights, values.at[1].set(bad), jnp.ones((3, 1)))[0]
  assert not np.isfinite(output).any()


def test_without_the_shift_exp_overflows():
  """The limits are those of float32; the first row sees 0.7 of the greatest value."""
  weights = jnp.array([[0.7, 0.3], [0.0, 1.0]], jnp.float32)
  column = lambda top: jnp.array([[top], [-1.0]], jnp.float32)  # noqa: E731
  for top in (-3.0, 2.0, 88.0):
    outputs = [run(weights, column(top), jnp.ones((2, 1)), n)[0] for n in ('exact', 'unshifted')]
    np.testing.assert_allclose(*outputs, rtol=1e-6)
  output, gradient = run(weights, column(89.0), jnp.ones((2, 1)), 'unshifted')[:2]
  assert np.isposinf(output[0]) and not np.isfinite(gradient).all()
  assert np.isneginf(run(weights, column(-1.0) - 110, jnp.ones((2, 1)), 'unshifted')[0]).all()


def test_unknown_numerics():
  values, weights = spread_column()
  with pytest.raises(ValueError, match="'exact', 'paper' or 'unshifted'; got 'fast'"):
    log_weighted_sum_exp(EQUATION, weights, values, numerics='fast')


def four_examples():
  """Returns weights, and values of 2 x 2 examples, one of which has a wide column."""
  values, weights = spread_column()
  examples = [values, values / 1000, -values / 2000, values / 500]
  return weights, jnp.stack(examples).reshape(2, 2, 3, 1)


def test_vmaps_give_what_each_example_alone_gives():
  weights, values = four_examples()

  def output_and_gradients(v):
    output, vjp = jax.vjp(functools.partial(log_weighted_sum_exp, EQUATION), weights, v)
    return output, *vjp(jnp.ones_like(output))

  batched = compiled(jax.vmap(jax.vmap(output_and_gradients)))(values)
  single = compiled(output_and_gradients)
  for at in np.ndindex(2, 2):
    alone = single(values[at])
    for x, y in zip(batched, alone, strict=True):  # atol: dL/dp is a difference of terms near 1.
      np.testing.assert_allclose(x[at], y, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('name', ['sum_of_levels', 'gradients_of_levels'])
def test_levels_are_taken_of_examples_with_wide_columns_alone(name, monkeypatch):
  correct = getattr(levels, name)

  def spoilt(*args):
    return jax.tree.map(lambda x: x + jnp.nan, correct(*args))

  monkeypatch.setattr(levels, name, spoilt)
  weights, values = four_examples()
  mix = functools.partial(log_weighted_sum_exp, EQUATION, weights)
  output, vjp = jax.vjp(jax.vmap(jax.vmap(mix)), values)
  shown = output if name == 'sum_of_levels' else vjp(jnp.ones_like(output))[0]
  is_wide = np.asarray(values.max((2, 3)) - values.min((2, 3)) > columns.WIDTH)
  assert is_wide.tolist() == [[True, False], [False, False]]
  np.testing.assert_array_equal(np.isnan(shown).any((2, 3)), is_wide)


def test_levels_of_a_single_entry_are_not_taken_unless_it_is_wide():
  """XLA moves out of a loop what does not depend on it; of a single entry that would be all."""
  attention = laser_by_heads(functools.partial(fused_attention_by_heads, is_causal=True))

  def output_and_gradients(*qkv):
    output, pull = jax.vjp(attention, *qkv)
    return output, pull(output)

  text = jax.jit(output_and_gradients).lower(*(jnp.ones((1, 1, 128, 8)),) * 3).compile().as_text()
  outside_loops = text[text.index('\nENTRY') :]
  assert outside_loops.count(' while(') == 2  # Over wide entries: of outputs, and of gradients.


def test_wide_columns_of_a_wrapped_function():
  rng = np.random.default_rng(3)
  query, key, value = (rng.standard_normal((1, 16, 2, 8)).astype(np.float32) for _ in range(3))
  value *= 100
  attention = functools.partial(jax.nn.dot_product_attention, is_causal=True)
  logits = np.einsum('BTNH,BSNH->BNTS', query, key) / np.sqrt(8)
  probs = jax.nn.softmax(np.where(np.tril(np.ones((16, 16), bool)), logits, -np.inf))
  by_einsum = log_weighted_sum_exp('BNTS,BSNH->BTNH', probs, value)

  @compiled
  def output_and_gradients(*qkv):
    output, vjp = jax.vjp(laser(attention), *qkv)
    return output, vjp(by_einsum)

  output, gradients = output_and_gradients(query, key, value)
  np.testing.assert_allclose(output, by_einsum, rtol=1e-5)
  assert all(np.isfinite(d).all() for d in gradients)


def test_a_function_may_close_over_arrays_under_a_scan_and_a_checkpoint():
  rng = np.random.default_rng(4)
  query, key, value = (rng.standard_normal((1, 8, 1, 4)).astype(np.float32) for _ in range(3))
  seen = jnp.tril(jnp.ones((8, 8), bool))

  def loss(bias, value):
    attention = laser(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, bias, seen))
    layer = jax.checkpoint(lambda v, _: (attention(query, key, v), None))
    return jax.lax.scan(layer, value, jnp.arange(2))[0].sum()

  d_bias, d_value = jax.jit(jax.grad(loss, (0, 1)))(jnp.zeros((1, 1, 8, 8)), value)
  assert np.any(d_bias) and np.any(d_value)
  step = 1e-2
  direction = rng.standard_normal(value.shape).astype(np.float32)
  zeros = jnp.zeros((1, 1, 8, 8))
  above, below = (compiled(loss)(zeros, value + x * direction) for x in (step, -step))
  slope = (above - below) / (2 * step)
  np.testing.assert_allclose((d_value * direction).sum(), slope, rtol=1e-2)


def test_a_function_may_close_over_traced_integers():
  """Segment ids of a batch, under jit inside of a gradient, and the other way round."""
  rng = np.random.default_rng(5)
  qkv = [rng.standard_normal((1, 8, 1, 4)).astype(np.float32) for _ in range(3)]
  ids = jnp.arange(8)[None] // 3

  def loss(ids, qkv):
    same = (ids[:, :, None] == ids[:, None, :])[:, None]
    attention = laser(lambda *qkv: jax.nn.dot_product_attention(*qkv, mask=same))
    return jnp.square(attention(*qkv)).sum()

  inside = jax.grad(jax.jit(loss), 1)(ids, qkv)
  outside = jax.jit(jax.grad(loss, 1))(ids, qkv)
  for ours, expected in zip(inside, outside, strict=True):
    assert np.any(ours)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_the_center_is_within_reach_of_the_lowest_value():
  low = jnp.array([-9.0, -1.0, 0.5, -3.0])
  high = jnp.array([9.0, 1.0, 3.0, -2.5])
  np.testing.assert_allclose(columns.center(low, high), [np.log(18) - 9, 0.0, 0.5, -2.5], rtol=1e-6)
