"""LeanSharedEmbeddingSoftmax against Praxis's SharedEmbeddingSoftmax, and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from praxis import base_layer, pax_fiddle
from praxis.layers import embedding_softmax, linears

from laser_pax.layers import LeanSharedEmbeddingSoftmax
from tests.support import steps

B, T, D, V = 2, 9, 16, 60
CASES = {
  'plain': dict(soft_cap_logits=0.0),
  'no cap': dict(soft_cap_logits=None),
  'cap': dict(soft_cap_logits=3.0),
  'cap, scaled lookup': dict(soft_cap_logits=3.0, scale_sqrt_depth=True),
  'scaled inputs': dict(scale_before_logits=True),
  'smoothing': dict(label_smoothing_prob=0.2),
  'smoothing in training alone': dict(
    label_smoothing_prob=0.2, label_smoothing_apply_for_eval=False
  ),
  'no bias': dict(feed_forward_tpl=pax_fiddle.Config(linears.FeedForward, has_bias=False)),
}


def build(cls, **fields):
  config = pax_fiddle.Config(cls, name='softmax', input_dims=D, num_classes=V, **fields)
  return pax_fiddle.instantiate(config)


def pair(**fields):
  """Returns Praxis's layer, ours in chunks of 7 tokens, and their variables."""
  theirs = build(embedding_softmax.SharedEmbeddingSoftmax, **fields)
  lean = build(LeanSharedEmbeddingSoftmax, tokens_per_chunk=7, **fields)
  init = lambda layer: layer.init(jax.random.PRNGKey(1), *batch()[:2], class_ids=batch()[2])  # noqa: E731
  with base_layer.JaxContext.new_context():
    variables = init(theirs)
    jax.tree.map(np.testing.assert_array_equal, variables, init(lean))
  rng = np.random.default_rng(2)
  return theirs, lean, jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape), variables)


def batch():
  """Inputs, weights of which some are zero, and labels."""
  rng = np.random.default_rng(0)
  weights = (np.arange(T) < np.array([[5], [9]])).astype(np.float32)[..., None]
  labels = rng.integers(0, V, (B, T, 1)).astype(np.int32)
  return jnp.asarray(rng.standard_normal((B, T, D)), jnp.float32), weights, labels


def loss_and_gradients(layer, variables, inputs, do_eval):
  """Returns loss and gradients of a model whose input passes the lookup too."""
  _, weights, labels = batch()
  hparams = base_layer.JaxContext.HParams(do_eval=do_eval)

  def loss(variables, inputs):
    with base_layer.JaxContext.new_context(hparams=hparams):
      inputs += layer.apply(variables, labels[..., 0], method=layer.emb_lookup)
      output = layer.apply(variables, inputs, weights, class_ids=labels)
    return output.avg_xent, output

  (_, output), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables, inputs)
  return output, gradients


def assert_near(found, expected, tolerance):
  def near(f, e):
    assert f.dtype == e.dtype
    f, e = (np.asarray(x, np.float64) for x in (f, e))
    np.testing.assert_allclose(f, e, rtol=0, atol=tolerance * np.abs(e).max())

  jax.tree.map(near, found, expected)


@pytest.mark.parametrize('do_eval', [False, True])
@pytest.mark.parametrize('name', CASES)
def test_is_praxis(name, do_eval):
  theirs, lean, variables = pair(**CASES[name])
  inputs = batch()[0]
  expected, expected_gradients = loss_and_gradients(theirs, variables, inputs, do_eval)
  found, gradients = loss_and_gradients(lean, variables, inputs, do_eval)
  assert found.logits is found.log_probs is None
  assert set(found) == set(expected)
  scalars = lambda output: {k: output[k] for k in output if 'log' not in k}  # noqa: E731
  assert_near(scalars(found), scalars(expected), 1e-6)
  assert_near(gradients, expected_gradients, 1e-6)


def test_bfloat16_is_nearer_to_float32_than_praxis():
  theirs, lean, variables = pair(soft_cap_logits=3.0)
  inputs = batch()[0].astype(jnp.bfloat16)
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
  exactly = jax.tree.map(lambda x: x.astype(jnp.float32), (rounded, inputs))
  output, exact = loss_and_gradients(theirs, *exactly, do_eval=False)

  def distance(layer):
    found, gradients = loss_and_gradients(layer, rounded, inputs, do_eval=False)
    assert {g.dtype for g in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.bfloat16)}
    errors = jax.tree.map(
      lambda g, e: float(jnp.abs(g - e).max() / jnp.abs(e).max()), gradients, exact
    )
    return abs(float(found.avg_xent - output.avg_xent)), max(jax.tree.leaves(errors))

  (loss, gradient), (their_loss, their_gradient) = distance(lean), distance(theirs)
  assert loss <= their_loss and loss < 0.01
  assert gradient <= 1.1 * their_gradient and gradient < 0.02


