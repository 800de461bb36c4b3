"""Differential attention, standard and LASER, against its formula in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from praxis import base_layer, pax_fiddle
from praxis.layers import attentions, normalizations

from laser_pax import layers
from laser_pax.errors import UserError
from laser_pax.layers import attention_paths
from tests.support import cases
from tests.support.cases import B, D, H, N, T, compiled, context, rms_error

CLASSES = {
  'standard': layers.DifferentialAttention,
  'laser': layers.LaserDifferentialAttention,
}
FIELDS = {'atten_logit_cap': 3.0, 'combine_qkv': True, 'use_bias': False}
CASE = cases.Case(layers.LaserDifferentialAttention, FIELDS)
SEEN = cases.visibility(CASE, 'packing')
SEGMENTS = layers.Segments(
  jnp.asarray([[0] * 4 + [1] * 6, [0] + [1] * 7 + [2] * 2], jnp.int32), is_causal=True
)
every_class = pytest.mark.parametrize('name', CLASSES)


def build(name, **fields):
  """Returns the layer, and variables that leave nothing at zero."""
  layer = base_layer.instantiate(CASE.config(CLASSES[name], **fields))
  x = jnp.zeros((B, T, D))
  with context():
    shapes = jax.eval_shape(lambda: layer.init(jax.random.PRNGKey(0), x, x, x, SEGMENTS))
  return layer, cases.fill(shapes)


def formula(name, params, x, seen, *, cap=3.0, beta=None, xp=np):
  """Returns the layer's output by the formula, in x's dtype."""
  asarray = functools.partial(xp.asarray, dtype=x.dtype)
  d = H // 2
  q, k, v = xp.einsum('BTD,CDNH->CBTNH', x, asarray(params['combined_qkv']['w']))
  if 'per_dim_scale' in params:
    q = q * xp.log1p(xp.exp(asarray(params['per_dim_scale']['per_dim_scale']))) / np.log(2)

  def mixed(half):
    logits = xp.einsum('BTNH,BSNH->BNTS', q[..., half], k[..., half]) / np.sqrt(d)
    logits = cap * xp.tanh(logits / cap) if cap else logits
    weights = xp.where(seen[:, None], xp.exp(logits), 0)
    probs = weights / weights.sum(-1, keepdims=True)
    if name == 'standard':
      return xp.einsum('BNTS,BSNH->BTNH', probs, v)
    return xp.log(xp.einsum('BNTS,BSNH->BTNH', probs, xp.exp((beta or 1) * v))) / (beta or 1)

  q1, k1, q2, k2 = (asarray(params[f'lambda_{x}']) for x in ('q1', 'k1', 'q2', 'k2'))
  weight = xp.exp(q1 @ k1) - xp.exp(q2 @ k2) + 0.8
  output = mixed(slice(0, d)) - weight * mixed(slice(d, H))
  root = xp.sqrt((output**2).mean(-1, keepdims=True) + 1e-5)
  normed = output / root * (1 + asarray(params['norm']['scale']))
  return xp.einsum('BTNH,DNH->BTD', (1 - 0.8) * normed, asarray(params['post']['w']))


def attend(layer, variables, x, mask):
  with context():
    return layer.apply(variables, x, x, x, mask)[0]


@every_class
@pytest.mark.parametrize(
  ('dtype', 'fields', 'mask'),
  [
    ('float32', {}, SEGMENTS),
    ('bfloat16', {}, SEGMENTS),
    (
      'float32',
      {'atten_logit_cap': 0.0, 'internal_enable_per_dim_scale': False},
      SEGMENTS.dense(jnp.float32),
    ),
  ],
  ids=['float32', 'bfloat16', 'plain'],
)
def test_output_is_the_formulas(name, dtype, fields, mask):
  layer, variables = build(name, fprop_dtype=jnp.dtype(dtype), **fields)
  x = cases.draw(CASE, dtype)[0]
  output = compiled(functools.partial(attend, layer))(variables, x, mask)
  expected = formula(
    name, variables['params'], x.astype(np.float64), SEEN, cap=fields.get('atten_logit_cap', 3.0)
  )
  assert output.dtype == jnp.dtype(dtype)
  assert rms_error(output, expected) < {'float32': 1e-6, 'bfloat16': 0.02}[dtype]


@every_class
def test_gradients_are_the_formulas(name):
  layer, variables = build(name)
  x = cases.draw(CASE)[0]
  weights = np.random.default_rng(5).standard_normal((B, T, D))
  params = variables['params']
  ours = lambda params, x: (weights * attend(layer, {'params': params}, x, SEGMENTS)).sum()  # noqa: E731
  exact = lambda params, x: (weights * formula(name, params, x, SEEN, xp=jnp)).sum()  # noqa: E731
  found, expected = (compiled(jax.grad(f, (0, 1)))(params, x) for f in (ours, exact))
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert np.abs(b).max() > 1e-3
    assert rms_error(a, b) < 1e-5


@pytest.mark.parametrize(
  ('name', 'dtype'), [('standard', 'float32'), ('laser', 'float32'), ('laser', 'bfloat16')]
)
def test_steps_equal_the_whole_pass(name, dtype):
  layer, variables = build(name, fprop_dtype=jnp.dtype(dtype))
  x = cases.draw(CASE, dtype)[0]
  whole, steps = compiled(
    lambda variables: (
      attend(layer, variables, x, SEGMENTS),
      cases.step_by_step(CASE, layer, variables, x, x, SEEN),
    )
  )(variables)
  assert rms_error(steps, whole) < {'float32': 1e-6, 'bfloat16': 0.02}[dtype]


@every_class
def test_kernels_give_the_formula(name, interpreted_kernels):
  layer, variables = build(name)
  x, told = cases.draw(CASE)[0], []
  with attention_paths.telling(told.append):
    output = compiled(functools.partial(attend, layer))(variables, x, SEGMENTS)
  assert [path.plain_reason for path in told] == [None, None]
  assert rms_error(output, formula(name, variables['params'], np.float64(x), SEEN)) < 1e-5


def test_laser_has_beta_and_zero_is_the_standard_form():
  x = cases.draw(CASE)[0]
  for beta, name in ((-0.7, 'laser'), (0.0, 'standard')):
    tpl = pax_fiddle.Config(layers.FixedBeta, value=beta)
    layer, variables = build('laser', beta_tpl=tpl)
    output = compiled(functools.partial(attend, layer))(variables, x, SEGMENTS)
    expected = formula(name, variables['params'], x.astype(np.float64), SEEN, beta=beta)
    assert rms_error(output, expected) < 1e-6


def test_the_second_map_counts():
  """The oracle would not notice a layer that both lacked it: here it is another function."""
  _, variables = build('standard')
  params, x = variables['params'], cases.draw(CASE)[0].astype(np.float64)
  single = params | {'lambda_k1': np.log(1e-9) * params['lambda_q1']}
  assert rms_error(formula('standard', single, x, SEEN), formula('standard', params, x, SEEN)) > 0.1


def test_parameters_are_those_of_twice_as_many_heads_and_seven_halves():
  def count(cls, **fields):
    layer = base_layer.instantiate(CASE.config(cls, **fields))
    x = jnp.zeros((B, T, D))
    mask = SEGMENTS.dense(jnp.float32)
    with context():
      shapes = jax.eval_shape(lambda: layer.init(jax.random.PRNGKey(0), x, x, x, mask))
    return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes['params']))

  base = count(attentions.DotProductAttention, num_heads=2 * N, dim_per_head=H // 2)
  for cls in CLASSES.values():
    assert count(cls) == base + 7 * H // 2


def test_swaps_there_and_back():
  config = CASE.config(layers.DifferentialAttention, lambda_init=0.5)
  before = config.clone()
  (change,) = layers.use_laser(config)
  assert config.cls is layers.LaserDifferentialAttention and config.lambda_init == 0.5
  assert change.decodes
  layers.use_standard(config)
  assert config == before


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'use_rotary_position_emb': True}, 'USE_ROTARY_POSITION_EMB = False'),
    ({'ln_tpl': pax_fiddle.Config(normalizations.LayerNorm)}, 'QK_NORM = False'),
    ({'dim_per_head': 7, 'hidden_dim': 28}, 'DIMS_PER_HEAD to an even number'),
  ],
)
def test_what_it_cannot_be_is_refused(fields, message):
  with pytest.raises(UserError, match=message):
    build('standard', **fields)


def test_lambdas_do_not_decay_and_stay_float32():
  layer = base_layer.instantiate(
    CASE.config(layers.DifferentialAttention, fprop_dtype=jnp.bfloat16, combine_qkv=False)
  )
  x = jnp.zeros((B, T, D), jnp.bfloat16)
  with context():
    hparams = layer.abstract_init_with_metadata(x, x, x, SEGMENTS)['params']
    assert all(base_layer.var_skip_lp_regularization(hparams[n]) for n in hparams if 'lambda' in n)
    variables = {'params': cases.fill(jax.tree.map(lambda h: np.zeros(h.shape), hparams))}
    read = layer.apply(variables, method=lambda layer: layer.theta.lambda_q1)
  assert read.dtype == jnp.float32
