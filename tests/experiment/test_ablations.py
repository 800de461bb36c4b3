"""Every ablation of laser_pax/configs/c4_ablations.py trains, at a tiny size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from praxis import base_layer, pax_fiddle

from laser_pax import configs
from laser_pax.costs import facts
from laser_pax.errors import UserError
from tests.support import ablation_steps, steps
from tests.support.programs import compiled

STEPS = 10
PARAMS = base_layer.PARAMS


def _initial(hparams):
  """Returns weights as Praxis initialises them."""
  leaves, tree = jax.tree.flatten(hparams)
  keys = jax.random.split(jax.random.PRNGKey(0), len(leaves))
  return tree.unflatten(
    [base_layer.init_var(h, key, 'weight') for h, key in zip(leaves, keys, strict=True)]
  )


def _trained(name):
  """Returns the losses of ten steps, and how far each weight moved, by its path."""
  experiment = ablation_steps.experiment(name, USE_REPEATED_LAYER=False)
  task = experiment.task()
  task.model.lm_tpl.stacked_transformer_tpl.remat = False  # It is quicker to compile.
  task = pax_fiddle.instantiate(task)
  model, (learner,) = task.model, task.learners
  sizes = experiment.GLOBAL_BATCH_SIZE, experiment.SEQ_LEN
  batches = [steps.batch(i, False, *sizes) for i in range(STEPS)]
  context = base_layer.JaxContext.HParams(do_eval=False)

  def loss(weights, batch):
    (metrics, _), _ = model.apply({PARAMS: weights}, batch, mutable=[base_layer.AUX_LOSS])
    return metrics['total_loss'][0]

  def run():
    with base_layer.JaxContext.new_context(hparams=context):
      hparams = model.abstract_init_with_metadata(batches[0])[PARAMS]
      start = _initial(hparams)

      def step(state, batch):
        weights, moments = state
        value, gradients = jax.value_and_grad(loss)(weights, batch)
        gradients, _ = learner.scale_gradients(gradients)
        changes, moments = learner.update_states(gradients, moments, weights, hparams)
        return (learner.apply_gradient(weights, changes, hparams), moments), value

      stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)
      state = start, learner.get_grad_tx(hparams).init(start)
      (end, _), losses = jax.lax.scan(step, state, stacked)
      return losses, jax.tree.map(lambda a, b: jnp.abs(a - b).max(), start, end)

  losses, moved = compiled(run)()
  return losses, {jax.tree_util.keystr(k): x for k, x in jax.tree_util.tree_leaves_with_path(moved)}


@pytest.mark.parametrize('name', ablation_steps.NAMES)
def test_ten_steps(name):
  losses, moved = _trained(name)
  assert np.isfinite(losses).all() and losses[-3:].mean() < losses[:3].mean() - 0.3
  assert min(moved.values()) > 0, moved


@pytest.fixture(scope='module')
def in_pax(commands):
  """The output of tests/support/ablation_steps.py."""
  return steps.in_own_process(commands, 4, 'ablation_steps')


@pytest.mark.slow
def test_differential_attention_and_lamb_on_four_devices_train_as_on_one(in_pax):
  """Layers are in a loop; LAMB's norms are over all devices, and its state is divided."""
  np.testing.assert_allclose(in_pax['four'], in_pax['one'], rtol=1e-5)
  assert in_pax['one'][-1] < in_pax['one'][0] - 0.1
  assert {'data', 'mdl'} <= set(in_pax['sharding'])


@pytest.mark.slow
def test_a_step_that_overflows_without_the_shift_is_skipped(in_pax):
  overflow = in_pax['overflow']
  assert not np.isfinite(overflow['losses']).any()
  assert overflow['valid'] == [0, 0] and overflow['is_kept']


def _tiny(**attributes):
  experiment = configs.C4LaserTiny()
  for name, value in attributes.items():
    setattr(experiment, name, value)
  return experiment


@pytest.mark.parametrize(
  ('attributes', 'message'),
  [
    ({'ATTENTION': 'diff'}, "ATTENTION must be 'softmax' or 'differential'; got 'diff'"),
    ({'QK_NORM': True}, 'QK_NORM = False'),
    ({'USE_ROTARY_POSITION_EMB': True}, 'USE_ROTARY_POSITION_EMB = False'),
    ({'MODEL_DIMS': 132, 'DIMS_PER_HEAD': 33}, 'DIMS_PER_HEAD to an even number'),
  ],
)
def test_what_does_not_fit_is_refused_before_anything_is_compiled(attributes, message):
  with pytest.raises(UserError, match=message):
    _tiny(**({'ATTENTION': 'differential'} | attributes)).check()


def test_show_says_what_differs():
  heads = lambda **attributes: _tiny(**attributes).on().describe()['heads']  # noqa: E731
  assert heads() == '4 of 32'
  assert heads(ATTENTION='differential') == '4 of 32, the difference of two maps'
  assert heads(QK_NORM=True, PER_DIM_SCALE=False) == (
    '4 of 32, queries and keys normalised, one scale for all dimensions'
  )


def test_differential_transformer_is_as_large_as_the_base():
  """But for 4 d of lambda, 2 d of the norm and d of the scale in each of 64 layers, d = 128."""
  base, differential = (
    facts.facts(getattr(configs, name)().on()).parameters
    for name in ('C4Standard2B', 'C4Standard2BDifferential')
  )
  assert differential - base == 64 * 7 * 128
