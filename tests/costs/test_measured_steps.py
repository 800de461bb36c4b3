"""Who trains which state, and in which order."""

import jax
import jax.numpy as jnp
import pytest

from laser_pax.costs import compiler, measured_steps, timing
from laser_pax.experiment import training
from tests.support import steps


class StandInStep:
  """A step of a few microseconds, which counts its state up."""

  def __init__(self, name, program_bytes, state_specs, log):
    self.name, self.program_bytes, self.state_specs = name, program_bytes, state_specs
    self._log = log

  def initial_state(self):
    self._log.append(f'{self.name} begins')
    return jnp.zeros((), jnp.int32)

  def __call__(self, state):
    self._log.append(self.name)
    return state + 1, state + 1


def test_twins_train_one_state_in_turns_of_equal_length():
  log = []
  pair = [StandInStep(name, size, 'same', log) for name, size in (('laser', 2), ('standard', 1))]
  measured = measured_steps.measure(pair, 2)
  number = measured[0].steps
  assert number == measured[1].steps == timing.MAX_CALLS
  assert [x for x in log if 'begins' in x] == ['laser begins']
  assert log[1:5] == 2 * ['standard'] + 2 * ['laser'], 'the smaller program runs first'
  assert log[5:] == number * ['laser'] + 2 * number * ['standard'] + number * ['laser']
  assert measured[0].last_loss == len(log) - 1 == 4 + 4 * number
  assert all(len(x.seconds) == 2 and min(x.seconds) > 0 for x in measured)
  assert measured[0].peak_bytes is None  # A CPU tells nothing.


def test_states_of_other_variables_are_trained_apart():
  log = []
  pair = [StandInStep(name, 1, name, log) for name in ('laser', 'standard')]
  measured = measured_steps.measure(pair, 1)
  assert [x for x in log if 'begins' in x] == ['laser begins', 'standard begins']
  assert [x.last_loss for x in measured] == 2 * [2 + measured[0].steps]


@pytest.mark.parametrize(('changes', 'is_shared'), [({}, True), ({'BETA': 'learned'}, False)])
def test_a_pair_shares_its_state_unless_laser_has_a_variable_of_its_own(changes, is_shared):
  def state_specs(name, **attributes):
    experiment = steps.experiment(name, NUM_LAYERS=1, **attributes)
    step_fn, rows = training.train_step(1), experiment.GLOBAL_BATCH_SIZE
    return compiler.trace(experiment, jax.devices(), step_fn, rows, is_eval=False).arguments[0]

  assert (state_specs('C4LaserTiny', **changes) == state_specs('C4StandardTiny')) == is_shared
