"""use_laser on the configs that people have, and on those that it must refuse."""

import copy

import fiddle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fiddle import daglish
from praxis import base_layer, pax_fiddle, py_utils
from praxis.layers import (
  attentions,
  base_ops,
  conformers,
  glam,
  grouped_query_attention,
  multi_query_attention,
  transformer_models,
  transformers,
  vits,
)
from praxis.layers.quantization import attentions as quantized
from praxis.layers.quantization import conformers as quantized_conformers

from laser_pax import layers
from laser_pax.errors import UserError
from tests.support import cases

ATTENTION = 'transformer_layer_params_tpl.tr_atten_tpl'
V, D = 32, 16


def stack(**fields):
  sizes = {'num_layers': 2, 'num_heads': 2, 'model_dims': D, 'hidden_dims': D}
  return pax_fiddle.Config(transformers.StackedTransformer, **(sizes | fields))


def repeated():
  return pax_fiddle.Config(
    transformers.StackedTransformerRepeated, block=stack(num_layers=1), x_times=2
  )


def pipelined():
  return pax_fiddle.Config(
    transformers.PipelinedTransformer,
    pipeline_stage=repeated(),
    num_pipeline_stages=2,
    num_pipeline_microbatches=2,
  )


def language_model(stacked):
  return pax_fiddle.Config(
    transformer_models.TransformerLm,
    name='lm',
    model_dims=D,
    vocab_size=V,
    packed_input=True,
    stacked_transformer_tpl=stacked,
  )


def encoder_decoder():
  return pax_fiddle.Config(
    transformer_models.TransformerEncoderDecoder,
    name='seq2seq',
    model_dims=D,
    encoder_stacked_transformer_tpl=stack(mask_self_attention=False),
    decoder_stacked_transformer_tpl=stack(use_cross_attention=True),
  )


def experiment(base, **attributes):
  """The task of a small experiment derived from one of paxml's."""
  from paxml.tasks.lm import model_params  # 15 s.

  sizes = {'NUM_LAYERS': 2, 'VOCAB_SIZE': V, 'MODEL_DIMS': D, 'HIDDEN_DIMS': D, 'NUM_HEADS': 2}
  sizes |= {'DIMS_PER_HEAD': 8, 'FPROP_DTYPE': jnp.float32, 'ICI_MESH_SHAPE': [1, 1, 1]}
  sizes |= {'datasets': lambda self: []}
  return type('Small', (getattr(model_params, base),), sizes | attributes)().task()


def vit():
  return vits.build_vision_transformer_hparams_for_test((4, 4), 4, 3, D, D, 2, 2)


def glam_language_model():
  return glam.GlamUniTransformerLmHParams(V, D, D, 2, 8, 2, moe=True, e_dim=2, c_dim=4)


IN_LM = 'model.lm_tpl.stacked_transformer_tpl'
CONFIGS = {  # What makes the config, and where it holds attentions.
  'attention itself': (lambda: pax_fiddle.Config(attentions.DotProductAttention), ['']),
  'stacked': (lambda: language_model(stack()), [f'stacked_transformer_tpl.{ATTENTION}']),
  'repeated': (
    lambda: language_model(repeated()),
    [f'stacked_transformer_tpl.block.{ATTENTION}'],
  ),
  'pipelined': (
    lambda: language_model(pipelined()),
    [f'stacked_transformer_tpl.pipeline_stage.block.{ATTENTION}'],
  ),
  'encoder and decoder': (
    encoder_decoder,
    [f'{x}_stacked_transformer_tpl.{ATTENTION}' for x in ('encoder', 'decoder')],
  ),
  'a list of layers': (
    lambda: stack(
      transformer_layer_params_tpl=[pax_fiddle.Config(transformers.Transformer) for _ in range(2)]
    ),
    [f'transformer_layer_params_tpl[{i}].tr_atten_tpl' for i in range(2)],
  ),
  'paxml task': (
    lambda: experiment('TransformerLmSpmdAdafactor'),
    [f'{IN_LM}.{ATTENTION}'],
  ),
  'paxml task, repeated': (
    lambda: experiment('TransformerLmSpmdAdafactor', USE_REPEATED_LAYER=True),
    [f'{IN_LM}.block.{ATTENTION}'],
  ),
  'paxml task, pipelined': (
    lambda: experiment(
      'TransformerLmSpmdPipelineAdafactor',
      NUM_STAGES=2,
      NUM_MICROBATCHES=2,
      ICI_MESH_SHAPE=[2, 1, 1, 1],
    ),
    [f'{IN_LM}.pipeline_stage.{ATTENTION}'],
  ),
  'ViT': (vit, [f'transformer_layers_tpl.{ATTENTION}']),
  'Conformer': (
    lambda: pax_fiddle.Config(conformers.Conformer, input_dims=D, model_dims=D),
    ['trans_atten_tpl.self_atten_tpl'],
  ),
  'GLaM': (glam_language_model, [f'stacked_transformer_tpl.block.{ATTENTION}']),
}


