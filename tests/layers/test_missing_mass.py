"""Probabilities that do not sum to 1: attention dropout, and the sink of attention_extra_logit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from praxis import base_layer

from laser_pax.ops import laser_oracle
from tests.support import cases
from tests.support.cases import CASES, B, D, H, N, T, rms_error

DROPPING = ['multi_head', 'local', 'multi_query', 'multi_query_2_kv_heads', 'grouped_query']
SINKING = ['multi_head', 'xl', 'local', 'multi_query', 'multi_query_2_kv_heads']


def build(name, **fields):
  """Returns the case, the layer, its variables, and an input; the context itself comes out."""
  case = CASES[name]
  layer, variables = cases.build(case, use_bias=False, **fields)
  post = variables['params']['post']
  post['w'] = np.eye(D, dtype=np.float32).reshape(post['w'].shape)
  x = np.random.default_rng(3).standard_normal((B, T, D)).astype(np.float32)
  return case, layer, variables, x


def standard_of(name, **fields):
  """Returns the standard twin of the layer that `build` returns."""
  return cases.layer_of(CASES[name], standard=True, use_bias=False, **fields)


def train_pass(case, layer, variables, x, seed, seen=None):
  """Returns context [B, T, N, H] and probabilities in training, dropout on."""
  with cases.context(do_eval=False):
    output, probs = layer.apply(
      variables,
      *cases.arguments(case, x, x, cases.visibility(case, 'packing') if seen is None else seen),
      rngs={base_layer.RANDOM: jax.random.PRNGKey(seed)},
    )
  return output.reshape(B, T, N, H), probs


def values(layer, variables, x):
  """Returns [B, T, N, H], each query head's values."""
  with cases.context():
    value = layer.apply(variables, x, method=lambda layer, x: layer.value(x))
  value = value.reshape(B, T, -1, H)
  return jnp.repeat(value, N // value.shape[2], 2)


def scale_values(variables, factor):
  value = variables['params']['value']
  return variables | {
    'params': variables['params'] | {'value': jax.tree.map(lambda w: factor * w, value)}
  }


def with_missing_mass(weights, value):
  """log( sum_s w_s exp(V_s) + (1 - sum_s w_s) exp(0) ) by a log-sum-exp over one more key."""
  missing = jnp.maximum(1 - weights.sum(-1, keepdims=True), 0)
  weights = jnp.concatenate([weights, missing], -1)[..., None]
  value = jnp.pad(value, ((0, 0), (0, 1), (0, 0), (0, 0))).transpose(0, 2, 1, 3)[:, :, None]
  return jax.scipy.special.logsumexp(value, 3, b=weights).transpose(0, 2, 1, 3)


@pytest.mark.parametrize('name', DROPPING)
@pytest.mark.parametrize('keep', [0.7, 0.2])
def test_dropout_reads_a_dropped_key_as_a_key_of_value_zero(name, keep):
  case, layer, variables, x = build(name, atten_dropout_prob=1 - keep)
  standard = standard_of(name, atten_dropout_prob=1 - keep)

  @cases.compiled
  def run(variables, x):
    output, _ = train_pass(case, layer, variables, x, 7)
    _, probs = train_pass(case, standard, variables, x, 7)
    probs = cases.dense(case, probs, T)
    return output, with_missing_mass(keep * probs, values(layer, variables, x)) / keep, probs

  output, expected, probs = run(variables, x)
  assert np.any(probs.sum(-1) < 0.9)  # Dropout did drop.
  assert rms_error(output, expected) < 1e-5


@pytest.mark.parametrize('name', DROPPING)
def test_dropout_is_off_in_evaluation(name):
  case, layer, variables, x = build(name, atten_dropout_prob=0.5)
  without = cases.layer_of(case, use_bias=False)
  seen = cases.visibility(case, 'packing')

  @cases.compiled
  def run(variables, x):
    return [cases.full_pass(case, a, variables, x, x, seen)[0] for a in (layer, without)]

  np.testing.assert_array_equal(*run(variables, x))


@pytest.mark.parametrize('name', DROPPING)
def test_dropout_leaves_output_and_gradients_finite(name):
  """Row 0 of a causal mask sees one key: where that is dropped nothing at all is left."""
  case, layer, variables, x = build(name, atten_dropout_prob=0.3)

  @cases.compiled
  def run(variables, x, seed):
    def loss(variables, x):
      output, _ = train_pass(case, layer, variables, x, seed)
      return (output**2).sum(), output

    return jax.grad(loss, (0, 1), has_aux=True)(variables, x)

  nothing_left = 0
  for seed in range(6):
    gradients, output = run(scale_values(variables, 5.0), x, seed)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves((gradients, output)))
    nothing_left += (np.abs(output[:, 0]).max(-1) < 1e-5).sum()
  assert nothing_left


