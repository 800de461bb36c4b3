"""Each LASER layer: whole sequences against a reference, steps against whole sequences."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from praxis import base_layer, pax_fiddle
from praxis.layers import base_ops, stochastics

from laser_pax.errors import UserError
from laser_pax.ops import laser_oracle
from tests.support import cases
from tests.support.cases import CASES, B, D, S, T, context, rms_error

DTYPES = {'float32': (jnp.float32, 1e-5), 'bfloat16': (jnp.bfloat16, 0.02)}
every_case = pytest.mark.parametrize('name', CASES)
every_dtype = pytest.mark.parametrize('dtype', DTYPES)
every_mask = pytest.mark.parametrize('kind', ['padding', 'packing'])


@functools.cache
def passes(name, dtype):
  """Returns all that a layer and its twin give, as a function of variables and what is seen."""
  case, (dtype, _) = CASES[name], DTYPES[dtype]
  layer, standard = (cases.layer_of(case, twin, fprop_dtype=dtype) for twin in (False, True))
  inputs = cases.draw(case, dtype)

  @cases.compiled
  def run(variables, seen):
    output, probs = cases.full_pass(case, layer, variables, *inputs, seen)
    _, standard_probs = cases.full_pass(case, standard, variables, *inputs, seen)
    return {
      'output': output,
      'probs': probs,
      'standard_probs': standard_probs,
      'expected': cases.reference(case, layer, variables, standard_probs, inputs[1]),
      'steps': cases.step_by_step(case, layer, variables, *inputs, seen) if case.decodes else None,
    }

  return run


@functools.cache
def results(name, dtype, kind):
  """Returns what `passes` gives with the variables of `build`."""
  _, variables = cases.build(CASES[name])
  return passes(name, dtype)(variables, cases.visibility(CASES[name], kind))


@every_case
@every_dtype
@every_mask
def test_full_pass_mixes_praxis_probabilities_by_laser(name, dtype, kind):
  # Where nothing is seen, Praxis attends to all alike, padding included.
  rows = cases.visibility(CASES[name], kind).any(-1)
  found = results(name, dtype, kind)
  output, expected = found['output'], found['expected']
  assert output.dtype == DTYPES[dtype][0]
  assert np.isfinite(np.asarray(output, np.float32)).all()
  assert rms_error(output[rows], expected[rows]) < DTYPES[dtype][1]
  np.testing.assert_array_equal(found['probs'], found['standard_probs'])


@pytest.mark.parametrize('name', [name for name, case in CASES.items() if case.decodes])
@every_dtype
@every_mask
def test_steps_equal_the_full_pass(name, dtype, kind):
  rows = cases.visibility(CASES[name], kind).any(-1)
  found = results(name, dtype, kind)
  whole, steps = found['output'], found['steps']
  assert np.isfinite(np.asarray(steps, np.float32)).all()
  assert rms_error(steps[rows], whole[rows]) < DTYPES[dtype][1]


# One of each way in which probabilities meet values.
@pytest.mark.parametrize(
  'name', ['multi_head', 'cross', 'local', 'multi_query_2_kv_heads', 'grouped_query']
)
def test_gradients(name):
  case = CASES[name]
  layer, variables = cases.build(case)
  standard = cases.layer_of(case, standard=True)
  seen = cases.visibility(case, 'padding')
  weights = np.random.default_rng(5).standard_normal((B, T, D)) * seen.any(-1)[..., None]

  def ours(variables, inputs):
    inputs = (inputs['query'], inputs.get('memory', inputs['query']))
    return (weights * cases.full_pass(case, layer, variables, *inputs, seen)[0]).sum()

  def expected(variables, inputs):
    inputs = (inputs['query'], inputs.get('memory', inputs['query']))
    _, probs = cases.full_pass(case, standard, variables, *inputs, seen)
    return (weights * cases.reference(case, layer, variables, probs, inputs[1])).sum()

  inputs = dict(zip(['query', 'memory'][: 1 + case.cross], cases.draw(case), strict=False))
  both = cases.compiled(lambda *args: [jax.grad(f, (0, 1))(*args) for f in (ours, expected)])
  gradients = both(variables, inputs)
  flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in gradients]
  assert rms_error(*flat) < 1e-5


@every_case
def test_variables_are_those_of_the_standard_layer(name):
  layers_and_variables = [cases.build(CASES[name], standard=standard) for standard in (0, 1)]
  ours, standard = (jax.tree.map(jnp.shape, variables) for _, variables in layers_and_variables)
  assert ours == standard


@pytest.mark.parametrize('scale', [0.3, 5.0])
def test_end_to_end_against_the_oracle(scale):
  """Projections and all, in float64: nothing here is taken from the layer but its weights."""
  case = CASES['multi_head']
  fields = {'use_bias': False, 'atten_logit_cap': 0.0, 'internal_enable_per_dim_scale': False}
  layer, variables = cases.build(case, **fields)
  query, _ = cases.draw(case)
  weights = variables['params']
  weights['value']['w'] *= scale
  seen = cases.visibility(case, 'packing')
  run = cases.compiled(functools.partial(cases.full_pass, case, layer))
  output, _ = run(variables, query, query, seen)

  def project(name, x, equation='BTD,DNH->BTNH'):
    return np.einsum(equation, x, np.asarray(weights[name]['w'], np.float64))

  x = np.asarray(query, np.float64)
  projected = (project(name, x) for name in ('query', 'key', 'value'))
  encoded = laser_oracle(*projected, seen[:, None])
  assert rms_error(output, project('post', encoded, 'BTNH,DNH->BTD')) < 1e-5


def test_causality_by_gradients():
  layer, variables = cases.build(CASES['multi_head'])
  query, _ = cases.draw(CASES['multi_head'])
  t, causal = T // 2, np.tril(np.ones((B, T, T), bool))

  def position(x):
    return cases.full_pass(CASES['multi_head'], layer, variables, x, x, causal)[0][:, t].sum()

  gradient = cases.compiled(jax.grad(position))(query)
  assert not np.any(gradient[:, t + 1 :])
  assert np.all(np.any(gradient[:, : t + 1], -1))


@pytest.mark.parametrize('kv_heads', [1, 2])
def test_chunks_equal_the_whole(kv_heads):
  """Praxis returns no probabilities of multi-query attention in chunks."""
  case = CASES['multi_query']
  fields = {'num_kv_heads': kv_heads, 'attention_extra_logit': 0.5}
  whole, variables = cases.build(case, **fields)
  chunked = cases.layer_of(case, chunked_attn_num_seq_split=5, **fields)
  arguments = variables, *cases.draw(case), cases.visibility(case, 'padding')
  both = lambda *args: [cases.full_pass(case, x, *args)[0] for x in (whole, chunked)]  # noqa: E731
  expected, output = cases.compiled(both)(*arguments)
  np.testing.assert_allclose(output, expected, atol=1e-5)


def test_chunks_that_do_not_divide_the_sequence():
  case = dataclasses.replace(CASES['multi_query'], fields={'chunked_attn_num_seq_split': 3})
  with pytest.raises(UserError, match='3 does not divide the sequence of 10'):
    cases.build(case)


def test_queries_that_share_a_cache_entry():
  """Several samples decoded against one encoded input: each as if it had a copy of its own."""
  case = CASES['cross']
  layer, variables = cases.build(case, zero_fully_masked=True)
  _, memory = cases.draw(case)
  queries = jax.random.normal(jax.random.PRNGKey(6), (3 * B, D))
  mask = jnp.full((B, 1, S), cases.LARGE_NEGATIVE).at[:, :, :4].set(0.0)
  mask = mask.at[1].set(cases.LARGE_NEGATIVE)

  @cases.compiled
  def step(memory, mask):
    with context():
      dummy = jnp.zeros((memory.shape[0], 1, D))
      _, state = layer.apply(
        variables, dummy, memory, memory, mask[:, None], mutable=['decoder_cache']
      )
      return layer.apply(
        variables | state,
        queries,
        atten_mask=mask,
        time_step=0,
        segment_pos=None,
        is_cross_attention=True,
        method=layer.extend_step,
      )

  shared, copied = step(memory, mask), step(jnp.repeat(memory, 3, 0), jnp.repeat(mask, 3, 0))
  np.testing.assert_allclose(shared, copied, atol=1e-6)


ZEROING = ['multi_head', 'cross', 'xl', 'context', 'local', 'local_simulated', 'local_two_sided']
IN_STEPS = ['multi_head', 'xl', 'local', 'local_simulated', 'context']


@functools.cache
def zeroing(name):
  """Returns outputs with and without zeroing, and in steps, as a function of what is seen."""
  case = CASES[name]
  layer, variables = cases.build(case, zero_fully_masked=True, use_bias=False)
  plain = cases.layer_of(case, use_bias=False)
  inputs = cases.draw(case)

  @cases.compiled
  def run(seen):
    output, without = (
      cases.full_pass(case, x, variables, *inputs, seen)[0] for x in (layer, plain)
    )
    if name not in IN_STEPS:
      return output, without, None
    return output, without, cases.step_by_step(case, layer, variables, *inputs, seen)

  return run


@pytest.mark.parametrize('name', ZEROING)
def test_zero_fully_masked(name):
  case = CASES[name]
  # Key 4 alone is real: of a window around the query, or before it, many rows see nothing. The
  # window is the layer's own to apply: the mask that it is given has none.
  without_window = cases.visibility(dataclasses.replace(case, window=None), 'packing')
  given = without_window & (np.arange(S if case.cross else T) == 4)
  rows = (given & cases.visibility(case, 'packing')).any(-1)
  assert rows.any() and not rows.all()
  output, expected, _ = zeroing(name)(given)
  np.testing.assert_array_equal(output[rows], expected[rows])
  assert not np.any(output[~rows])


@pytest.mark.parametrize('name', IN_STEPS)
def test_zero_fully_masked_in_steps(name):
  seen = cases.visibility(CASES[name], 'padding')
  assert not seen.any(-1).all()
  whole, _, steps = zeroing(name)(seen)
  assert not np.any(steps[~seen.any(-1)])
  np.testing.assert_allclose(steps, whole, atol=1e-5)


@every_case
def test_values_of_any_size_are_mixed_right_in_every_layer(name):
  """Whole and step by step, where a column spans far more than float32's exp does."""
  _, variables = cases.build(CASES[name])
  wide = jax.tree.map_with_path(
    lambda path, x: x * 100 if 'value' in str(path) or 'combined_qkv' in str(path) else x, variables
  )
  found = passes(name, 'float32')(wide, cases.visibility(CASES[name], 'packing'))
  output = found['output']
  assert np.isfinite(output).all() and rms_error(output, found['expected']) < 1e-5
  if CASES[name].decodes:
    assert rms_error(found['steps'], output) < 1e-5


