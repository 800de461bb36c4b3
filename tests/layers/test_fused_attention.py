"""Fused layers against the plain ones, and what the decoder hands them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fiddle import daglish
from praxis import base_layer, pax_fiddle
from praxis.layers import attentions, transformer_models, transformers

from laser_pax import configs, layers
from laser_pax.costs.jaxprs import inner_jaxprs
from laser_pax.layers import attention_paths, swap
from laser_pax.ops import choice, devices
from tests.support import stand_in_kernels, steps
from tests.support.cases import compiled, context, fill, rms_error

B, T, N, H = 2, 96, 2, 16
D = N * H
TWINS = {
  layers.FusedDotProductAttention: attentions.DotProductAttention,
  layers.LaserFusedDotProductAttention: layers.LaserDotProductAttention,
}
every_class = pytest.mark.parametrize('cls', TWINS)
SEGMENTS = jnp.asarray([[1] * 30 + [2] * 66, [1] * 50 + [2] * 30 + [0] * 16], jnp.int32)
POSITIONS = jnp.broadcast_to(jnp.arange(T), (B, T))
LARGE_NEGATIVE = attentions.py_utils.get_large_negative_number(jnp.float32)
FIXED_BETA = pax_fiddle.Config(layers.FixedBeta, value=0.5)
LEARNED_BETA = pax_fiddle.Config(layers.LearnedBeta)
ALL_SHOWN = jnp.zeros((B, 1, 1, T))
SHOWN = jnp.where(jnp.arange(T) < jnp.array([[T], [70]]), 0.0, LARGE_NEGATIVE)[:, None, None]


def build(cls, **fields):
  sizes = dict(input_dim=D, hidden_dim=D, num_heads=N, atten_logit_cap=3.0)
  layer = base_layer.instantiate(pax_fiddle.Config(cls, name='atten', **(sizes | fields)))
  with context():
    x = jnp.zeros((B, T, D))
    shapes = jax.eval_shape(
      lambda: layer.init(jax.random.PRNGKey(0), x, x, x, SHOWN, POSITIONS, POSITIONS)
    )
  return layer, fill(shapes)


def run(layer, variables, mask):
  """Output, probabilities, and gradients for the input and the weights."""
  x = jnp.asarray(np.random.default_rng(3).standard_normal((B, T, D)), jnp.float32)

  def loss(variables, x):
    with context():
      output, probs = layer.apply(variables, x, x, x, mask)
    return (output.astype(jnp.float32) * x[:, ::-1]).sum(), (output, probs)

  gradients, (output, probs) = compiled(jax.grad(loss, (0, 1), has_aux=True))(variables, x)
  return output, probs, gradients


@every_class
@pytest.mark.parametrize(
  ('mask', 'dtype', 'tolerance'),
  [
    (layers.Segments(SEGMENTS, is_causal=True), 'float32', 1e-5),
    (layers.Segments(SEGMENTS, is_causal=True), 'bfloat16', 0.03),
    (SHOWN, 'float32', 1e-5),
  ],
)
def test_a_kernel_gives_what_the_plain_layer_gives(
  cls, mask, dtype, tolerance, interpreted_kernels
):
  layer, variables = build(cls, fprop_dtype=jnp.dtype(dtype))
  plain, same = build(TWINS[cls], fprop_dtype=jnp.dtype(dtype))
  jax.tree.map(np.testing.assert_array_equal, variables, same)
  dense = mask.dense(jnp.float32) if isinstance(mask, layers.Segments) else mask
  output, probs, gradients = run(layer, variables, mask)
  expected, _, exact = run(plain, variables, dense)
  assert probs is None, 'no kernel was used'
  assert rms_error(output, expected) < tolerance
  for ours, gradient in zip(jax.tree.leaves(gradients), jax.tree.leaves(exact), strict=True):
    if np.abs(gradient).max() > 1e-4:  # A key's bias changes nothing.
      assert rms_error(ours, gradient) < 3 * tolerance


def test_a_kernel_takes_the_papers_form_too(interpreted_kernels):
  mask = layers.Segments(SEGMENTS, is_causal=True)
  layer, variables = build(layers.LaserFusedDotProductAttention, numerics='paper')
  plain, _ = build(layers.LaserDotProductAttention, numerics='paper')
  output, probs, gradients = run(layer, variables, mask)
  expected, _, exact = run(plain, variables, mask.dense(jnp.float32))
  assert probs is None, 'no kernel was used'
  np.testing.assert_allclose(output, expected, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), gradients, exact)


DENSE = layers.Segments(SEGMENTS, is_causal=True).dense(jnp.float32)


@every_class
@pytest.mark.parametrize(
  ('fields', 'mask'),
  [
    ({}, DENSE),
    ({'atten_dropout_prob': 0.5}, layers.Segments(SEGMENTS, is_causal=True)),
    ({'attention_extra_logit': 0.0}, layers.Segments(SEGMENTS, is_causal=True)),
    ({'relative_bias_tpl': 'bias'}, layers.Segments(SEGMENTS, is_causal=True)),
    ({'zero_fully_masked': True}, SHOWN),
  ],
)
def test_what_no_kernel_has_takes_the_plain_path(cls, fields, mask, monkeypatch):
  # A kernel would fail on this machine.
  monkeypatch.setattr(devices, 'platform', lambda mesh=None: 'tpu')
  if 'relative_bias_tpl' in fields:
    fields = {'relative_bias_tpl': pax_fiddle.Config(attentions.RelativeBias)}
  layer, variables = build(cls, **fields)
  plain, _ = build(TWINS[cls], **fields)
  dense = mask.dense(jnp.float32) if isinstance(mask, layers.Segments) else mask
  x = jnp.ones((B, T, D))
  with context():
    found = layer.apply(variables, x, x, x, mask, POSITIONS, POSITIONS)
    expected = plain.apply(variables, x, x, x, dense, POSITIONS, POSITIONS)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@every_class
@pytest.mark.parametrize('platform', ['tpu', 'gpu', 'cpu'])
@pytest.mark.parametrize('kernel', [None, 'triton'])
@pytest.mark.parametrize('cap', [0.0, 50.0])
def test_what_a_layer_tells_is_what_it_calls(cls, platform, kernel, cap, monkeypatch):
  called, told = stand_in_kernels.record(monkeypatch, platform), []
  fields = dict(fprop_dtype=jnp.bfloat16, atten_logit_cap=cap, kernel=kernel)
  layer, variables = build(cls, **fields)
  x = jnp.ones((B, T, D))
  with context(), attention_paths.telling(told.append):
    layer.apply(variables, x, x, x, layers.Segments(SEGMENTS, is_causal=True))
  (path,) = told
  assert set(called) == {choice.choose(path.case, kernel).kernel}
  assert path.layer == cls.__name__ and path.kernel == kernel
  names_of_all = [choice.NAMES[name] for name in called]
  assert all(path.text().startswith(name) for name in names_of_all)


@pytest.mark.parametrize(
  ('cls', 'fields'),
  [
    (layers.FusedDotProductAttention, {}),
    (layers.LaserFusedDotProductAttention, {}),
    (layers.LaserFusedDotProductAttention, {'numerics': 'paper'}),
    (layers.LaserFusedDotProductAttention, {'beta_tpl': FIXED_BETA}),
    (layers.LaserFusedDotProductAttention, {'beta_tpl': LEARNED_BETA}),
  ],
)
@pytest.mark.parametrize('mask', [layers.Segments(SEGMENTS, is_causal=True), ALL_SHOWN])
def test_the_attention_that_a_layer_tells_gives_the_layers_context(cls, fields, mask):
  told = []
  layer, variables = build(cls, internal_enable_query_scale=False, **fields)
  variables = jax.tree.map(jnp.ones_like, variables)  # A learned beta is 1 in what is told.
  rng = np.random.default_rng(5)
  query, key, value = (jnp.asarray(rng.standard_normal((B, T, N, H)), jnp.float32) for _ in 'qkv')

  @compiled
  def context_of_layer(query, key, value):
    attend = lambda layer, *arrays: layer._dot_atten(*arrays, mask)[0]  # noqa: E731
    return layer.apply(variables, query, key, value, method=attend)

  with context(), attention_paths.telling(told.append):
    expected = context_of_layer(query, key, value)
  (path,) = told
  assert path.num_heads == N
  segment_ids = SEGMENTS if isinstance(mask, layers.Segments) else None
  ours = compiled(path.attention)(query, key, value, segment_ids)
  np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@every_class
def test_a_layer_tells_that_no_kernel_serves(cls):
  told = []
  layer, variables = build(cls, atten_dropout_prob=0.5)
  x = jnp.ones((B, T, D))
  with context(), attention_paths.telling(told.append):
    layer.apply(variables, x, x, x, SHOWN)
  assert [path.text() for path in told] == [
    "Praxis's attention, which forms all logits: dropout of probabilities"
  ]


def test_an_experiment_asks_for_a_kernel_by_name():
  def kernels(name, **attributes):
    experiment = getattr(configs, name)().on()
    for attribute, value in attributes.items():
      setattr(experiment, attribute, value)
    task = experiment.task()
    return {
      getattr(node, 'kernel', None)
      for node, _ in daglish.iterate(task)
      if swap.attention_class(node) is not None
    }

  for name in ('C4LaserTiny', 'WikipediaStandardBertTiny', 'ImageNetLaserViTTiny'):
    assert kernels(name) == {None}
    assert kernels(name, ATTENTION_KERNEL='triton') == {'triton'}
  assert kernels('LibriSpeechLaserConformerTiny', ATTENTION_KERNEL='triton') == {'triton'}


@every_class
@pytest.mark.parametrize('mask', [layers.Segments(SEGMENTS, is_causal=True), SHOWN])
def test_on_a_cpu_it_is_the_plain_layer_to_rounding(cls, mask):
  layer, variables = build(cls)
  plain, _ = build(TWINS[cls])
  dense = mask.dense(jnp.float32) if isinstance(mask, layers.Segments) else mask
  output, probs, gradients = run(layer, variables, mask)
  expected, _, exact = run(plain, variables, dense)
  assert probs is None, 'the plain path was taken'
  assert rms_error(output, expected) < 1e-6
  for ours, gradient in zip(jax.tree.leaves(gradients), jax.tree.leaves(exact), strict=True):
    if np.abs(gradient).max() > 1e-4:  # A key's bias changes nothing.
      assert rms_error(ours, gradient) < 2e-6


def decoder(cls, atten, repeated):
  """A decoder of two layers with weights, and the loss of a batch of packed text."""
  stack = pax_fiddle.Config(
    transformers.StackedTransformer, num_layers=2, num_heads=N, hidden_dims=D, model_dims=D
  )
  stack.transformer_layer_params_tpl.tr_atten_tpl = pax_fiddle.Config(atten)
  if repeated:
    stack.num_layers = 1
    stack = pax_fiddle.Config(transformers.StackedTransformerRepeated, block=stack, x_times=2)
  model = base_layer.instantiate(
    pax_fiddle.Config(
      cls,
      name='lm',
      packed_input=True,
      model_dims=D,
      vocab_size=64,
      stacked_transformer_tpl=stack,
    )
  )
  ids = jnp.asarray(np.random.default_rng(4).integers(0, 64, (B, T)), jnp.int32)
  paddings = (SEGMENTS == 0).astype(jnp.float32)
  labels = attentions.NestedMap(class_ids=ids, class_weights=1 - paddings)

  def loss(variables, **kwargs):
    with context():
      output = model.apply(variables, ids, paddings, labels, SEGMENTS, POSITIONS, **kwargs)
    return output.total_loss

  with context():
    shapes = jax.eval_shape(
      lambda: model.init(jax.random.PRNGKey(0), ids, paddings, labels, SEGMENTS, POSITIONS)
    )
  return loss, fill(shapes)


SEGMENTED = layers.SegmentedTransformerLm, layers.LaserFusedDotProductAttention
PLAIN = transformer_models.TransformerLm, layers.LaserDotProductAttention


@pytest.mark.parametrize('repeated', [False, True])
def test_a_decoder_loses_the_same_on_a_cpu(repeated):
  ours, variables = decoder(*SEGMENTED, repeated)
  plain, same = decoder(*PLAIN, repeated)
  jax.tree.map(np.testing.assert_array_equal, variables, same)
  found, expected = (compiled(jax.value_and_grad(f))(variables) for f in (ours, plain))
  assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-6)
  mine, theirs = (
    dict(jax.tree_util.tree_leaves_with_path(gradients)) for _, gradients in (found, expected)
  )
  mine, theirs = ({jax.tree_util.keystr(k): x for k, x in d.items()} for d in (mine, theirs))
  assert mine.keys() == theirs.keys()
  for name, gradient in theirs.items():
    # A bias of keys moves all logits of a row alike: its gradient is rounding, of terms as large as
    # those of the queries' bias.
    size = np.abs(theirs[name.replace("['key']['b']", "['query']['b']")]).max()
    np.testing.assert_allclose(mine[name], gradient, rtol=0, atol=2e-6 * size)
  # A mask of the caller's own is made causal, as ever.
  mask = jnp.zeros((B, 1, T, T))
  assert ours(variables, segment_mask=mask) == plain(variables, segment_mask=mask)


def test_a_decoder_with_kernels_makes_no_mask_and_no_logits(interpreted_kernels):
  ours, variables = decoder(*SEGMENTED, repeated=True)
  plain, _ = decoder(*PLAIN, repeated=True)

  def shapes(jaxpr):
    for equation in jaxpr.eqns:
      yield from (x.aval.shape for x in equation.outvars)
      if equation.primitive.name != 'pallas_call':
        for inner in inner_jaxprs(equation.params):
          yield from shapes(inner)

  def squares(loss):
    found = shapes(jax.make_jaxpr(jax.grad(loss))(variables).jaxpr)
    return {s for s in found if s[-2:] in ((T, T), (128, 128))}

  with_kernels = squares(ours)
  assert not {s for s in with_kernels if s[-2:] == (T, T)}, with_kernels
  assert (B, 1, T, T) in squares(plain)
  losses = [float(compiled(f)(variables)) for f in (ours, plain)]
  assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_another_attention_is_given_the_mask_that_it_knows():
  loss, variables = decoder(layers.SegmentedTransformerLm, attentions.DotProductAttention, False)
  assert np.isfinite(compiled(loss)(variables))


def test_use_fused_changes_classes_alone_before_or_after_laser():
  model = configs.C4StandardTiny().on('cpu').task().model
  stack = model.lm_tpl.stacked_transformer_tpl.block.transformer_layer_params_tpl
  assert model.lm_tpl.cls is layers.SegmentedTransformerLm
  assert stack.tr_atten_tpl.cls is layers.FusedDotProductAttention
  config = pax_fiddle.Config(attentions.DotProductAttention, atten_logit_cap=7.0)
  layers.use_laser(config)
  layers.use_fused(config)
  assert config.cls is layers.LaserFusedDotProductAttention and config.atten_logit_cap == 7.0


def test_four_devices_train_as_one(commands):
  found = steps.in_own_process(commands, 4, 'fused_mesh')
  assert found['kernels'] > 0
  np.testing.assert_allclose(found['by_kernels'], found['plain'], rtol=1e-5)
