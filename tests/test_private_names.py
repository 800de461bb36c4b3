"""The private names that pax_fixes.py uses still mean the same in their libraries."""

import functools
import inspect

import pytest
from fiddle._src.experimental import auto_config
from jax._src import distributed

from laser_pax import pax_fixes

_ONE = lambda: dict(a=[1, 2], b='x')  # noqa: E731
_TWO = [lambda: 1, lambda: 2]


def test_the_source_equals_that_of_fiddles_own_reader():
  pax_fixes.read_lambdas_fast()
  reader = auto_config._getsource_for_lambda
  evaluate = lambda source: eval(source, globals())()  # noqa: E731
  assert evaluate(reader(_ONE)) == evaluate(inspect.unwrap(reader)(_ONE)) == _ONE()


def test_several_lambdas_on_a_line_are_refused_as_before():
  with pytest.raises(ValueError, match='multiple lambdas'):
    auto_config._getsource_for_lambda(_TWO[0])


def test_a_second_call_changes_nothing():
  pax_fixes.read_lambdas_fast()
  reader = auto_config._getsource_for_lambda
  pax_fixes.read_lambdas_fast()
  assert auto_config._getsource_for_lambda is reader


def test_paxmls_own_lambda_defaults_are_built():
  from paxml import learners
  from praxis import pax_fiddle

  assert pax_fiddle.Config(learners.Learner).bprop_variable_exclusion == []


@pytest.mark.parametrize('rows', [1, 50])
def test_a_position_is_one_that_tensorflow_saves_and_restores(rows):
  import tensorflow as tf

  def iterator():
    dataset = tf.data.Dataset.range(200).map(lambda x: tf.fill([3], x)).shuffle(rows, seed=1)
    return dataset.as_numpy_iterator()

  first, ours, theirs = iterator(), iterator(), iterator()
  for _ in range(7):
    next(first)
  theirs.restore(pax_fixes.save_iterator(first))
  pax_fixes.restore_iterator(ours, first.save().numpy())
  following = [next(first).tolist() for _ in range(90)]
  for restored in (ours, theirs):
    assert [next(restored).tolist() for _ in range(90)] == following


def test_without_autograph_functions_are_taken_as_they_are():
  import tensorflow as tf

  def absolute(x):
    if x < 0:
      return -x
    return x

  numbers = tf.data.Dataset.range(-2, 3)
  assert [int(x) for x in numbers.map(absolute)] == [2, 1, 0, 1, 2]
  with pax_fixes.without_autograph(), pytest.raises(TypeError, match='bool'):
    numbers.map(absolute)
  assert [int(x) for x in numbers.map(absolute)] == [2, 1, 0, 1, 2]


def test_heartbeats_reach_jax(monkeypatch):
  signature = inspect.signature(distributed.global_state.initialize)
  calls = []
  initialize = functools.wraps(distributed.global_state.initialize)(
    lambda **given: calls.append(given)
  )
  monkeypatch.setattr(distributed.global_state, 'initialize', initialize)
  pax_fixes.set_heartbeats(5, 6)
  distributed.global_state.initialize(num_processes=1)
  (given,) = calls
  assert set(given) <= set(signature.parameters)
  if 'heartbeat_timeout_seconds' in signature.parameters:  # After jax 0.5.3.
    assert given == {'heartbeat_timeout_seconds': 30, 'num_processes': 1}
  else:
    assert {v for k, v in given.items() if 'interval' in k} == {5}
    assert {v for k, v in given.items() if 'missing' in k} == {6}


def test_paxml_exits_once_and_with_the_given_code(monkeypatch):
  from paxml import executors

  assert inspect.getsource(executors).count(' exit(') == 1
  monkeypatch.setattr(executors, 'exit', exit, raising=False)
  pax_fixes.exit_after_saving_on_demand_with(75)
  with pytest.raises(SystemExit) as e:
    executors.exit(0)
  assert e.value.code == 75


def test_a_machine_without_tpus_has_no_chips():
  assert pax_fixes.count_tpu_chips() == 0


def test_the_gradient_function_is_that_of_paxs_step():
  from paxml import trainer_lib

  source = inspect.getsource(trainer_lib.train_step_single_learner)
  assert '_get_default_grad_fn(' in source
  assert callable(pax_fixes.default_grad_fn(None, None))


def test_a_step_gives_its_jitted_function():
  import jax

  jitted = jax.jit(lambda x: x)

  def step(x):
    return jitted(x)

  assert pax_fixes.jitted_step(step) is jitted
