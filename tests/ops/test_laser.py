"""LASER against its oracle, and against what the mathematics says of it."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laser_pax.ops import laser, laser_oracle, laser_oracle_vjp, log_weighted_sum_exp

B, T, N, H = 2, 12, 2, 4
CAUSAL = np.tril(np.ones((T, T), bool))
SEEDS = st.integers(0, 2**31 - 1)
SCALES = st.sampled_from([0.3, 1.0, 5.0])
properties = settings(max_examples=20, deadline=None)


def draw(seed, scale=1.0, shape=(B, T, N, H)):
  """Returns query and key of unit variance, values of standard deviation `scale`; float32."""
  rng = np.random.default_rng(seed)
  query, key, value = (rng.standard_normal(shape).astype(np.float32) for _ in range(3))
  return query, key, np.float32(scale) * value


def rms_error(x, reference):
  """The root mean square of the error over that of the reference."""
  x, reference = np.asarray(x, np.float64), np.asarray(reference, np.float64)
  return np.sqrt(np.mean((x - reference) ** 2) / np.mean(reference**2))


def standard(query, key, value, mask=CAUSAL):
  """softmax(Q K^T / sqrt(H)) V, in BTNH layout."""
  return jnp.einsum('BNTS,BSNH->BTNH', probabilities(query, key, mask), value)


def probabilities(query, key, mask=CAUSAL):
  logits = jnp.einsum('BTNH,BSNH->BNTS', query, key) * query.shape[-1] ** -0.5
  return jax.nn.softmax(jnp.where(mask, logits, -1e30))


def by_einsum(query, key, value, mask=CAUSAL):
  return log_weighted_sum_exp('BNTS,BSNH->BTNH', probabilities(query, key, mask), value)


mix_values = jax.jit(functools.partial(log_weighted_sum_exp, 'BNTS,BSNH->BTNH'))
FORMS = {
  'einsum': jax.jit(by_einsum),
  'wrapper': jax.jit(laser(standard)),
  'jax.nn': jax.jit(laser(functools.partial(jax.nn.dot_product_attention, is_causal=True))),
}


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('scale', [0.3, 1.0, 2.0, 5.0])
def test_output_and_gradients_equal_the_oracles(form, scale):
  inputs = draw(1, scale, (2, 64, 2, 16))
  mask = np.tril(np.ones((64, 64), bool))
  attention = FORMS[form] if form == 'jax.nn' else functools.partial(FORMS[form], mask=mask)
  cotangent = np.random.default_rng(2).standard_normal(inputs[0].shape).astype(np.float32)
  output, vjp = jax.vjp(attention, *inputs)
  assert rms_error(output, laser_oracle(*inputs, mask)) < 1e-5
  for ours, exact in zip(vjp(cotangent), laser_oracle_vjp(*inputs, cotangent, mask), strict=True):
    assert rms_error(ours, exact) < 1e-5


@pytest.mark.one_jax
@pytest.mark.parametrize('form', FORMS)
def test_bfloat16_in_bfloat16_out(form):
  inputs = [jnp.asarray(x, jnp.bfloat16) for x in draw(3)]
  output = FORMS[form](*inputs)
  assert output.dtype == jnp.bfloat16
  assert rms_error(output, laser_oracle(*inputs, CAUSAL)) < 0.01


def test_exponential_and_logarithm_are_float32_whatever_comes():
  probs, value = jnp.full((1, 1, 1, 2), 0.5, jnp.bfloat16), jnp.ones((1, 2, 1, 1), jnp.bfloat16)
  mix = functools.partial(log_weighted_sum_exp, 'BNTS,BSNH->BTNH', numerics='paper')
  jaxpr = jax.make_jaxpr(mix)(probs, value).jaxpr
  text = str(jaxpr)
  for name in ('exp', 'log', 'dot_general'):
    assert re.findall(rf'(\w+)\[[^]]*\] = {name}\b', text) == ['f32'], text


@properties
@given(SEEDS, st.floats(-30, 30, width=32))
def test_a_constant_stays_that_constant(seed, constant):
  query, key, value = draw(seed)
  output = FORMS['einsum'](query, key, np.full_like(value, constant))
  np.testing.assert_allclose(output, constant, rtol=1e-6, atol=1e-6)


@properties
@given(SEEDS, SCALES)
def test_adding_a_constant_to_a_column_adds_it_to_the_output(seed, scale):
  query, key, value = draw(seed, scale)
  c = np.random.default_rng(seed).uniform(-9, 9, (B, 1, N, H)).astype(np.float32)
  shifted, plain = FORMS['einsum'](query, key, value + c), FORMS['einsum'](query, key, value)
  np.testing.assert_allclose(shifted, plain + c, atol=2e-5)


@properties
@given(SEEDS, SCALES)
def test_lies_between_visible_values_and_not_below_standard(seed, scale):
  query, key, value = draw(seed, scale)
  output = np.asarray(FORMS['einsum'](query, key, value))
  seen = np.where(CAUSAL[None, :, :, None, None], value[:, None], np.nan)
  assert (output <= np.nanmax(seen, 2) + 1e-5).all()
  assert (output >= np.nanmin(seen, 2) - 1e-5).all()
  assert (output >= standard(query, key, value) - 1e-5).all()  # Jensen.


@properties
@given(SEEDS, SCALES)
def test_order_of_keys_does_not_matter(seed, scale):
  query, key, value = draw(seed, scale)
  order = np.random.default_rng(seed).permutation(T)
  plain = FORMS['einsum'](query, key, value)
  permuted = FORMS['einsum'](query, key[:, order], value[:, order], mask=CAUSAL[:, order])
  np.testing.assert_allclose(permuted, plain, atol=1e-5)


def test_causality_by_gradients():
  inputs = draw(4)
  t = T // 2
  _, vjp = jax.vjp(FORMS['jax.nn'], *inputs)
  cotangent = np.zeros((B, T, N, H), np.float32)
  cotangent[:, t] = 1
  d_query, d_key, d_value = vjp(cotangent)
  assert not np.any(d_query[:, :t]) and not np.any(d_query[:, t + 1 :])
  for d in (d_key, d_value):
    assert not np.any(d[:, t + 1 :]) and np.all(np.any(d[:, : t + 1], axis=(2, 3)))


def test_fully_masked_rows_are_finite():
  mask = CAUSAL & (np.arange(T) >= 3)[:, None]
  output, vjp = jax.vjp(functools.partial(FORMS['einsum'], mask=mask), *draw(5))
  assert np.isfinite(output).all()
  assert all(np.isfinite(d).all() for d in vjp(jnp.ones_like(output)))


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.grad, argnums=1)
def two_keys(mix, a11, value):
  """The derivative of the paper's case N = 2, d = 1 by a11, where a12 = 0."""
  return mix('TS,SH->TH', jax.nn.softmax(jnp.stack([a11, 0.0]))[None], value)[0, 0]


