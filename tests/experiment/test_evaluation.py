"""An evaluation's first batch is tried out before the training, and nothing else changes."""

import types

import jax.numpy as jnp
import pytest

from laser_pax.experiment import evaluation


class Batches:
  """An input of two batches. Like PAX's, it gives a batch that was peeked at once more."""

  def __init__(self, batches):
    self._batches, self._peek = iter(batches), None

  def peek_padded(self):
    self._peek = next(self._batches, None)
    return self._peek

  def get_next_padded(self):
    batch, self._peek = self._peek, None
    return batch or next(self._batches)


class Program:
  """An evaluation as PAX's: it takes text out of its batches."""

  def __init__(self, batches):
    self.eval_input, self.steps, self.ends = Batches(batches), [], []

  def run(self, state, step):
    for _ in range(2):
      batch = self.eval_input.get_next_padded()
      batch.pop('text')
      self.eval_step(state, batch)
    self.ends.append(step)

  def eval_step(self, state, batch):
    self.steps.append((state, batch['x']))
    return types.SimpleNamespace(loss=jnp.zeros(()))


def batches():
  return [{'x': 1, 'text': 'a'}, {'x': 2, 'text': 'b'}]


def test_it_runs_one_batch_which_still_comes_first():
  program, heard = Program(batches()), []
  run = program.run
  program.run = lambda *args: heard.append(args) or run(*args)
  evaluation.try_out(program, 'initial')
  assert program.steps == [('initial', 1)] and not program.ends and not heard
  program.run('trained', 7)
  assert program.steps[1:] == [('trained', 1), ('trained', 2)]
  assert program.ends == [7] and heard == [('trained', 7)]


def test_an_empty_input_is_left_alone():
  program = Program([])
  evaluation.try_out(program, 'initial')
  assert not program.steps and not program.ends


def test_a_fault_shows_and_the_program_is_as_before():
  program = Program([{'x': 1}, {'x': 2}])
  step, get_next = program.eval_step, program.eval_input.get_next_padded
  with pytest.raises(KeyError, match='text'):
    evaluation.try_out(program, 'initial')
  assert (program.eval_step, program.eval_input.get_next_padded) == (step, get_next)


def test_a_function_is_called_before_each_batch():
  program, seen = Program(batches()), []
  evaluation.before_each_batch(program, lambda: seen.append(len(program.steps)))
  program.run('state', 1)
  assert seen == [0, 1]
