"""The Conformer against the recipe: padding, loss, masks, statistics, and what it decodes."""

import itertools
import math

import jax
import jax.numpy as jnp
import jiwer
import numpy as np
import pytest
from praxis import base_hyperparams, base_layer, pax_fiddle, py_utils
from praxis.layers import normalizations, spectrum_augmenter

from laser_pax.configs import (
  LibriSpeechLaserConformerTiny,
  LibriSpeechStandardConformer,
  LibriSpeechStandardConformerTiny,
)
from laser_pax.layers import log_mel, speech
from laser_pax.ops import devices
from tests.support import small_speech
from tests.support.programs import compiled


class Small:
  """Sizes of the models here."""

  NUM_LAYERS = 1
  MODEL_DIMS = 32
  HIDDEN_DIMS = 64
  NUM_HEADS = 2


class SmallStandard(Small, LibriSpeechStandardConformerTiny):
  pass


class SmallLaser(Small, LibriSpeechLaserConformerTiny):
  pass


PAIR = [SmallStandard, SmallLaser]
EVAL = base_layer.JaxContext.HParams(do_eval=True)
TRAIN = base_layer.JaxContext.HParams(do_eval=False)


def batch(seconds, rows=2):
  """Returns a batch of real utterances in rows of this length."""
  samples = round(seconds * 16_000)
  own = list(small_speech.utterances('dev-clean').values())[:rows]
  data = np.zeros((rows, samples), np.int16)
  for row, (x, _) in zip(data, own, strict=True):
    row[: len(x)] = x[:samples]
  labels = np.tile(np.arange(5, 13), (rows, 1))
  paddings = np.zeros((rows, 8), np.float32)
  paddings[0, 3:] = 1
  lengths = [min(len(x), samples) for x, _ in own]
  return py_utils.NestedMap(
    speech=jnp.asarray(data),
    num_samples=jnp.asarray(lengths, jnp.int32),
    labels=jnp.asarray(labels * (paddings == 0), jnp.int32),
    label_paddings=jnp.asarray(paddings),
  )


def model_and_variables(cls, inputs):
  model = cls().on().task().Instantiate().model
  with base_layer.JaxContext.new_context(hparams=EVAL):
    variables = compiled(model.init)(jax.random.PRNGKey(0), inputs)
  # LASER must differ from the mean of what it sees, so values must not be small.
  return model, jax.tree.map(lambda x: 2 * x, variables)


def apply(model, variables, inputs, method=None, hparams=EVAL, **kwargs):
  with base_layer.JaxContext.new_context(hparams=hparams):
    return model.apply(variables, inputs, method=method, **kwargs)


@pytest.mark.parametrize(('platform', 'cls'), zip(['cpu', 'tpu'], PAIR, strict=True))
def test_padded_frames_change_nothing(cls, platform, request):
  if platform == 'tpu':
    request.getfixturevalue('interpreted_kernels')
  short, long = batch(2.24), batch(2.56)
  noisy = long.Transform(lambda x: x)
  is_padding = np.arange(long.speech.shape[1]) >= np.asarray(long.num_samples)[:, None] + 480
  noisy.speech = jnp.where(is_padding, 12_345, long.speech)
  model, variables = model_and_variables(cls, short)
  outputs = compiled(lambda x: apply(model, variables, x, method=model.compute_predictions))
  reference, longer, other = map(outputs, (short, long, noisy))
  for row in range(2):
    real = int((reference.paddings[row] == 0).sum())
    assert 0 < real < reference.paddings.shape[1]
    own = np.asarray(reference.logits[row, :real])
    assert own.std() > 0.05
    for padded in (longer, other):
      assert int((padded.paddings[row] == 0).sum()) == real
      np.testing.assert_allclose(padded.logits[row, :real], own, atol=1e-4 * abs(own).max())
  assert devices.platform() == platform


def paths(frames, labels):
  """Yields all label sequences of some frames that collapse to `labels`."""
  for path in itertools.product(range(4), repeat=frames):
    if [k for k, _ in itertools.groupby(path) if k] == labels:
      yield path