def nodes(config):
  """Returns each config within a config by its path: its class and fields."""
  return {
    daglish.path_str(path): (fiddle.get_callable(node), dict(node.__arguments__))
    for node, path in daglish.iterate(config)
    if isinstance(node, fiddle.Buildable)
  }


@pytest.mark.parametrize('name', CONFIGS)
def test_every_attention_is_swapped_and_nothing_else_changes(name):
  make, paths = CONFIGS[name]
  config = make()
  before = nodes(copy.deepcopy(config))
  changes = layers.use_laser(config)
  assert [change.path for change in changes] == paths
  after = nodes(config)
  assert after.keys() == before.keys()
  for path, (cls, fields) in after.items():
    standard, standard_fields = before[path]
    if path.lstrip('.') in paths:
      assert cases.STANDARD[cls] is standard
    else:
      assert cls is standard
    assert fields.keys() == standard_fields.keys()
    for field, value in fields.items():
      if not any(isinstance(x, fiddle.Buildable) for x, _ in daglish.iterate(value)):
        assert value == standard_fields[field], (path, field)


@pytest.mark.parametrize('name', ['attention itself', 'repeated', 'GLaM'])
def test_a_second_call_changes_nothing(name):
  config = CONFIGS[name][0]()
  assert layers.use_laser(config)
  once = copy.deepcopy(config)
  assert layers.use_laser(config) == []
  assert config == once


def test_the_report_reads():
  changes = layers.use_laser(language_model(repeated()))
  assert [str(change) for change in changes] == [
    f'stacked_transformer_tpl.block.{ATTENTION}: DotProductAttention -> LaserDotProductAttention'
  ]
  assert str(layers.use_laser(pax_fiddle.Config(attentions.DotProductAttention))[0]).startswith('(')


def test_a_shared_config_is_swapped_once():
  shared = pax_fiddle.Config(transformers.Transformer)
  config = stack(transformer_layer_params_tpl=[shared, shared])
  assert len(layers.use_laser(config)) == 1
  first, second = config.transformer_layer_params_tpl
  assert first is second


@pytest.mark.parametrize('standard', cases.STANDARD.values())
def test_every_standard_class(standard):
  config = pax_fiddle.Config(standard, name='x', input_dim=D, num_heads=2)
  [change] = layers.use_laser(config)
  assert change.before is standard and cases.STANDARD[change.after] is standard
  assert fiddle.get_callable(config) is change.after and issubclass(change.after, standard)
  assert (config.name, config.input_dim, config.num_heads) == ('x', D, 2)


def test_one_standard_and_one_laser():
  config = encoder_decoder()
  layers.use_laser(config.encoder_stacked_transformer_tpl)
  [change] = layers.use_laser(config)
  assert change.path == f'decoder_stacked_transformer_tpl.{ATTENTION}'


@pytest.mark.parametrize('name', ['repeated', 'pipelined', 'GLaM'])
def test_swapped_models_train(name):
  """The same variables; another loss; gradients that are finite and reach the values."""
  standard, laser = CONFIGS[name][0](), CONFIGS[name][0]()
  layers.use_laser(laser)
  (loss, variables), (laser_loss, laser_variables) = (model_loss(c) for c in (standard, laser))
  shapes = [jax.tree.map(jnp.shape, v) for v in (variables, laser_variables)]
  assert shapes[0] == shapes[1]
  params = variables['params']
  value, gradient = cases.compiled(jax.value_and_grad(laser_loss))(params)
  assert np.isfinite(value) and value != cases.compiled(loss)(params)
  flat = jax.tree_util.tree_flatten_with_path(gradient)[0]
  assert all(np.isfinite(g).all() for _, g in flat)
  values = [g for path, g in flat if 'self_attention' in str(path) and 'value' in str(path)]
  assert values and all(np.any(g) for g in values)


def model_loss(config):
  """Returns a language model's training loss, a function of its parameters, and its variables."""
  layer = base_layer.instantiate(config)
  ids = np.random.default_rng(0).integers(1, V, (4, 8))
  ones = np.ones(ids.shape, np.float32)
  labels = py_utils.NestedMap(class_ids=ids, class_weights=ones)
  positions = np.broadcast_to(np.arange(8), ids.shape)
  arguments = ids, 1 - ones, labels, ones.astype(int), positions
  with cases.context(do_eval=False):
    shapes = jax.eval_shape(lambda: layer.init(jax.random.PRNGKey(0), *arguments))
  kept = {k: v for k, v in shapes.items() if k in ('params', base_layer.NON_TRAINABLE)}
  variables = cases.fill(kept)
  collections = [base_layer.AUX_LOSS, base_layer.NON_TRAINABLE]

  def loss(params):
    with cases.context(do_eval=False):
      output, _ = layer.apply(variables | {'params': params}, *arguments, mutable=collections)
    return output.total_loss

  return loss, variables