@properties
@given(st.floats(-4, 4, width=32), st.floats(-6, 6, width=32), st.floats(-6, 6, width=32))
def test_two_keys_have_the_closed_form_derivative(logit, v1, v2):
  s = 1 / (1 + np.exp(-np.float64(logit)))  # sigmoid(a11 - a12)
  e1, e2 = np.exp(np.float64(v1)), np.exp(np.float64(v2))
  arguments = jnp.float32(logit), jnp.array([[v1], [v2]], jnp.float32)
  standard_derivative = two_keys(jnp.einsum, *arguments)
  np.testing.assert_allclose(standard_derivative, (v1 - v2) * s * (1 - s), rtol=1e-4, atol=1e-6)
  exact = s * (1 - s) * (e1 - e2) / (s * e1 + (1 - s) * e2)
  np.testing.assert_allclose(
    two_keys(log_weighted_sum_exp, *arguments), exact, rtol=1e-4, atol=1e-6
  )


def test_two_keys_tend_to_one_minus_s():
  def output(a11):
    probs = jax.nn.softmax(jnp.stack([a11, 0.0]))[None]
    return log_weighted_sum_exp('TS,SH->TH', probs, jnp.array([[20.0], [0.0]]))[0, 0]

  # Where standard attention's gradient, s (1 - s) times 20, has all but vanished.
  s = jax.nn.sigmoid(-8.0)
  np.testing.assert_allclose(jax.grad(output)(-8.0), 1 - s, rtol=1e-4)


@pytest.mark.parametrize(
  'value_axes, output_axes', [('BSNH', 'BTNH'), ('BNSH', 'BNTH'), ('SBNH', 'TBNH')]
)
def test_any_layout(value_axes, output_axes):
  def order(axes):
    return ['BTNH'.index('T' if a == 'S' else a) for a in axes]

  def attention(*arrays):
    # To BTNH, through standard attention, and back to the layout under test.
    back = np.argsort(order(value_axes))
    return standard(*(jnp.transpose(x, back) for x in arrays)).transpose(order(output_axes))

  inputs = draw(6)
  wrapped = laser(attention, value_axes=value_axes, output_axes=output_axes)
  output = wrapped(*(np.transpose(x, order(value_axes)) for x in inputs))
  expected = laser_oracle(*inputs, CAUSAL).transpose(order(output_axes))
  np.testing.assert_allclose(output, expected, atol=1e-5)