@pytest.mark.parametrize(
  'fields', [dict(z_loss_weight=1e-2), dict(chunk_size=3), dict(lookup_style='matmul')]
)
def test_what_the_chunks_do_not_cover_goes_praxis_way(fields):
  theirs, lean, variables = pair(soft_cap_logits=3.0, **fields)
  expected = loss_and_gradients(theirs, variables, batch()[0], do_eval=False)
  found = loss_and_gradients(lean, variables, batch()[0], do_eval=False)
  assert_near(found[1], expected[1], 1e-6)
  assert (found[0].logits is None) == ('z_loss_weight' not in fields)


def test_class_probabilities_go_praxis_way():
  theirs, lean, variables = pair()
  inputs, weights, _ = batch()
  probabilities = jax.nn.softmax(jax.random.normal(jax.random.PRNGKey(4), (B, T, V)))
  with base_layer.JaxContext.new_context():
    expected, found = (
      layer.apply(variables, inputs, weights, class_probabilities=probabilities)
      for layer in (theirs, lean)
    )
  jax.tree.map(np.testing.assert_array_equal, found, expected)


class _OtherLinear(linears.Linear):
  """A linear layer that computes something else."""

  def __call__(self, inputs):
    return 2 * super().__call__(inputs)


def test_a_template_of_another_class_goes_praxis_way():
  template = pax_fiddle.Config(linears.FeedForward, linear_tpl=pax_fiddle.Config(_OtherLinear))
  theirs, lean, variables = pair(feed_forward_tpl=template)
  expected = loss_and_gradients(theirs, variables, batch()[0], do_eval=False)
  found = loss_and_gradients(lean, variables, batch()[0], do_eval=False)
  assert found[0].logits is not None
  assert_near(found[1], expected[1], 1e-6)


def test_decoding_is_praxis():
  theirs, lean, variables = pair(soft_cap_logits=3.0, scale_sqrt_depth=True)
  inputs, _, labels = batch()
  step = dict(time_step=jnp.int32(0), method='extend_step')
  with base_layer.JaxContext.new_context():
    for ids in (labels[:, 0], labels[..., 0]):
      found, expected = (layer.apply(variables, ids, **step) for layer in (lean, theirs))
      np.testing.assert_array_equal(found, expected)
    for x in (inputs, inputs[:, 0]):
      found, expected = (layer.apply(variables, x, method='get_logits') for layer in (lean, theirs))
      np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope='module')
def spread(commands):
  """What tests/support/sharded_loss.py prints."""
  return steps.in_own_process(commands, 4, 'sharded_loss')


@pytest.mark.parametrize('mesh', ['[4, 1, 1]', '[1, 4, 1]', '[2, 2, 1]', '[1, 2, 2]', '[1, 1, 4]'])
def test_a_mesh_computes_what_one_device_does(spread, mesh):
  errors = spread[mesh]['errors']
  assert max(errors['float32'].values()) < 1e-6, errors
  assert max(errors['bfloat16'].values()) < 2**-6, errors
  assert spread[mesh]['argmax_differs'] == 0


@pytest.mark.parametrize('mesh', ['[4, 1, 1]', '[1, 4, 1]', '[2, 2, 1]'])
def test_a_mesh_sends_w_and_its_gradient_once_and_nothing_in_a_chunk(spread, mesh):
  sent = spread[mesh]['collectives']
  assert not any(line['in_loop'] for line in sent)
  large = [line for line in sent if line['elements'] >= spread['elements_of_w'] // 4]
  kinds = [line['kind'] for line in large]
  # One for the lookup, one for the loss; the XLA of jax 0.12 makes one of the two.
  assert kinds.count('all-gather') in ((0,) if mesh == '[4, 1, 1]' else (1, 2))
  assert len(kinds) - kinds.count('all-gather') <= 4


def test_rows_that_the_mesh_does_not_divide_are_computed_too(spread):
  assert spread['uneven'] < 1e-6