def test_dropout_of_a_row_with_a_single_key_is_unbiased():
  """Such a row is 0 or V / keep, whose expectation is V, as in standard attention."""
  keep = 0.7
  case, layer, variables, x = build('multi_head', atten_dropout_prob=1 - keep)
  passes = jax.vmap(lambda seed: train_pass(case, layer, variables, x, seed)[0][:, 0])
  samples = np.asarray(cases.compiled(passes)(jnp.arange(200)))
  value = np.asarray(values(layer, variables, x))[:, 0]
  kept = np.abs(samples).max(-1, keepdims=True) > 1e-3
  np.testing.assert_allclose(samples, np.where(kept, value / keep, 0), atol=1e-5)
  assert kept.mean() == pytest.approx(keep, abs=5 * np.sqrt(keep * (1 - keep) / kept.size))


@pytest.mark.parametrize('name', DROPPING)
def test_dropout_of_small_values_is_standard_inverted_dropout(name):
  """To first order in V: a tenth of V leaves a hundredth of the difference."""
  case, layer, variables, x = build(name, atten_dropout_prob=0.4)
  standard = standard_of(name, atten_dropout_prob=0.4)

  @cases.compiled
  def difference(variables, x):
    outputs = [train_pass(case, a, variables, x, 7)[0] for a in (layer, standard)]
    return jnp.sqrt(jnp.mean((outputs[0] - outputs[1]) ** 2))

  small, smaller = (difference(scale_values(variables, f), x) for f in (0.1, 0.01))
  assert 0 < smaller < small / 80


@pytest.mark.parametrize('extra_logit', [-2.0, 0.0, 4.0])
def test_sink_is_one_more_key_of_that_logit_and_value_zero(extra_logit):
  fields = {'atten_logit_cap': 0.0, 'internal_enable_per_dim_scale': False}
  case, layer, variables, x = build('multi_head', attention_extra_logit=extra_logit, **fields)
  seen = cases.visibility(case, 'packing')
  run = cases.compiled(functools.partial(cases.full_pass, case, layer))
  output, _ = run(variables, x, x, seen)

  def project(name):
    return np.einsum('BTD,DNH->BTNH', x, variables['params'][name]['w'], dtype=np.float64)

  def pad(x, key, feature):
    return np.pad(x, ((0, 0), (0, key), (0, 0), (0, feature)))

  # A feature that is 1 in every query, and in the added key alone the logit.
  query = pad(project('query') * H**-0.5, 0, 1)
  query[..., -1] = 1
  key = pad(project('key'), 1, 1)
  key[:, -1, :, -1] = extra_logit
  value = pad(project('value'), 1, 0)
  seen = np.pad(seen, ((0, 0), (0, 0), (0, 1)), constant_values=True)[:, None]
  assert rms_error(output, laser_oracle(query, key, value, seen, 1.0).reshape(B, T, -1)) < 1e-5


@pytest.mark.parametrize('name', SINKING)
def test_sink_in_every_layer_and_in_steps(name):
  case, layer, variables, x = build(name, attention_extra_logit=1.0)
  standard = standard_of(name, attention_extra_logit=1.0)
  seen = cases.visibility(case, 'padding')

  @cases.compiled
  def run(variables, x):
    arguments = case, layer, variables, x, x, seen
    _, probs = cases.full_pass(case, standard, variables, x, x, seen)
    expected = with_missing_mass(cases.dense(case, probs, T), values(layer, variables, x))
    return (
      cases.full_pass(*arguments)[0],
      cases.step_by_step(*arguments),
      expected,
    )

  whole, steps, expected = run(variables, x)
  assert rms_error(whole, expected.reshape(whole.shape)) < 1e-5
  assert rms_error(steps, whole) < 1e-5
  assert not seen.any(-1).all() and np.abs(whole[~seen.any(-1)]).max() < 1e-6  # All to the sink.


@pytest.mark.parametrize('extra_logit', [-100.0, 0.0, 120.0])
def test_sink_leaves_output_and_gradients_finite(extra_logit):
  case, layer, variables, x = build('multi_head', attention_extra_logit=extra_logit)
  seen = cases.visibility(case, 'padding')

  @functools.partial(jax.value_and_grad, argnums=(0, 1))
  def loss(variables, x):
    return (cases.full_pass(case, layer, variables, x, x, seen)[0] ** 2).sum()

  results = cases.compiled(loss)(scale_values(variables, 5.0), x)
  assert all(np.isfinite(r).all() for r in jax.tree.leaves(results))


@pytest.mark.parametrize('dtype, tolerance', [(jnp.float32, 1e-5), (jnp.bfloat16, 0.02)])
def test_dropout_and_sink_together(dtype, tolerance):
  keep = 0.6
  fields = {'atten_dropout_prob': 1 - keep, 'attention_extra_logit': 0.5, 'fprop_dtype': dtype}
  case, layer, variables, x = build('multi_head', **fields)
  standard = standard_of('multi_head', **fields)

  @cases.compiled
  def run(variables, x):
    output, _ = train_pass(case, layer, variables, x, 7)
    _, probs = train_pass(case, standard, variables, x, 7)
    weights, value = (a.astype(jnp.float32) for a in (probs, values(layer, variables, x)))
    return output, with_missing_mass(keep * weights, value) / keep

  assert rms_error(*run(variables, x.astype(dtype))) < tolerance
