"""The oracle itself: against naive float64 where that is exact, and by finite differences."""

import numpy as np
import pytest

from laser_pax.ops import laser_oracle, laser_oracle_vjp

SHAPE = (2, 5, 2, 3)
CAUSAL = np.tril(np.ones((5, 5), bool))


def draw(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  query, key, value = (rng.standard_normal(SHAPE) for _ in range(3))
  return query, key, scale * value


def naive(query, key, value, mask):
  logits = np.einsum('BTNH,BSNH->BNTS', query, key) * SHAPE[-1] ** -0.5
  weights = np.where(mask, np.exp(logits), 0)
  weights /= weights.sum(-1, keepdims=True)
  return np.log(np.einsum('BNTS,BSNH->BTNH', weights, np.exp(value)))


@pytest.mark.parametrize('scale', [0.3, 5.0])
def test_equals_the_naive_form_where_that_is_exact(scale):
  inputs = draw(1, scale)
  np.testing.assert_allclose(laser_oracle(*inputs, CAUSAL), naive(*inputs, CAUSAL), rtol=1e-12)


def test_of_values_beyond_the_range_of_exp():
  query, key, value = draw(2)
  shift = np.array([2000.0, -2000.0, 0.0])
  expected = naive(query, key, value, CAUSAL) + shift
  np.testing.assert_allclose(laser_oracle(query, key, value + shift, CAUSAL), expected, rtol=1e-12)


def test_a_later_value_that_dwarfs_the_visible_ones_changes_nothing():
  query, key, value = draw(3)
  value[:, -1] = 1e4
  output = laser_oracle(query, key, value, CAUSAL)
  assert np.isfinite(output).all() and np.abs(output[:, :-1]).max() < 10


@pytest.mark.parametrize('mask', [None, CAUSAL, CAUSAL & (np.arange(5) > 1)[:, None]])
@pytest.mark.parametrize('scale', [1.0, 5.0])
def test_gradients_by_finite_differences(mask, scale):
  inputs = draw(4, scale)
  cotangent = np.random.default_rng(5).standard_normal(SHAPE)
  gradients = laser_oracle_vjp(*inputs, cotangent, mask)
  for i, gradient in enumerate(gradients):
    direction = np.random.default_rng(6 + i).standard_normal(SHAPE)

    def at(step, i=i, direction=direction):
      moved = [x + step * direction if i == j else x for j, x in enumerate(inputs)]
      return np.sum(cotangent * laser_oracle(*moved, mask))

    slope = (at(1e-5) - at(-1e-5)) / 2e-5
    np.testing.assert_allclose(slope, np.sum(gradient * direction), rtol=1e-7, atol=1e-8)


def test_fully_masked_row_attends_to_all_keys_alike():
  query, key, value = draw(7)
  mask = CAUSAL.copy()
  mask[2] = False
  expected = np.log(np.mean(np.exp(value), 1))
  np.testing.assert_allclose(laser_oracle(query, key, value, mask)[:, 2], expected, rtol=1e-12)


BETA = np.array([[0.0, 1e-3, 1.0], [-0.7, 4.0, -25.0]])


@pytest.mark.parametrize('scale', [1.0, 5.0])
def test_the_family_has_the_naive_form(scale):
  inputs = draw(8, scale)
  beta = np.where(BETA == 0, 1e-6, BETA)
  naive_form = naive(*inputs[:2], beta * inputs[2], CAUSAL) / beta
  np.testing.assert_allclose(laser_oracle(*inputs, CAUSAL, beta=beta), naive_form, atol=1e-9)


def test_the_family_tends_to_standard_attention():
  query, key, value = draw(9)
  logits = np.where(CAUSAL, np.einsum('BTNH,BSNH->BNTS', query, key) * SHAPE[-1] ** -0.5, -np.inf)
  weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  mean, square = (np.einsum('BNTS,BSNH->BTNH', weights, x) for x in (value, value**2))
  for beta in (0.0, 1e-40, -1e-12):
    np.testing.assert_allclose(laser_oracle(query, key, value, CAUSAL, beta=beta), mean, atol=1e-10)
  *_, d_beta = laser_oracle_vjp(query, key, value, np.ones(SHAPE), CAUSAL, beta=0.0)
  np.testing.assert_allclose(d_beta, ((square - mean**2) / 2).sum((0, 1)), rtol=1e-9)


def test_gradients_of_the_family_by_finite_differences():
  inputs, cotangent = [*draw(10), BETA], np.random.default_rng(11).standard_normal(SHAPE)
  gradients = laser_oracle_vjp(*inputs[:3], cotangent, CAUSAL, beta=BETA)
  for i, gradient in enumerate(gradients):
    direction = np.random.default_rng(12 + i).standard_normal(gradient.shape)

    def at(step, i=i, direction=direction):
      *qkv, beta = (x + step * direction if i == j else x for j, x in enumerate(inputs))
      return np.sum(cotangent * laser_oracle(*qkv, CAUSAL, beta=beta))

    slope = (at(1e-5) - at(-1e-5)) / 2e-5
    np.testing.assert_allclose(slope, np.sum(gradient * direction), rtol=1e-7, atol=1e-8)


def test_beta_of_one_and_a_great_one():
  inputs, cotangent = draw(13), np.ones(SHAPE)
  for found, expected in zip(
    laser_oracle_vjp(*inputs, cotangent, CAUSAL, beta=1.0),
    laser_oracle_vjp(*inputs, cotangent, CAUSAL),
    strict=False,
  ):
    np.testing.assert_array_equal(found, expected)
  seen = np.where(CAUSAL[None, :, :, None, None], inputs[2][:, None], -np.inf)
  np.testing.assert_allclose(laser_oracle(*inputs, CAUSAL, beta=1e12), seen.max(2), atol=1e-10)
