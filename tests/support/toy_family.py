"""A family of a few lines: the mean of a bag's words tells which of four classes drew them."""

import os
import types

import jax
import numpy as np
from paxml import experiment_registry, tasks_lib
from praxis import base_input, layers, pax_fiddle, py_utils

from laser_pax.experiment import base, family, optimizers
from laser_pax.layers import vision

WORDS, CLASSES, LENGTH, DIMS = 40, 4, 8, 8


class Input(base_input.BaseInput):
  """Batch k is drawn by the seed k. Class c draws words below 10 (c + 1)."""

  _place = 0

  def get_next(self):
    if self.reset_for_eval and self._place == 2:
      raise StopIteration
    rng = np.random.default_rng(self._place)
    self._place += 1
    labels = rng.integers(CLASSES, size=self.batch_size, dtype=np.int32)
    words = rng.integers(10 * (labels[:, None] + 1), size=(self.batch_size, LENGTH), dtype=np.int32)
    shares, classes = np.eye(WORDS, dtype=np.float32)[words].mean(1), np.eye(CLASSES)[labels]
    return py_utils.NestedMap(words=shares, labels=classes.astype(np.float32))

  def reset(self):
    self._place = 0

  def go_to(self, step):
    self._place = step

  def _get_state_internal(self):  # What PAX saves of the data, and restores.
    return str(self._place).encode()

  def _set_state_internal(self, state):
    self._place = int(state)


@experiment_registry.register
class Bags(base.Experiment):
  """Bags of words."""

  METRIC, UNIT = family.Metric(name='total_loss', label='loss'), 'bags'
  GLOBAL_BATCH_SIZE, NUM_TRAIN_STEPS, LEARNING_RATE = 64, int(os.environ.get('STEPS', 40)), 0.1
  SUMMARY_INTERVAL_STEPS, CHECKPOINT_EVERY_N_STEPS, EVAL_INTERVAL_STEPS = 1, 4, 6

  def task(self):
    model = pax_fiddle.Config(
      vision.ImageClassifier, name='bags', input_field='words', label_field='labels',
      network_tpl=pax_fiddle.Config(layers.Linear, input_dims=WORDS, output_dims=DIMS),
      softmax_tpl=pax_fiddle.Config(layers.FullSoftmax, input_dims=DIMS, num_classes=CLASSES),
      ici_mesh_shape=self.layout().ici_mesh_shape, mesh_axis_names=['replica', 'data', 'mdl'],
    )  # fmt: skip
    task = pax_fiddle.Config(tasks_lib.SingleTask, name='bags', model=model)
    numbers = optimizers.Hyperparameters(
      learning_rate=self.LEARNING_RATE, weight_decay=0.0, beta1=0.9, beta2=0.99,
      clip_gradient_norm=1.0, warmup_steps=2, num_train_steps=self.NUM_TRAIN_STEPS,
    )  # fmt: skip
    optimizers.set_adamw(task, numbers)
    self.set_intervals(task)
    return task

  def datasets(self):
    train = pax_fiddle.Config(Input, name='train', batch_size=self.GLOBAL_BATCH_SIZE)
    train.is_training = True
    test = pax_fiddle.Config(Input, name='test', batch_size=self.GLOBAL_BATCH_SIZE)
    return [train, test.set(reset_for_eval=True)]

  def input_specs(self, batch_size):
    sizes = {'words': WORDS, 'labels': CLASSES}
    specs = {k: jax.ShapeDtypeStruct((batch_size, n), np.float32) for k, n in sizes.items()}
    return py_utils.NestedMap(specs)

  def random_batch(self, rng, batch_size):
    shares = {'words': WORDS, 'labels': CLASSES}
    return py_utils.NestedMap(
      {k: rng.dirichlet(np.ones(n), batch_size).astype(np.float32) for k, n in shares.items()}
    )

  def sizes(self):
    weights, batch = DIMS * (WORDS + CLASSES), self.GLOBAL_BATCH_SIZE
    names = ('layer_weights', 'kept_activations', 'recomputed_activations', 'head_bytes')
    return types.SimpleNamespace(
      global_batch_size=batch, seq_len=1, num_layers=1, layers_per_block=1, model_dims=DIMS,
      activation_bytes=4, weights=lambda: weights, backward_width=lambda: DIMS,
      step_flops=lambda *_: 6 * batch * weights, **dict.fromkeys(names, lambda *_: 0),
    )  # fmt: skip

  def units_per_step(self):
    return self.GLOBAL_BATCH_SIZE

  def model_flops(self, parameters):
    return family.ModelFlops(6 * self.GLOBAL_BATCH_SIZE * DIMS * CLASSES, 0, 1.0)

  def describe(self):
    return {'words': f'{WORDS}', 'global batch': f'{self.GLOBAL_BATCH_SIZE}'}

  def chance(self):
    return family.Chance('guessing', float(np.log(CLASSES)))

  def check(self):
    self.check_layout({})

  def check_data(self):
    """The data are made."""
