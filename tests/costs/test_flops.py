"""Operations of a step: the formulas agree with the products of the traced program."""

import functools

import jax
import jax.numpy as jnp
import pytest
from praxis import layers

from laser_pax import configs
from laser_pax.costs import compiler, flops
from laser_pax.experiment import layouts

Policy = layers.AutodiffCheckpointType


def _product(x, w):
  return jnp.tanh(x @ w)


def test_products_count_twice_their_multiply_adds():
  jaxpr = jax.make_jaxpr(_product)(jnp.ones((4, 8)), jnp.ones((8, 16)))
  assert flops.count_products(jaxpr) == (2 * 4 * 8 * 16, 0)


def test_loops_count_as_often_as_they_run_and_unused_products_do_not_count():
  def looped(x, w):
    unused = x @ w
    x, _ = jax.lax.scan(lambda x, _: (_product(x, w), None), x, length=5)
    return x, unused

  jaxpr = jax.make_jaxpr(lambda x, w: looped(x, w)[0])(jnp.ones((4, 8)), jnp.ones((8, 8)))
  assert flops.count_products(jaxpr) == (5 * 2 * 4 * 8 * 8, 0)


def test_a_layer_under_checkpoint_is_counted_again():
  @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
  def layer(x, w1, w2):
    return _product(_product(x, w1), w2)

  w = jnp.ones((8, 8))
  grad = jax.value_and_grad(lambda *a: layer(*a).sum(), argnums=(0, 1, 2))
  # Forward 2 and backward 4. Both forward products run again, because both tanh are needed.
  assert flops.count_products(jax.make_jaxpr(grad)(jnp.ones((4, 8)), w, w)) == (
    8 * 2 * 4 * 8 * 8,
    0,
  )


@pytest.fixture(scope='module', params=['Standard', 'Laser'])
def small(request):
  """A small model with the proportions of the large ones."""
  experiment = getattr(configs, f'C4{request.param}300M')().on('cpu')
  experiment.NUM_LAYERS, experiment.MODEL_DIMS, experiment.HIDDEN_DIMS = 2, 256, 512
  experiment.SEQ_LEN, experiment.GLOBAL_BATCH_SIZE, experiment.VOCAB_SIZE = 256, 4, 1024
  return experiment


@pytest.mark.parametrize(
  'policy',
  [
    Policy.SAVE_NOTHING,
    Policy.SAVE_QKV_OUT_PROJ,
    Policy.SAVE_DOT_WITH_NO_BATCH_DIM,
    Policy.SAVE_EVERYTHING,
  ],
)
def test_the_formulas_account_for_all_traced_products(small, policy):
  small.CHECKPOINT_POLICY = policy
  traced = compiler.trace_train(small, small.pod())
  matrices = small.sizes().weights()
  tokens = small.GLOBAL_BATCH_SIZE * small.SEQ_LEN
  expected = small.sizes().step_flops(policy, 'cpu') + 6 * tokens * (traced.parameters - matrices)
  # The formula counts biases and scales as if they were matrices.
  assert flops.count_products(traced.jaxpr) == (pytest.approx(expected, rel=5e-3), 0)


@pytest.mark.parametrize('policy', [Policy.SAVE_NOTHING, Policy.SAVE_CONTEXT])
def test_fused_kernels_are_counted_for_all_devices_and_skip_blocks_above_the_diagonal(
  small, policy, interpreted_kernels
):
  small.CHECKPOINT_POLICY, small.SEQ_LEN = policy, 640
  traced = compiler.trace_train(small, small.pod())
  operations = flops.step_flops(small, traced.parameters, traced.jaxpr)
  _, in_kernels = flops.count_products(traced.jaxpr)
  small.SEQ_LEN = 256
  assert operations.skipped == pytest.approx(0.4 * in_kernels)  # 10 of 25 pairs of blocks.
  # Kernels run two products forward and seven backward; SAVE_NOTHING runs two again. The formula
  # has six.
  assert in_kernels == pytest.approx(
    operations.attention * (11 if policy == Policy.SAVE_NOTHING else 9) / 6
  )


@pytest.mark.parametrize('policy', layouts.POLICIES)
def test_the_formulas_know_blocks_of_layers(small, policy):
  small.CHECKPOINT_POLICY = policy
  results = []
  for small.LAYERS_PER_BLOCK in (1, 2):
    traced = compiler.trace_train(small, small.pod())
    formula = small.sizes().step_flops(policy, 'cpu')
    results.append((sum(flops.count_products(traced.jaxpr)), formula))
  small.LAYERS_PER_BLOCK = 1
  (single, single_formula), (pairs, pairs_formula) = results
  assert pairs - single == pairs_formula - single_formula
  assert (pairs == single) == (policy is Policy.SAVE_DOT_WITH_NO_BATCH_DIM)


def test_parts_of_a_batch_cost_the_same(small):
  small.CHECKPOINT_POLICY = Policy.SAVE_NOTHING
  whole = flops.count_products(compiler.trace_train(small, small.pod()).jaxpr)
  small.MICRO_BATCHES = 4
  parts = flops.count_products(compiler.trace_train(small, small.pod()).jaxpr)
  small.MICRO_BATCHES = None
  assert sum(parts) == pytest.approx(sum(whole), rel=1e-6)  # And the sums over the parts.


def test_a_conditional_counts_as_its_cheaper_branch():
  def function(x):
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x @ x @ x)

  x = jnp.ones((4, 4))
  assert flops.count_products(jax.make_jaxpr(function)(x)) == flops.count_products(
    jax.make_jaxpr(jnp.dot)(x, x)
  )


def test_loops_of_unknown_length_do_not_count():
  def function(x):
    return jax.lax.while_loop(lambda y: y[0, 0] > 0, lambda y: y @ y, x @ x)

  x = jnp.ones((4, 4))
  assert flops.count_products(jax.make_jaxpr(function)(x)) == flops.count_products(
    jax.make_jaxpr(jnp.dot)(x, x)
  )
