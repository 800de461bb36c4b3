"""Probabilities, spread of values and gradients, against a direct computation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paxml import train_states
from praxis import pax_fiddle, py_utils
from praxis.layers import attentions

from laser_pax import configs, layers
from laser_pax.analysis import attention, lines, observed
from laser_pax.errors import UserError
from tests.support import direct_decoder, steps
from tests.support.programs import compiled

SIZES = dict(NUM_LAYERS=2, MODEL_DIMS=16, NUM_HEADS=2, DIMS_PER_HEAD=8, HIDDEN_DIMS=32)
SIZES |= dict(SEQ_LEN=12, GLOBAL_BATCH_SIZE=3)
BATCHES = [steps.batch(step, True, 3, 12) for step in (0, 1)]


@functools.cache
def experiment(name='C4LaserTiny'):
  return steps.experiment(name, **SIZES)


@functools.cache
def shapes():
  twin = attention.Twin(experiment(), lines.LASER)
  return twin._task.model.abstract_init_with_metadata(BATCHES[0], do_eval=True)['params']


@functools.cache
def weights():
  """Weights by dotted names, so large that some probabilities are tiny."""
  rng = np.random.default_rng(0)
  result = {}
  for name, x in py_utils.NestedMap.FromNestedDict(shapes()).FlattenItems():
    if observed.PROBE not in name.split('.'):
      shape = (*(x.repeat_prefix or ()), *x.shape)
      scale = 1.0 if 'combined_qkv' in name else 0.3
      result[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
  return result


class Model:
  """The weights, and the one step that is compiled of each function."""

  def run(self, step_fn, batch):
    tree = py_utils.NestedMap()
    for name, weight in weights().items():
      tree.Set(name, weight)
    state = train_states.TrainState(
      step=jnp.zeros((), jnp.int32), mdl_vars={'params': tree.ToNestedDict()}, opt_states=[]
    )
    return jax.tree.map(np.asarray, _step(step_fn)(state, batch))


@functools.cache
def _step(step_fn):
  key = jax.random.PRNGKey(0)
  return compiled(lambda state, batch: step_fn(None, state, key, batch, jnp.float32, None, None)[1])


@functools.cache
def measured():
  twins = [attention.Twin(experiment(), form) for form in (lines.LASER, lines.STANDARD)]
  return attention.measure(Model(), twins, BATCHES)


@functools.cache
def direct(form, index):
  """Loss, probabilities and values by layer, and gradients for weights and logits, of a batch."""
  cap = experiment().ATTEN_LOGIT_CAP, experiment().SOFTMAX_CAP_LOGITS
  function = jax.value_and_grad(direct_decoder.loss, argnums=(0, 1), has_aux=True)
  deltas = jnp.zeros((2, 3, 2, 12, 12))
  run = compiled(lambda w, d, batch: function(w, d, batch, form, *cap))
  return jax.tree.map(np.asarray, run(weights(), deltas, BATCHES[index]))


def of(kind, form, layer):
  (line,) = (
    x for x in measured() if (x['kind'], x['attention'], x['layer']) == (kind, form, layer)
  )
  return line


@pytest.mark.parametrize('layer', [0, 1])
@pytest.mark.parametrize('form', [lines.STANDARD, lines.LASER])
def test_gradients_are_those_of_a_direct_computation(form, layer):
  norms = {name: [] for name in lines.NORMS}
  losses = []
  for index in range(2):
    (loss, _), (by_weight, by_logit) = direct(form, index)
    losses.append(loss)
    norms['logits'].append(np.sqrt((by_logit[layer] ** 2).sum((0, 2, 3))))
    qkv = by_weight['lm.transformer.repeat.sub.x_layers_0.self_attention.combined_qkv.w'][layer]
    for name, gradient in zip(lines.NORMS[1:], qkv, strict=True):
      norms[name].append(np.linalg.norm(gradient))
  line = of('gradients', form, layer)
  assert line['loss'] == pytest.approx(np.mean(losses), rel=1e-5)
  assert line['rows'] == 6 and line['rows_at_once'] == 3
  for name, values in norms.items():
    np.testing.assert_allclose(line[name], np.mean(values, 0), rtol=1e-4, err_msg=name)


@pytest.mark.parametrize('layer', [0, 1])
def test_shares_and_spreads_are_those_of_a_direct_computation(layer):
  line = of('attention', lines.LASER, layer)
  pairs, spreads, ranges, greatest = [], [], [], []
  for index, batch in enumerate(BATCHES):
    (_, inner), _ = direct(lines.LASER, index)
    probs, value = inner[layer]
    for row, segment in enumerate(batch.segment_ids):
      length = int(segment.sum())
      pairs.append(np.stack([p[:length][np.tri(length, 12, dtype=bool)] for p in probs[row]]))
      spreads.append(value[row, :length].std(0).mean(-1))
      ranges.append(np.ptp(value[row, :length], axis=0).mean(-1))
      greatest.append(np.ptp(value[row, :length], axis=0).max(-1))
  pairs = np.concatenate(pairs, 1)
  assert line['pairs'] == pairs.shape[1]
  assert (pairs < 1e-3).any() and (pairs < 1e-7).any(), 'the test says nothing'
  for threshold, share in line['share_below'].items():
    np.testing.assert_allclose(share, (pairs < float(threshold)).mean(1), rtol=1e-6)
  np.testing.assert_allclose(line['value_std'], np.mean(spreads, 0), rtol=1e-4)
  np.testing.assert_allclose(line['value_range'], np.mean(ranges, 0), rtol=1e-4)
  np.testing.assert_allclose(line['value_range_max'], np.max(greatest, 0), rtol=1e-4)


def test_probabilities_are_told_of_the_own_attention_alone():
  described = [x for x in measured() if x['kind'] == 'attention']
  assert [(x['layer'], x['attention']) for x in described] == [(0, 'LASER'), (1, 'LASER')]
  assert attention.own_form(experiment()) == 'LASER'
  assert attention.own_form(experiment('C4StandardTiny')) == 'standard'


FAMILIES = {
  'WikipediaLaserBertTiny': dict(SIZES, VOCAB_SIZE=64),
  'ImageNetLaserViTTiny': dict(NUM_LAYERS=2),
  'LibriSpeechStandardConformerTiny': dict(NUM_LAYERS=2),
}


@pytest.mark.parametrize('name', FAMILIES)
def test_every_family_is_observed(name):
  one = getattr(configs, name)()
  for attribute, value in FAMILIES[name].items():
    setattr(one, attribute, value)
  twin = attention.Twin(one, lines.STANDARD)
  batch = one.input_specs(2)

  def run(batch):
    hparams = twin._task.model.abstract_init_with_metadata(batch, do_eval=True)
    make = lambda x: jnp.zeros((*(x.repeat_prefix or ()), *x.shape), x.dtype)  # noqa: E731
    variables = jax.tree.map(make, hparams)
    state = train_states.TrainState(jnp.zeros((), jnp.int32), mdl_vars=variables, opt_states=[])
    key = jax.random.PRNGKey(0)
    return twin.step(None, state, key, batch, one.FPROP_DTYPE, None, None)[1]

  ((_, parts),) = jax.eval_shape(run, batch)['attentions'].items()
  assert parts['query'].shape == (2,)
  heads = parts['logits'].shape[1]
  assert parts['below'].shape == (2, heads, len(observed.THRESHOLDS))


def test_layers_of_blocks_and_loops_are_counted_in_order():
  outputs = [{f'x_layers_{i}': {'query': np.array([i, i + 11.0])} for i in (1, 10, 2)}]
  values = [part['query'] for (part,) in attention._by_layer(outputs)]
  assert values == [1, 2, 10, 12, 13, 21]
  unrolled = [{f'x_layers_{i}': {'query': np.array(float(i))} for i in (1, 10, 2)}]
  assert [part['query'] for (part,) in attention._by_layer(unrolled)] == [1, 2, 10]


def test_an_attention_that_cannot_be_read_is_refused_in_a_line():
  local = pax_fiddle.Config(attentions.LocalSelfAttention, name='atten')
  with pytest.raises(UserError, match='cannot analyse LocalSelfAttention: expected'):
    observed.observe(local)
  with pytest.raises(UserError, match='has no attention'):
    observed.observe(pax_fiddle.Config(layers.LeanSharedEmbeddingSoftmax, name='softmax'))


def test_of_one_step_the_lines_of_most_rows_are_read(tmp_path):
  for step, rows in ((300, 8), (300, 16), (0, 8)):
    file = lines.file_of(tmp_path, step, rows)
    lines.write(file, [{'step': step, 'rows': rows}])
  (tmp_path / 'other.jsonl').write_text('{}')
  assert [(x['step'], x['rows']) for x in lines.read(tmp_path)] == [(0, 8), (300, 16)]
  assert lines.read(tmp_path / 'nowhere') == []


def test_a_checkpoint_whose_loss_is_not_finite_is_refused():
  class Diverged(Model):
    def run(self, step_fn, batch):
      return super().run(step_fn, batch) | {'loss': np.float32(np.nan)}

  twin = attention.Twin(experiment(), lines.LASER)
  with pytest.raises(UserError, match='its loss under LASER attention is nan'):
    attention.measure(Diverged(), [twin], BATCHES[:1])
