"""Which pairs count, statistics of them, and the summaries of layers in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from praxis import base_layer, pax_fiddle, py_utils
from praxis.layers import attentions

from laser_pax import layers
from laser_pax.layers import attention_statistics, segments
from tests.support.cases import compiled, fill

B, T, N, H = 2, 24, 2, 4
D = N * H
IDS = np.array([[1] * 9 + [2] * 15, [1] * 16 + [0] * 8], np.int32)
LARGE_NEGATIVE = py_utils.get_large_negative_number(jnp.float32)
LASER, STANDARD = layers.LaserFusedDotProductAttention, layers.FusedDotProductAttention


def expected_pairs(is_causal):
  seen = (IDS[:, :, None] == IDS[:, None]) & (IDS > 0)[:, :, None]
  return seen & np.tri(T, dtype=bool) if is_causal else seen


@pytest.mark.parametrize('is_causal', [True, False])
@pytest.mark.parametrize('queries', [None, np.array([3, 12, 23])])
def test_pairs_of_segments_leave_padding_out(is_causal, queries):
  visible = segments.visibility(segments.Segments(IDS, is_causal), T, queries)
  pairs = expected_pairs(is_causal)
  np.testing.assert_array_equal(visible.pairs, pairs if queries is None else pairs[:, queries])
  np.testing.assert_array_equal(visible.keys, IDS > 0)


def test_pairs_of_a_mask_of_keys_leave_padding_out():
  mask = jnp.where(IDS > 0, 0.0, LARGE_NEGATIVE)[:, None, None]
  visible = segments.visibility(mask, T)
  real = IDS > 0
  np.testing.assert_array_equal(visible.pairs, real[:, :, None] & real[:, None])
  np.testing.assert_array_equal(visible.keys, real)


def test_pairs_of_a_dense_mask_are_those_of_positions_that_see_themselves():
  seen = np.tri(T, dtype=bool)
  seen[5] = False
  visible = segments.visibility(jnp.where(seen, 0.0, LARGE_NEGATIVE)[None, None], T)
  np.testing.assert_array_equal(visible.pairs[0], seen)
  np.testing.assert_array_equal(visible.keys[0], np.arange(T) != 5)


def test_all_pairs_that_a_query_of_cross_attention_sees_count():
  shown = np.arange(7) < np.array([[7], [4]])
  visible = segments.visibility(jnp.where(shown, 0.0, LARGE_NEGATIVE)[:, None, None], T)
  np.testing.assert_array_equal(visible.pairs, np.broadcast_to(shown[:, None], (B, T, 7)))
  np.testing.assert_array_equal(visible.keys, shown)


def test_counts_are_those_of_numpy():
  rng = np.random.default_rng(0)
  probs = 10.0 ** -rng.uniform(0, 10, (B, N, T, T)).astype(np.float32)
  pairs = expected_pairs(True)
  counts = attention_statistics.count_below(probs, pairs, (1e-3, 1e-7))
  for head in range(N):
    values = probs[:, head][pairs]
    np.testing.assert_array_equal(counts[head], [(values < 1e-3).sum(), (values < 1e-7).sum()])


def test_spreads_are_those_of_numpy():
  rng = np.random.default_rng(0)
  value = rng.standard_normal((3, T, N, H)).astype(np.float32)
  real = np.concatenate([IDS > 0, np.zeros((1, T), bool)])  # An example of padding alone.
  rows = [value[i, real[i]] for i in range(2)]
  spread = attention_statistics.spread(value, real)
  np.testing.assert_allclose(spread.std, np.mean([r.std(0).mean(-1) for r in rows], 0), rtol=1e-5)
  widths = [np.ptp(r, axis=0) for r in rows]
  np.testing.assert_allclose(spread.mean_range, np.mean(widths, (0, 2)), rtol=1e-5)
  np.testing.assert_allclose(spread.max_range, np.max(widths, (0, 2)), rtol=1e-6)


def test_a_sample_has_the_last_place():
  np.testing.assert_array_equal(attention_statistics.sample(24, 4), [5, 11, 17, 23])
  np.testing.assert_array_equal(attention_statistics.sample(3, 16), [0, 1, 2])


def build(cls, **fields):
  sizes = dict(input_dim=D, hidden_dim=D, num_heads=N, atten_logit_cap=5.0)
  layer = base_layer.instantiate(pax_fiddle.Config(cls, name='atten', **(sizes | fields)))
  x = jnp.zeros((B, T, D))
  with base_layer.JaxContext.new_context(hparams=base_layer.JaxContext.HParams(do_eval=True)):
    mask = jnp.zeros((B, 1, 1, T))
    shapes = jax.eval_shape(lambda: layer.init(jax.random.PRNGKey(0), x, x, x, mask))
  return layer, fill({base_layer.PARAMS: shapes[base_layer.PARAMS]})


def run(layer, variables, mask, do_eval=False):
  """Output, probabilities, gradients of the input and of the weights, and summaries."""
  x = 2 * np.random.default_rng(3).standard_normal((B, T, D)).astype(np.float32)

  def loss(variables, x):
    hparams = base_layer.JaxContext.HParams(do_eval=do_eval)
    with base_layer.JaxContext.new_context(hparams=hparams):
      (output, probs), new = layer.apply(variables, x, x, x, mask, mutable=['summaries'])
    return (output * x[:, ::-1]).sum(), (output, probs, new.get('summaries', {}))

  gradients, (output, probs, summaries) = compiled(jax.grad(loss, (0, 1), has_aux=True))(
    variables, x
  )
  return output, probs, gradients, summaries


@pytest.mark.parametrize('cls', [STANDARD, LASER])
def test_summaries_are_of_the_first_examples_sample_and_change_nothing(cls):
  mask = segments.Segments(jnp.asarray(IDS), is_causal=True)
  layer, variables = build(cls)
  output, probs, gradients, without = run(layer, variables, mask)
  assert probs is None and not without
  told, _ = build(cls, summary_queries=4)
  *same, summaries = run(told, variables, mask)
  expected = (output, None, gradients)
  jax.tree.map(np.testing.assert_array_equal, tuple(same), expected)
  assert not run(told, variables, mask, do_eval=True)[3]

  plain = attentions.DotProductAttention if cls is STANDARD else layers.LaserDotProductAttention
  _, probs, _, _ = run(build(plain)[0], variables, mask.dense(jnp.float32))
  queries = [5, 11, 17, 23]
  sampled = np.asarray(probs)[0][:, queries][:, expected_pairs(True)[0, queries]]
  shares = [(sampled < threshold).mean() for threshold in (1e-3, 1e-7)]
  assert 0 < shares[0] < 1, 'the test says nothing'
  values = {name.removesuffix('_scalar'): x for name, x in summaries.items()}
  assert values['probabilities_below_0.001'] == pytest.approx(shares[0], abs=1e-6)
  assert values['probabilities_below_1e-07'] == pytest.approx(shares[1], abs=1e-6)
  assert values['value_std'] > 0 and values['value_range'] > values['value_std']


def test_a_layer_whose_probabilities_a_sample_does_not_give_has_no_summaries():
  layer, variables = build(STANDARD, summary_queries=4, attention_extra_logit=0.0)
  mask = segments.Segments(jnp.asarray(IDS), is_causal=True)
  assert not any('probabilities' in name for name in run(layer, variables, mask)[3])