@pytest.mark.parametrize('name', ['multi_head', 'local', 'multi_query', 'grouped_query'])
def test_the_standard_context_costs_nothing(name):
  """Praxis computes it, the compiler removes it: forward and backward take as many FLOPs."""

  def flops(cls):
    case = CASES[name]
    sizes = {'input_dim': 128, 'hidden_dim': 128, 'dim_per_head': 32}
    sizes |= {'block_size': 64, 'left_context': 64} if name == 'local' else {}
    if (
      cls is case.laser
    ):  # XLA counts the costlier branch of a conditional: take the form with none.
      sizes |= {'numerics': 'paper'}
    layer = base_layer.instantiate(case.config(cls, **sizes))
    x = jnp.ones((1, 128, 128))
    mask = cases.to_mask(case, np.tril(np.ones((1, 128, 128), bool)))
    positions = jnp.arange(128)[None]

    def loss(variables, x):
      return (layer.apply(variables, x, x, x, mask, positions, positions)[0] ** 2).sum()

    with context():
      init = functools.partial(layer.init, jax.random.PRNGKey(0))
      variables = jax.eval_shape(lambda: init(x, x, x, mask, positions, positions))
      compiled = cases.compiled(jax.grad(loss, argnums=(0, 1))).lower(variables, x).compile()
    return compiled.cost_analysis()['flops']

  ours = flops(CASES[name].laser)
  assert ours == pytest.approx(flops(cases.STANDARD[CASES[name].laser]), rel=0.015)