class Unknown(attentions.DotProductAttention):
  """A user's own attention."""


class Rounded(base_ops.EinsumOp):
  """Stands for a quantized product."""


REFUSED = {
  'lazy prefix': (attentions.DotProductAttentionWithLPB, {}, 'lazy prefix.*Use DotProductAtten'),
  'lazy prefix, one key': (
    multi_query_attention.MultiQueryDotProductAttentionLPB,
    {},
    'lazy prefix.*Use MultiQuery',
  ),
  'quantized': (quantized.DotProductAttention, {}, 'quantizes'),
  'quantized, context': (quantized_conformers.DotProductAttentionWithContext, {}, 'quantizes'),
  'unknown': (Unknown, {}, 'does not know.*LaserDotProductAttention'),
  'einsum': (
    attentions.DotProductAttention,
    {'pv_einsum_tpl': pax_fiddle.Config(Rounded)},
    'pv_einsum_tpl is Rounded',
  ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_right_is_refused_and_nothing_changed(name):
  cls, fields, message = REFUSED[name]
  config = encoder_decoder()
  layer = config.decoder_stacked_transformer_tpl.transformer_layer_params_tpl
  layer.tr_atten_tpl = pax_fiddle.Config(cls, **fields)
  before = copy.deepcopy(config)
  with pytest.raises(UserError, match=f'(?s)decoder_stacked.*{cls.__qualname__}.*{message}'):
    layers.use_laser(config)
  assert config == before


def test_fused_kernels_are_refused():
  fused = pytest.importorskip('praxis.layers.gpu_fast_attention')
  for cls in (
    fused.GpuTritonFusedDotProductAttention,
    fused.GpuTritonFusedGroupedQueryAttention,
    fused.GpuTritonFusedMultiQueryDotProductAttention,
  ):
    with pytest.raises(UserError, match='without ever forming the probabilities'):
      layers.use_laser(pax_fiddle.Config(cls))


def test_all_refusals_are_told_at_once():
  config = encoder_decoder()
  for stacked in (config.encoder_stacked_transformer_tpl, config.decoder_stacked_transformer_tpl):
    stacked.transformer_layer_params_tpl.tr_atten_tpl = pax_fiddle.Config(Unknown)
  with pytest.raises(UserError, match='(?s)encoder_stacked.*decoder_stacked'):
    layers.use_laser(config)


@pytest.mark.parametrize(
  'config', [pax_fiddle.Config(transformers.TransformerFeedForward), None, 'C4Laser2B']
)
def test_a_config_without_attention(config):
  with pytest.raises(UserError, match='found no attention in'):
    layers.use_laser(config)


def test_a_class_derived_from_laser_counts_as_laser():
  class Mine(layers.LaserGroupedQueryAttention):
    pass

  assert issubclass(Mine, grouped_query_attention.GroupedQueryAttention)
  assert layers.use_laser(pax_fiddle.Config(Mine)) == []


def test_numerics_of_the_layers_that_are_changed():
  config = pax_fiddle.Config(attentions.DotProductAttention)
  layers.use_laser(config, numerics='paper')
  assert config.numerics == 'paper'
  with pytest.raises(UserError, match="exact or paper or unshifted; got 'papr'"):
    layers.use_laser(pax_fiddle.Config(attentions.DotProductAttention), numerics='papr')


def test_a_beta_that_laser_attentions_lack_is_refused():
  config = stack()
  layers.use_laser(config, beta=0.5)
  assert layers.use_laser(config, beta=0.5) == layers.use_laser(config) == []
  for beta in (0.25, 'learned'):
    with pytest.raises(UserError, match='LASER already, with another beta or none'):
      layers.use_laser(config, beta=beta)


@pytest.mark.parametrize('make', [stack, repeated, pipelined])
@pytest.mark.parametrize('fields', [{'numerics': 'paper'}, {'beta': 'learned'}])
def test_back_to_standard_is_what_was_before(make, fields):
  config, before = make(), make()
  there = layers.use_laser(config, **fields)
  back = layers.use_standard(config)
  assert config == before
  assert [(c.path, c.after, c.before) for c in back] == [(c.path, c.before, c.after) for c in there]
  assert layers.use_standard(config) == []


def test_a_class_derived_from_laser_has_no_standard_twin():
  class Own(layers.LaserDotProductAttention):
    pass

  config = pax_fiddle.Config(Own, name='atten')
  with pytest.raises(UserError, match='Own has no standard twin that laser_pax knows'):
    layers.use_standard(config)
