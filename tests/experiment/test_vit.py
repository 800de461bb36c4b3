"""ViT: AlgoPerf's model to the weight, its start, its loss, and what its checks refuse."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from praxis import base_layer

from laser_pax import configs
from laser_pax.costs import facts
from laser_pax.errors import UserError
from laser_pax.layers import vision
from tests.support import small_images
from tests.support.programs import compiled

PAIR = [configs.ImageNetStandardViTTiny, configs.ImageNetLaserViTTiny]
CONTEXT = base_layer.JaxContext.HParams(do_eval=True)


def batch(rows=4, size=64, classes=12, seed=0):
  rng = np.random.default_rng(seed)
  labels = np.eye(classes, dtype=np.float32)[rng.integers(0, classes, rows)]
  image = rng.standard_normal((rows, size, size, 3), np.float32)
  return base_layer.NestedMap(image=jnp.asarray(image), label_probs=jnp.asarray(labels))


@pytest.fixture(scope='module')
def started():
  """The Tiny model of each kind, and its weights at the start."""

  def start(cls):
    model = cls().on().task().model.Instantiate()
    with base_layer.JaxContext.new_context(hparams=CONTEXT):
      return model, compiled(model.init)(jax.random.PRNGKey(0), batch(2))

  return {cls: start(cls) for cls in PAIR}


@pytest.mark.parametrize('kind', ['Standard', 'Laser'])
def test_the_model_is_algoperfs_to_the_weight(kind):
  f = facts.facts(getattr(configs, f'ImageNet{kind}ViTS16')().on())
  assert f.parameters == 22_122_472
  sizes = {'entry_stack': 0, 'transformers_stack': 0, 'exit_stack': 0, 'softmax': 0}
  for v in f.variables:
    (part,) = (name for name in sizes if f'.{name}.' in v.name)
    sizes[part] += math.prod(v.shape)
  assert sizes == {
    'entry_stack': 295_296,
    'transformers_stack': 12 * 1_774_464,
    'exit_stack': 768 + 147_840,
    'softmax': 385_000,
  }
  normed = facts.facts(getattr(configs, f'ImageNet{kind}ViTS16QkNorm')().on())
  assert normed.parameters == 22_122_472 + 12 * 2 * 2 * 64


def test_positions_are_sines_and_cosines_of_column_and_row():
  """AlgoPerf's formula, in float64, for each patch by itself."""
  positions = vision.sin_cos_positions(14, 14, 384)
  assert positions.shape == (196, 384) and positions.dtype == np.float32
  for patch in (0, 1, 15, 195):
    y, x = divmod(patch, 14)
    angles = [10_000 ** (-i / 95) for i in range(96)]
    expected = [f(p * w) for p in (x, y) for f in (math.sin, math.cos) for w in angles]
    np.testing.assert_allclose(positions[patch], expected, atol=1e-6)


def test_the_start_is_algoperfs(started):
  _, variables = started[configs.ImageNetStandardViTTiny]
  leaves, _ = jax.tree_util.tree_flatten_with_path(variables['params'])
  weights = {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}

  def only(pattern):
    return [x for name, x in weights.items() if re.search(pattern, name)]

  for x in only('softmax') + only("(query|key|value|post)'..'b'") + only("ln'..'bias"):
    assert not x.any()
  for x in only("'scale'"):
    assert (x == 1).all()
  for x in only("(query|key|value|post)'..'w'"):
    assert np.abs(x).max() == pytest.approx(math.sqrt(6 / 256), rel=0.01)
  for x in only("ffn_layer.'..'linear'..'w'"):
    assert np.abs(x).max() == pytest.approx(math.sqrt(6 / (128 + 256)), rel=0.01)
  for x in only("ffn_layer.'..'bias'..'b'"):
    assert x.std() == pytest.approx(1e-6, rel=0.2)
  for x in only('(patch_projection|fc_tanh).*linear'):
    assert x.std() == pytest.approx(x.shape[0] ** -0.5, rel=0.05)
    assert np.abs(x).max() < 2.3 * x.shape[0] ** -0.5  # Normal, cut at two deviations.


def apply(model, variables, data, do_eval=True):
  hparams = base_layer.JaxContext.HParams(do_eval=do_eval)
  with base_layer.JaxContext.new_context(hparams=hparams):

    def run(variables, data):
      predictions = model.apply(variables, data, method=model.compute_predictions)
      return predictions, model.apply(variables, predictions, data, method=model.compute_loss)

    return compiled(run)(variables, data)


