"""Beta in every LASER layer: fixed, or learned for each head and channel."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from praxis import base_layer, pax_fiddle
from praxis.layers import attentions

from laser_pax import configs, layers
from laser_pax.cli import show
from laser_pax.errors import UserError
from laser_pax.evaluation import exported_config
from laser_pax.layers import attention_paths
from tests.support import cases, steps
from tests.support.cases import CASES, B, D, H, N, T, rms_error

LEARNED = pax_fiddle.Config(layers.LearnedBeta)
# One of each way in which probabilities meet values.
NAMES = ['multi_head', 'cross', 'xl', 'local', 'local_two_sided', 'multi_query']
NAMES += ['multi_query_2_kv_heads', 'grouped_query', 'grouped_query_1_kv_head']


def fixed(value):
  return pax_fiddle.Config(layers.FixedBeta, value=value)


def build(name, beta_tpl=LEARNED, **fields):
  """Returns the case, its layer, and variables; betas of both signs, none of them near zero."""
  case = dataclasses.replace(
    CASES[name], fields=CASES[name].fields | fields | {'beta_tpl': beta_tpl}
  )
  layer, variables = cases.build(case)
  if beta_tpl is LEARNED:
    betas = variables['params']['beta']
    rng = np.random.default_rng(5)
    sizes = rng.uniform(0.3, 3.0, betas['beta'].shape) * rng.choice([-1, 1], betas['beta'].shape)
    betas['beta'] = np.float32(sizes)
  return case, layer, variables


@pytest.mark.parametrize('name', NAMES)
def test_output_gradient_and_steps(name):
  """Against a log-sum-exp of Praxis's probabilities, which jax differentiates; packed segments."""
  case, layer, variables = build(name)
  standard = cases.layer_of(CASES[name], standard=True)
  inputs, seen = cases.draw(case), cases.visibility(case, 'packing')
  weights = np.random.default_rng(6).standard_normal((B, T, D)) * seen.any(-1)[..., None]
  params = dict(variables['params'])
  betas = params.pop('beta')

  @cases.compiled
  def run(betas):
    variables = lambda betas: {'params': params | {'beta': betas}}  # noqa: E731
    _, probs = cases.full_pass(CASES[name], standard, {'params': params}, *inputs, seen)

    def ours(betas):
      output, _ = cases.full_pass(case, layer, variables(betas), *inputs, seen)
      return (weights * output).sum(), output

    def expected(betas):
      output = cases.reference(case, layer, variables(betas), probs, inputs[1])
      return (weights * output).sum(), output

    both = [jax.grad(f, has_aux=True)(betas) for f in (ours, expected)]
    if not case.decodes:
      return *both, None
    return *both, cases.step_by_step(case, layer, variables(betas), *inputs, seen)

  (d_betas, output), (exact_d_betas, exact), in_steps = run(betas)
  rows = seen.any(-1)
  assert rms_error(output[rows], exact[rows]) < 1e-5
  assert np.all(exact_d_betas['beta'])
  assert rms_error(d_betas['beta'], exact_d_betas['beta']) < 1e-5
  if case.decodes:
    assert rms_error(in_steps[rows], output[rows]) < 1e-5


@pytest.mark.parametrize('name', ['multi_head', 'local', 'multi_query_2_kv_heads', 'grouped_query'])
def test_a_beta_of_zero_is_the_standard_layer(name):
  case, layer, variables = build(name, fixed(0.0))
  standard = cases.layer_of(CASES[name], standard=True)
  inputs, seen = cases.draw(case), cases.visibility(case, 'padding')

  @cases.compiled
  def run(variables):
    return [cases.full_pass(case, x, variables, *inputs, seen)[0] for x in (layer, standard)]

  rows = seen.any(-1)
  output, expected = run(variables)
  assert rms_error(output[rows], expected[rows]) < 1e-6