@pytest.mark.parametrize('cls', PAIR)
def test_the_loss_is_that_of_all_paths(cls):
  """CTC by enumeration, and the mean over labels, not over rows."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 5, 4)).astype(np.float32)
  labels, lengths = [[1, 2], [3, 3, 1]], [4, 5]
  inputs = py_utils.NestedMap(
    labels=jnp.array([[1, 2, 0], [3, 3, 1]]), label_paddings=jnp.array([[0, 0, 1.0], [0, 0, 0]])
  )
  frame_paddings = jnp.array([[0, 0, 0, 0, 1.0], [0] * 5])
  predictions = py_utils.NestedMap(logits=jnp.asarray(logits), paddings=frame_paddings)
  model = cls().on().task().Instantiate().model
  metrics, rows = model.apply({}, predictions, inputs, method=model.compute_loss)
  log_probs = np.asarray(jax.nn.log_softmax(logits))
  expected = [
    -math.log(
      sum(
        math.exp(sum(log_probs[row, t, k] for t, k in enumerate(path)))
        for path in paths(lengths[row], labels[row])
      )
    )
    for row in range(2)
  ]
  np.testing.assert_allclose(rows.ctc_loss, expected, rtol=1e-5)
  loss, weight = metrics.total_loss
  np.testing.assert_allclose(loss, sum(expected) / 5, rtol=1e-5)
  assert weight == 5
  # A row of weight 0 does not count.
  inputs.weight = jnp.array([1.0, 0.0])
  loss, weight = model.apply({}, predictions, inputs, method=model.compute_loss)[0].total_loss
  np.testing.assert_allclose(loss, expected[0] / 2, rtol=1e-5)
  assert weight == 2


class Letters:
  """An input whose labels are letters; 26 is a blank between words."""

  def ids_to_strings(self, ids, lengths, key=None):
    letters = 'abcdefghijklmnopqrstuvwxyz '
    return [''.join(letters[i - 1] for i in row[:n]) for row, n in zip(ids, lengths, strict=True)]


def test_words_are_counted_as_jiwer_counts_them():
  rng = np.random.default_rng(1)
  frames = rng.choice([0, 1, 2, 3, 27], size=(12, 30))
  labels = rng.choice([1, 2, 3, 27], size=(12, 10))
  label_paddings = (np.arange(10) >= rng.integers(1, 11, (12, 1))).astype(np.float32)
  weights = np.array([1.0] * 11 + [0.0])
  decoded = py_utils.NestedMap(
    frame_labels=frames, labels=labels, label_paddings=label_paddings, weights=weights
  )
  model = PAIR[0]().on().task().Instantiate().model
  metrics, rows, _ = model.process_decode_out(Letters(), decoded)
  hypotheses, references = [], []
  for row in range(11):
    kept = [k for k, _ in itertools.groupby(frames[row]) if k]
    hypotheses += Letters().ids_to_strings([kept], [len(kept)])
    own = labels[row][label_paddings[row] == 0]
    references += Letters().ids_to_strings([own], [len(own)])
  assert [(r['hypothesis'], r['reference']) for _, r in rows] == list(
    zip(hypotheses, references, strict=True)
  )
  value, weight = metrics.wer
  assert value == pytest.approx(jiwer.wer(references, hypotheses))
  assert weight == sum(len(text.split()) for text in references)


def test_a_path_collapses():
  np.testing.assert_array_equal(speech.collapse(np.array([0, 3, 3, 0, 3, 1, 1, 0])), [3, 3, 1])
  np.testing.assert_array_equal(speech.collapse(np.array([5, 5, 5])), [5])
  assert not len(speech.collapse(np.zeros(4, int)))


def test_frames_of_padding_say_nothing():
  inputs = batch(2.56)
  model, variables = model_and_variables(PAIR[1], inputs)
  _, decoded, _ = compiled(lambda x: apply(model, variables, x, method=model.decode))(inputs)
  paddings = log_mel.frame_paddings(inputs.num_samples, log_mel.num_frames(40_960))[:, ::4]
  assert paddings.sum() and (np.asarray(decoded.frame_labels)[paddings == 1] == 0).all()


def test_spec_augment_draws_as_algoperf_does():
  """Ten time masks of floor(0.05 T u) frames, and two frequency masks of floor(27 u) bins."""
  config = LibriSpeechStandardConformer().on().task().model.augmenter_tpl
  layer = base_hyperparams.instantiate(config.clone().set(name='augmenter'))
  rows, frames, real = 2_000, 120, 100
  paddings = jnp.tile((jnp.arange(frames) >= real).astype(jnp.float32), (rows, 1))
  with base_layer.JaxContext.new_context(hparams=TRAIN):
    masked, _ = layer.apply(
      {}, jnp.ones((rows, frames, 80)), paddings, rngs={'random': jax.random.PRNGKey(3)}
    )
  masked = np.asarray(masked) == 0
  in_time, in_frequency = masked.all(2), masked.all(1)
  assert not in_time[:, real:].any()
  np.testing.assert_array_equal(masked, in_time[:, :, None] | in_frequency[:, None])
  rng = np.random.default_rng(0)

  def drawn(length, count, largest):
    result = np.zeros((rows, length), bool)
    for row, _ in itertools.product(result, range(count)):
      size = int(largest * rng.random())
      start = int(rng.random() * (length - size + 1))
      row[start : start + size] = True
    return result.sum(1)

  for ours, expected in (
    (in_time.sum(1), drawn(real, 10, 0.05 * real)),
    (in_frequency.sum(1), drawn(80, 2, 27)),
  ):
    spread = expected.std() / math.sqrt(rows)
    assert ours.mean() == pytest.approx(expected.mean(), abs=6 * spread)
    assert ours.std() == pytest.approx(expected.std(), rel=0.1)
  assert isinstance(layer, spectrum_augmenter.SpectrumAugmenter)


def test_batch_norm_knows_real_frames_alone():
  config = pax_fiddle.Config(normalizations.BatchNorm, name='norm', dim=3, decay=0.9)
  layer = base_hyperparams.instantiate(config)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 3)), jnp.float32)
  paddings = jnp.asarray(np.arange(7) >= np.array([[4], [6]]), jnp.float32)
  with base_layer.JaxContext.new_context(hparams=TRAIN):
    variables = layer.init(jax.random.PRNGKey(0), x, paddings)
    output, updated = layer.apply(variables, x, paddings, mutable=['non_trainable'])
  real = np.asarray(x)[np.asarray(paddings) == 0]
  expected = (np.asarray(x) - real.mean(0)) / np.sqrt(real.var(0) + 1e-3)
  expected[np.asarray(paddings) == 1] = 0
  np.testing.assert_allclose(output, expected, atol=1e-5)
  np.testing.assert_allclose(updated['non_trainable']['moving_mean'], 0.1 * real.mean(0), atol=1e-6)


def test_kernels_start_as_xavier_and_the_rest_at_zero():
  """Each kernel is uniform up to sqrt(6 / (inputs + outputs)); biases and scales are zero."""
  _, variables = model_and_variables(PAIR[0], batch(1.0))
  for path, x in jax.tree_util.tree_leaves_with_path(variables['params']):
    name, x = jax.tree_util.keystr(path), np.asarray(x) / 2
    x = x[0] if 'blocks' in name else x  # The only block of the loop.
    if x.ndim == 1 or name.endswith("['b']"):
      assert not x.any(), name
      continue
    fans = math.prod(x.shape[:-2]) * (x.shape[-2] + x.shape[-1])
    if 'self_atten' in name:
      fans = x.shape[0] + x.shape[1] * x.shape[2]
    limit = math.sqrt(6 / fans)
    assert 0.97 * limit < abs(x).max() <= limit * 1.001, name
    assert x.std() == pytest.approx(limit / math.sqrt(3), rel=0.06), name