@pytest.mark.parametrize('cls', PAIR)
def test_training_smooths_labels_and_evaluation_does_not(started, cls):
  model, variables = started[cls]
  rng = np.random.default_rng(1)
  variables = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape), variables)
  data = batch(6)
  for do_eval in (True, False):
    predictions, (metrics, _) = apply(model, variables, data, do_eval)
    log_probs = np.asarray(jax.nn.log_softmax(predictions.softmax_output.logits), np.float64)
    labels = np.asarray(data.label_probs, np.float64)
    if not do_eval:
      labels = labels * 0.8 + 0.2 / 12
    loss = -(labels * log_probs).sum(1).mean()
    assert float(metrics.total_loss[0]) == pytest.approx(loss, rel=1e-5)
    right = log_probs.argmax(1) == labels.argmax(1)
    assert float(metrics.accuracy[0]) == pytest.approx(right.mean())


@pytest.mark.parametrize('cls', PAIR[:1])
def test_fillers_of_an_evaluation_count_nothing(started, cls):
  model, variables = started[cls]
  data = batch(6)
  few = data.Transform(lambda x: x[:4])
  few.weight = jnp.ones(4)
  filled = data.Transform(lambda x: x)
  filled.image = data.image.at[4:].set(100.0)
  filled.weight = jnp.array([1.0, 1, 1, 1, 0, 0])
  (_, (metrics, _)), (_, (expected, _)) = (apply(model, variables, x) for x in (filled, few))
  for name in ('total_loss', 'accuracy', 'num_predictions'):
    np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)


def test_equal_logits_are_not_all_right(started):
  """At the start the head is zero; Praxis's accuracy would be 1."""
  model, variables = started[configs.ImageNetStandardViTTiny]
  data = batch(24)
  _, (metrics, _) = apply(model, variables, data)
  is_first = np.asarray(data.label_probs).argmax(1) == 0
  assert float(metrics.accuracy[0]) == pytest.approx(is_first.mean())
  assert float(metrics.total_loss[0]) == pytest.approx(math.log(12), rel=1e-6)


@pytest.mark.parametrize(
  ('changed', 'said'),
  [
    ({'PATCH_SIZE': 7}, r'PATCH_SIZE = 7 must divide IMAGE_SIZE = 64: set it to one of \[1, 2'),
    ({'NUM_HEADS': 3}, 'MODEL_DIMS must be NUM_HEADS x DIMS_PER_HEAD'),
    ({'MODEL_DIMS': 6, 'NUM_HEADS': 2}, 'multiple of 4, at least 8; got 6: set it to 8'),
    ({'LABEL_SMOOTHING': -0.1}, 'LABEL_SMOOTHING must be at least 0'),
    ({'MIXUP_ALPHA': -1.0}, 'MIXUP_ALPHA must be at least 0'),
    ({'RAND_AUGMENT_MAGNITUDE': 23}, 'RAND_AUGMENT_MAGNITUDE must be at most 22, got 23'),
  ],
)
def test_sizes_that_do_not_fit_are_refused(changed, said):
  experiment = configs.ImageNetLaserViTTiny().on()
  vars(experiment).update(changed)
  with pytest.raises(UserError, match=said):
    experiment.check()


def test_the_data_sets_are_train_train_eval_test_and_validation(tmp_path):
  experiment = configs.ImageNetStandardViTTiny().on()
  experiment.DATA_DIR = str(small_images.prepare(tmp_path, 4, ('train', 'val', 'test')))
  assert [x.name for x in experiment.datasets()] == ['train', 'train_eval', 'test', 'validation']
  with pytest.raises(UserError, match='NUM_CLASSES = 3'):
    experiment.check_data()
  assert experiment.chance() == ('commonest class', pytest.approx(1 / 3))
  batch, specs = (
    experiment.datasets()[0].Instantiate().get_next(),
    experiment.input_specs(experiment.GLOBAL_BATCH_SIZE),
  )
  assert {k: v.shape for k, v in batch.items()} == {k: v.shape for k, v in specs.items()}


def test_the_sample_is_used_unless_data_are_named(monkeypatch, tmp_path):
  experiment = configs.ImageNetLaserViTTiny().on()
  experiment.check_data()
  monkeypatch.setenv('LASER_PAX_DATA_DIR', str(tmp_path))
  with pytest.raises(UserError, match='prepare imagenet SOURCE'):
    experiment.check_data()
