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


KINDS = ('Standard', 'Laser')


def _small(kind, **attributes):
  """A small model with the proportions of the large ones. A row has two blocks of attention."""
  experiment = getattr(configs, f'C4{kind}300M')().on('cpu')
  experiment.NUM_LAYERS, experiment.MODEL_DIMS, experiment.HIDDEN_DIMS = 2, 256, 512
  experiment.SEQ_LEN, experiment.GLOBAL_BATCH_SIZE, experiment.VOCAB_SIZE = 128, 4, 1024
  for name, value in attributes.items():
    setattr(experiment, name, value)
  return experiment


@functools.cache
def _traced(kind, **attributes):
  """The operations of its train step by the trace, those in kernels apart, and its parameters."""
  experiment = _small(kind, **attributes)
  traced = compiler.trace_train(experiment, experiment.pod())
  return flops.count_products(traced.jaxpr), traced.parameters


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
  'policy',
  [
    Policy.SAVE_NOTHING,
    Policy.SAVE_QKV_OUT_PROJ,
    Policy.SAVE_DOT_WITH_NO_BATCH_DIM,
    Policy.SAVE_EVERYTHING,
  ],
)
def test_the_formulas_account_for_all_traced_products(kind, policy):
  products, parameters = _traced(kind, CHECKPOINT_POLICY=policy)
  experiment = _small(kind)
  sizes, tokens = experiment.sizes(), experiment.units_per_step()
  expected = sizes.step_flops(policy, 'cpu') + 6 * tokens * (parameters - sizes.weights())
  # The formula counts biases and scales as if they were matrices.
  assert products == (pytest.approx(expected, rel=5e-3), 0)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('policy', [Policy.SAVE_NOTHING, Policy.SAVE_CONTEXT])
def test_fused_kernels_are_counted_for_all_devices_and_skip_blocks_above_the_diagonal(
  kind, policy, interpreted_kernels
):
  experiment = _small(kind, CHECKPOINT_POLICY=policy, SEQ_LEN=640)
  traced = compiler.trace_train(experiment, experiment.pod())
  operations = flops.step_flops(experiment, traced.parameters, traced.jaxpr)
  _, in_kernels = flops.count_products(traced.jaxpr)
  assert operations.skipped == pytest.approx(0.4 * in_kernels)  # 10 of 25 pairs of blocks.
  # Kernels run two products forward and seven backward; SAVE_NOTHING runs two again. The formula
  # has six.
  assert in_kernels == pytest.approx(
    operations.attention * (11 if policy == Policy.SAVE_NOTHING else 9) / 6
  )


@pytest.mark.parametrize('policy', layouts.POLICIES)
def test_the_formulas_know_blocks_of_layers(policy):
  """LASER's twin has the same stack, and the same formulas."""
  single, _ = _traced('Laser', CHECKPOINT_POLICY=policy)
  pairs, _ = _traced('Laser', CHECKPOINT_POLICY=policy, LAYERS_PER_BLOCK=2)
  by_formula = [
    _small('Laser', LAYERS_PER_BLOCK=k).sizes().step_flops(policy, 'cpu') for k in (1, 2)
  ]
  assert sum(pairs) - sum(single) == by_formula[1] - by_formula[0]
  assert (pairs == single) == (policy is Policy.SAVE_DOT_WITH_NO_BATCH_DIM)


def test_parts_of_a_batch_cost_the_same():
  whole, _ = _traced('Laser', CHECKPOINT_POLICY=Policy.SAVE_NOTHING)
  parts, _ = _traced('Laser', CHECKPOINT_POLICY=Policy.SAVE_NOTHING, MICRO_BATCHES=4)
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
