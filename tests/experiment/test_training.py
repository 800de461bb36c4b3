"""A step in micro-batches is the step of the whole batch."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paxml import programs, sgf

from laser_pax.configs import C4LaserTiny
from laser_pax.errors import UserError
from laser_pax.experiment import checks, training
from tests.support import steps


@pytest.fixture(scope='module')
def trained(commands):
  """The output of tests/support/micro_batches.py."""
  return steps.in_own_process(commands, 4, 'micro_batches')


@pytest.mark.slow
@pytest.mark.parametrize('padded', ['False', 'True'])
@pytest.mark.parametrize(
  ('name', 'devices'), [('C4StandardTiny', 1), ('C4LaserTiny', 1), ('C4LaserTiny', 4)]
)
def test_training_in_parts_is_training_on_the_whole_batch(trained, name, devices, padded):
  whole, parts = trained[f'{name} 1 1'][padded], trained[f'{name} {devices} 4'][padded]
  assert whole['loss'][-1] < whole['loss'][0] - 0.5
  np.testing.assert_allclose(parts['loss'], whole['loss'], rtol=0, atol=1e-5)
  np.testing.assert_allclose(parts['gradient'], whole['gradient'], rtol=1e-4)
  # The scores of the rows, in the order of the batch.
  np.testing.assert_allclose(parts['scores'], whole['scores'], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('padded', ['False', 'True'])
def test_metrics_are_those_of_the_whole_batch(trained, padded):
  whole, parts = (trained[f'C4LaserTiny {k}'][padded]['scalars'] for k in ('1 1', '4 4'))
  assert set(parts) == set(whole)
  for name in set(whole) - {'aux_loss'}:
    np.testing.assert_allclose(parts[name], whole[name], rtol=0, atol=1e-5, err_msg=name)
  # The weight of this mean is the number of parts.
  assert {tuple(x) for x in parts['aux_loss']} == {(0.0, 4.0)}


@pytest.mark.slow
def test_the_devices_keep_their_rows_and_need_less_memory(trained):
  whole, parts = trained['C4LaserTiny 4 1'], trained['C4LaserTiny 4 4']
  assert parts['temporaries'] < 0.7 * whole['temporaries']
  assert not any('all-to-all' in c or 'permute' in c for c in parts['collectives'])
  # PAX gathers its outputs, including the labels. Parts must not add gathers of the input rows.
  gathered = [r['collectives'].get('all-gather s32', 0) for r in (whole, parts)]
  assert gathered[1] == gathered[0]


def _run(grad_fn, rows, micro_batches=4, weights=None):
  """Accumulates over rows [B] of numbers, with weights [B]."""
  inputs = {'x': rows, 'w': jnp.ones_like(rows) if weights is None else weights}
  accumulated_grad_fn = training.accumulate(grad_fn, micro_batches)
  return accumulated_grad_fn(
    loss_fn=None, learner=None, mdl_vars=jnp.ones(()), inputs=inputs, prng_key=jax.random.PRNGKey(0)
  )


def _grad_fn(dtype=jnp.float32):
  """Returns a function whose loss and gradient are both the weighted mean of the rows."""

  def grad_fn(loss_fn, learner, mdl_vars, inputs, prng_key):
    weight = inputs['w'].sum()
    loss = (inputs['x'] * inputs['w']).sum() / jnp.maximum(weight, 1)
    aux = (
      loss,
      {'loss': (loss, weight), 'num_predictions': (weight, jnp.ones(()))},
      {'non_trainable': {'moving': loss, 'count': jnp.int32(3)}},
      {'noise_scalar': jax.random.uniform(prng_key)},
      {'rows': inputs['x']},
      {},
    )
    return (loss, sgf.GradAuxInfo(loss_weight=weight, aux_info=aux)), loss.astype(dtype)

  return grad_fn


def test_parts_weigh_as_their_tokens_do_and_may_have_none():
  rows = jnp.arange(8.0)
  weights = jnp.array([0.0, 1, 2, 3, 0, 5, 6, 7])
  (loss, info), gradient = _run(_grad_fn(), rows, weights=weights)
  expected = (rows * weights).sum() / weights.sum()
  mean, scalars, *_ = info.aux_info
  np.testing.assert_allclose([loss, gradient, mean, scalars['loss'][0]], expected, rtol=1e-6)
  assert info.loss_weight == scalars['loss'][1] == scalars['num_predictions'][0] == 24
  (loss, _), gradient = _run(_grad_fn(), rows, weights=jnp.zeros(8))
  assert loss == gradient == 0


def test_second_results_of_the_model_are_merged():
  (_, info), _ = _run(_grad_fn(), jnp.arange(8.0))
  _, _, updated, summaries, per_example, _ = info.aux_info
  assert updated['non_trainable'] == {'moving': 3.5, 'count': 3}
  np.testing.assert_array_equal(per_example['rows'], jnp.arange(8.0))
  keys = jax.random.split(jax.random.PRNGKey(0), 4)
  draws = [float(jax.random.uniform(key)) for key in keys]
  assert len(set(draws)) == 4
  np.testing.assert_allclose(summaries['noise_scalar'], np.mean(draws), rtol=1e-6)


def test_gradients_are_summed_in_float32():
  # In bfloat16 the sum would stay at 256, because 257 has no representation there.
  rows = jnp.concatenate([jnp.full(1, 256.0), jnp.ones(511)])
  jaxpr = str(jax.make_jaxpr(lambda x: _run(_grad_fn(jnp.bfloat16), x, 512))(rows))
  assert 'scan' in jaxpr
  _, gradient = _run(_grad_fn(jnp.bfloat16), rows, 512)
  assert gradient.dtype == jnp.bfloat16
  assert gradient == jnp.bfloat16((256 + 511) / 512)


@pytest.mark.parametrize(
  ('parts', 'words'),
  [
    (-1, 'MICRO_BATCHES must be at least 1; got -1'),
    (3, r'MICRO_BATCHES = 3, times .*\[1, 2, 4, 8\]'),
    (16, r'MICRO_BATCHES = 16, times .*\[1, 2, 4, 8\]'),
  ],
)
def test_parts_that_the_rows_do_not_allow_are_refused(parts, words):
  experiment = C4LaserTiny()
  experiment.MICRO_BATCHES = parts
  with pytest.raises(UserError, match=words):
    experiment.check()


def test_devices_must_divide_each_part():
  checks.check_micro_batches(4, 64, [2, 8, 3])
  with pytest.raises(UserError, match=r'MICRO_BATCHES = 8, times the 16 device.*\[1, 2, 4\]'):
    checks.check_micro_batches(8, 64, [2, 8, 3])


def test_one_part_is_paxs_own_step():
  from paxml import trainer_lib

  assert training.train_step(1) is trainer_lib.train_step_single_learner


def test_the_programs_of_an_experiment_compute_its_parts():
  from laser_pax.cli import watch

  experiment = C4LaserTiny()
  experiment.MICRO_BATCHES = 4
  watched = watch.watched(C4LaserTiny, types.SimpleNamespace())()
  watched.MICRO_BATCHES = 4
  for made in (experiment.train_programs(), watched.train_programs()):
    assert [p._micro_batches for p in made] == [4]


def test_summaries_count_the_steps_that_were_skipped(monkeypatch):
  valid = iter([1.0, 0.0, [1.0], 0.0])

  def step(self, step, state, *_):
    summaries = {'learning/is_valid_step_aggregate_scalar': next(valid)}
    return step + 1, state, types.SimpleNamespace(loss=1.0, summary_tensors=summaries)

  monkeypatch.setattr(programs.SingleTaskTrainProgram, 'train_step', step)
  program = training.TrainProgram()
  outputs = [program.train_step(i, None, None, None, None)[2] for i in range(4)]
  counts = [
    [float(x) for name, x in o.summary_tensors.items() if 'skipped_steps' in name] for o in outputs
  ]
  assert counts == [[0.0], [1.0], [1.0], [2.0]]


@pytest.mark.parametrize(
  ('valid', 'ends_at'),
  [('110111', None), ('1000', 4), ('100100011', 7), ('10' * 9, None)],
)
def test_so_many_skipped_steps_in_a_row_end_a_training(valid, ends_at):
  skipped, reached = training.SkippedSteps(3), None
  try:
    for step, flag in enumerate(valid + '1' * training._READ_LATER, start=1):
      skipped.add(step, float(flag))
  except UserError as e:
    reached = str(e)
  if ends_at is None:
    assert reached is None
  else:
    assert f'steps {ends_at - 2} to {ends_at} were skipped' in reached


def test_without_a_number_no_training_ends():
  skipped = training.SkippedSteps(None)
  for step in range(1000):
    skipped.add(step, 0.0)


def test_gradients_are_measured_as_computed_directly():
  weights = {'a': {'w': jnp.array([3.0, 4.0])}, 'b': jnp.array([[2.0]])}
  gradients = {'a': {'w': jnp.array([jnp.nan, 2.0])}, 'b': jnp.array([[-7.0]])}
  found = training.measured(weights, gradients)
  assert {name: [float(x) for x in values.values()] for name, values in found.items()} == {
    'a/w': [5.0, 2.0, 1.0, 2.0],
    'b': [2.0, 7.0, 0.0, 1.0],
  }