def test_the_order_of_the_outputs_axes_changes_no_number():
  """Columns need not be the last axis: the gradient of a weight sums over them wherever."""
  rng = np.random.default_rng(12)
  weights = jax.nn.softmax(jnp.asarray(rng.standard_normal((5, 7)), jnp.float32))
  values = jnp.asarray(rng.standard_normal((7, 3)), jnp.float32)
  cotangent = rng.standard_normal((5, 3)).astype(np.float32)

  def output_and_gradients(equation, cotangent):
    output, vjp = jax.vjp(functools.partial(log_weighted_sum_exp, equation), weights, values)
    return output, *vjp(cotangent)

  output, *gradients = output_and_gradients('TS,SH->TH', cotangent)
  transposed, *same_gradients = output_and_gradients('TS,SH->HT', cotangent.T)
  np.testing.assert_allclose(transposed.T, output, rtol=1e-6)
  for ours, expected in zip(same_gradients, gradients, strict=True):
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_grouped_queries_share_values():
  rng = np.random.default_rng(7)
  query = rng.standard_normal((B, T, 6, H)).astype(np.float32)
  key, value = (rng.standard_normal((B, T, 2, H)).astype(np.float32) for _ in range(2))
  exact = laser_oracle(query, np.repeat(key, 3, 2), np.repeat(value, 3, 2), CAUSAL)
  np.testing.assert_allclose(FORMS['jax.nn'](query, key, value), exact, atol=1e-5)
  probs = probabilities(query, np.repeat(key, 3, 2)).reshape(B, 2, 3, T, T)
  grouped = log_weighted_sum_exp('BKGTS,BSKH->BTKGH', probs, value)
  np.testing.assert_allclose(grouped.reshape(query.shape), exact, atol=1e-5)


def test_wrapper_passes_on_further_arguments():
  inputs = draw(8)
  bias = np.random.default_rng(9).standard_normal((B, N, T, T)).astype(np.float32)
  attention = laser(jax.nn.dot_product_attention)
  logits = np.einsum('BTNH,BSNH->BNTS', *inputs[:2]) * H**-0.5 + bias
  expected = log_weighted_sum_exp('BNTS,BSNH->BTNH', jax.nn.softmax(jnp.asarray(logits)), inputs[2])
  np.testing.assert_allclose(attention(*inputs, bias), expected, atol=1e-5)
  np.testing.assert_allclose(attention(*inputs, bias=bias), expected, atol=1e-5)


@properties
@given(SEEDS, SCALES, st.floats(0, 1, width=32))
def test_zero_weight_is_one_more_key_of_value_zero(seed, scale, w0):
  query, key, value = draw(seed, scale)
  weights = (1 - w0) * probabilities(query, key)
  w0 = jnp.full(weights.shape[:-1], w0)
  with_w0 = mix_values(weights, value, w0)
  longer = mix_values(
    jnp.concatenate([weights, w0[..., None]], -1),
    jnp.concatenate([value, jnp.zeros_like(value[:, :1])], 1),
  )
  np.testing.assert_allclose(with_w0, longer, atol=1e-5)


@pytest.mark.parametrize(
  'equation', ['BNTS,BSNH', 'BNTS->BNT', 'BNTS,BSNH->BSTNH', 'BNTS,BSNH->BTN', 'BNTSX,BSNH->BTNH']
)
def test_equation_that_is_no_weighted_sum(equation):
  with pytest.raises(ValueError, match='BNTS'):
    log_weighted_sum_exp(equation, np.ones((1,) * 4), np.ones((1,) * 4))


@pytest.mark.parametrize(
  'layout, message',
  [
    ({'value_axes': 'BTNH'}, 'exactly one axis'),
    ({'value_axes': 'BSXH'}, 'exactly one axis'),
    ({'value_axes': 'BSH', 'output_axes': 'BTH'}, 'value has shape'),
    ({'output_axes': 'BTNHX'}, 'output has shape'),
  ],
)
def test_layout_that_does_not_fit(layout, message):
  with pytest.raises(ValueError, match=message):
    laser(standard, **layout)(*draw(10))


def test_output_whose_heads_are_no_multiple_of_values():
  def attention(query, key, value):
    return query

  query, _, value = draw(11, shape=(B, T, 3, H))
  with pytest.raises(ValueError, match='3 of the output is no multiple of 2'):
    laser(attention)(query, value[:, :, :2], value[:, :, :2])