BLOCKS_ONLY = ['local_relative_bias', 'local_alibi', 'local_xl']


@pytest.mark.parametrize('name', BLOCKS_ONLY)
def test_bias_by_blocks_cannot_be_simulated(name):
  case = dataclasses.replace(CASES[name], fields=CASES[name].fields | {'simulated': True})
  with pytest.raises(UserError, match='simulated'):
    cases.build(case)


@pytest.mark.parametrize('name', BLOCKS_ONLY)
def test_steps_that_could_not_match_training_are_refused(name):
  layer, variables = cases.build(CASES[name])
  with context(), pytest.raises(NotImplementedError, match='extend_step'):
    layer.apply(
      variables,
      jnp.zeros((B, D)),
      atten_mask=jnp.zeros((B, 1, T)),
      time_step=0,
      segment_pos=None,
      method=layer.extend_step,
    )


class RoundedEinsum(base_ops.EinsumOp):
  """Stands for a quantized product."""


class BlockDropout(stochastics.Dropout):
  """Stands for a dropout with a meaning of its own."""


@pytest.mark.parametrize(
  'field, template', [('pv_einsum_tpl', RoundedEinsum), ('dropout_tpl', BlockDropout)]
)
@pytest.mark.parametrize('name', ['multi_head', 'xl', 'context', 'local', 'multi_query'])
def test_a_template_that_would_be_bypassed_is_refused(name, field, template):
  config = CASES[name].config(**{field: pax_fiddle.Config(template)})
  layer = base_layer.instantiate(config)
  arguments = cases.arguments(CASES[name], *cases.draw(CASES[name]))
  with context(), pytest.raises(UserError, match=f'{field} is {template.__name__}'):
    layer.init(jax.random.PRNGKey(0), *arguments)