def test_a_beta_of_one_is_the_layer_without():
  case, layer, variables = build('multi_head', fixed(1.0))
  plain = cases.layer_of(CASES['multi_head'])
  inputs, seen = cases.draw(case), cases.visibility(case, 'packing')
  programs = {
    jax.jit(lambda v, x=x: cases.full_pass(case, x, v, *inputs, seen)).lower(variables).as_text()
    for x in (layer, plain)
  }
  assert len(programs) == 1


def test_dropout_and_the_sink_leave_a_key_of_value_zero():
  keep, name = 0.6, 'multi_head'
  fields = {'atten_dropout_prob': 1 - keep, 'attention_extra_logit': 0.5, 'use_bias': False}
  case, layer, variables = build(name, **fields)
  standard = cases.layer_of(CASES[name], standard=True, **fields)
  x, seen = cases.draw(case)[0], cases.visibility(case, 'packing')

  def attend(layer, variables, x):
    with cases.context(do_eval=False):
      return layer.apply(
        variables,
        *cases.arguments(case, x, x, seen),
        rngs={base_layer.RANDOM: jax.random.PRNGKey(7)},
      )

  @cases.compiled
  def run(variables, x):
    params = dict(variables['params'])
    betas = params.pop('beta')['beta'][:, None, None]  # [N, 1, 1, H]
    _, probs = attend(standard, {'params': params}, x)
    with cases.context():
      value = layer.apply(variables, x, method=lambda layer, x: layer.value(x))
      weights = keep * probs
      missing = jnp.maximum(1 - weights.sum(-1, keepdims=True), 0)
      weights = jnp.concatenate([weights, missing], -1)[..., None]
      value = jnp.pad(value, ((0, 0), (0, 1), (0, 0), (0, 0))).transpose(0, 2, 1, 3)[:, :, None]
      mixed = jax.scipy.special.logsumexp(betas * value, 3, b=weights) / betas[:, 0] / keep
      expected = layer.apply(
        variables, mixed.transpose(0, 2, 1, 3), method=lambda layer, x: layer.post(x)
      )
    return attend(layer, variables, x)[0], expected

  assert rms_error(*run(variables, x)) < 1e-5


SEGMENTS = layers.Segments(jnp.asarray([[1] * 4 + [2] * 6, [1] * 7 + [0] * 3], jnp.int32), True)


@pytest.mark.parametrize('beta_tpl', [LEARNED, fixed(-0.7)], ids=['learned', 'fixed'])
def test_a_kernel_gives_what_the_plain_layer_gives(beta_tpl, interpreted_kernels):
  """Sequences and heads are padded for the kernel, and so is beta."""
  case, layer, variables = build('fused', beta_tpl)
  plain = cases.layer_of(dataclasses.replace(case, laser=layers.LaserDotProductAttention))
  x, told = cases.draw(case)[0], []

  def loss(layer, mask, variables):
    with cases.context():
      output, _ = layer.apply(variables, x, x, x, mask)
    return (output * x).sum(), output

  with attention_paths.telling(told.append):
    found, expected = (
      cases.compiled(jax.grad(functools.partial(loss, a, mask), has_aux=True))(variables)
      for a, mask in ((layer, SEGMENTS), (plain, SEGMENTS.dense(jnp.float32)))
    )
  assert told[0].plain_reason is None
  np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), found[0], expected[0])


@pytest.mark.parametrize(
  ('name', 'shape'),
  [
    ('multi_head', (N, H)),
    ('multi_query', (1, H)),
    ('multi_query_2_kv_heads', (2, H)),
    ('grouped_query', (2, H)),
    ('grouped_query_1_kv_head', (1, H)),
  ],
)
def test_a_learned_beta_is_one_variable_more(name, shape):
  """It is divided over the mesh as the values are, in float32 under bfloat16, and not decayed."""
  sharding = {'proj': ['data', 'mdl', None], 'proj_headless': ['data', 'mdl']}
  sharding = {'dnh': ['data', 'mdl', None]} if name.startswith('grouped') else sharding
  config = CASES[name].config(
    beta_tpl=pax_fiddle.Config(layers.LearnedBeta, initial=0.25),
    fprop_dtype=jnp.bfloat16,
    ici_mesh_shape=[1, 1, 1],
    mesh_axis_names=['replica', 'data', 'mdl'],
  )
  for field, mapping in sharding.items():
    if hasattr(config.weight_split_dims_mapping, field):
      setattr(config.weight_split_dims_mapping, field, mapping)
  layer = base_layer.instantiate(config)
  arguments = cases.arguments(CASES[name], *cases.draw(CASES[name]))
  with cases.context():
    hparams = layer.abstract_init_with_metadata(*arguments)['params']['beta']['beta']
    variables = {
      'params': {'beta': layer.init(jax.random.PRNGKey(0), *arguments)['params']['beta']}
    }
    beta = layer.apply(variables, method=lambda layer: layer.beta())
  heads, size = ('mdl', None) if shape[0] > 1 else (None, 'mdl' if name == 'multi_query' else None)
  assert tuple(hparams.shape) == shape and tuple(hparams.tensor_split_dims_mapping) == (heads, size)
  assert base_layer.var_skip_lp_regularization(hparams)
  assert beta.dtype == jnp.float32 and (beta == 0.25).all()


@pytest.mark.parametrize('value', [float('nan'), float('inf'), 'learned', True, None])
def test_a_beta_that_cannot_be(value):
  for beta_tpl in (fixed(value), pax_fiddle.Config(layers.LearnedBeta, initial=value)):
    with pytest.raises(UserError, match='beta must be a finite number'):
      cases.build(dataclasses.replace(CASES['multi_head'], fields={'beta_tpl': beta_tpl}))


def test_use_laser_sets_it():
  def swapped(**arguments):
    config = pax_fiddle.Config(attentions.DotProductAttention)
    layers.use_laser(config, **arguments)
    return config

  assert swapped(beta=-0.5).beta_tpl == fixed(-0.5) and swapped(beta=0).beta_tpl == fixed(0.0)
  assert swapped(beta='learned').beta_tpl == LEARNED
  assert swapped() == swapped(beta=None) == swapped(beta=1)
  for bad in (float('nan'), 'learnt', False, '0.5'):
    with pytest.raises(UserError, match='beta must be'):
      swapped(beta=bad)
  with pytest.raises(UserError, match="numerics='paper' is the paper's Algorithm 1.*beta=0.5"):
    swapped(beta=0.5, numerics='paper')
  with pytest.raises(UserError, match="numerics='paper' is the paper's Algorithm 1"):
    cases.build(
      dataclasses.replace(CASES['multi_head'], fields={'beta_tpl': LEARNED, 'numerics': 'paper'})
    )


class HalfWay(configs.C4LaserTiny):
  BETA = 0.5


class Learned(configs.C4LaserTiny):
  BETA = 'learned'


def test_experiments_have_it(capsys, monkeypatch):
  tiny = configs.C4LaserTiny().on()
  assert 'beta' not in tiny.describe()
  assert HalfWay().on().describe()['beta'] == '0.5'
  assert Learned().on().describe() == tiny.describe() | {
    'beta': 'learned for each head and channel, 1 at the start'
  }
  monkeypatch.setattr(show.experiments, 'load', lambda name: Learned)
  show.show('Learned')
  assert 'learned for each head and channel' in capsys.readouterr().out


@pytest.mark.parametrize('experiment', [HalfWay, Learned])
def test_an_export_that_would_lack_it_is_refused(experiment):
  with pytest.raises(UserError, match='cannot be exported: its model.*beta_tpl'):
    exported_config.check_model(experiment().on())


def test_four_devices_train_as_one(commands):
  """Layers in a loop that are computed again; beta is divided over heads, and moves."""
  found = steps.in_own_process(commands, 4, 'beta_mesh')
  np.testing.assert_allclose(found['four'], found['one'], rtol=1e-5)
  assert found['kernels'] > 0
  assert found['sharding'] == [None, 'mdl', None] and found['shape'] == [2, 2, 16]
  assert 1e-4 < found['moved'] < 0.1
