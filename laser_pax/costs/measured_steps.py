"""Train steps of two experiments, measured in turns on this machine's devices.

A step is PAX's own, compiled as `train` compiles it. Both get one batch, and train one state where
their variables are the same. So both meet the same values, and memory holds one state alone.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from praxis import py_utils

from laser_pax.costs import compiler, rounds, timing
from laser_pax.errors import UserError
from laser_pax.experiment import checks, training
from laser_pax.experiment.base import Experiment
from laser_pax.layers import attention_paths

# The steps of a turn take about so long together.
TURN_SECONDS = 0.5
_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
  """The measurements of one experiment's step.

  Attributes:
    seconds: Seconds of a step, in each round.
    steps: Number of steps of a round.
    peak_bytes: The most that a device has held, as it tells; None where it does not tell it.
    last_loss: Loss of the last step.
  """

  seconds: list[float]
  steps: int
  peak_bytes: int | None
  last_loss: float

  def units_per_second(self, experiment: Experiment) -> float:
    """Returns units (tokens, images) a second, of the median round."""
    return experiment.units_per_step() / statistics.median(self.seconds)

  def mfu(self, experiment: Experiment, parameters: int) -> float | None:
    """Returns the share of the devices' peak rate that the model's own products reach.

    None where the peak is not known, as on CPUs. Products that are computed again do not count.
    """
    peak, count = peak_rate(experiment), jax.device_count()
    flops = experiment.model_flops(parameters)
    model = flops.weights + flops.attention
    return None if peak is None else model / (statistics.median(self.seconds) * count * peak)


def peak_rate(experiment: Experiment) -> float | None:
  """Returns a device's peak in bfloat16, in operations a second; None if it is not known."""
  chip = experiment.pod().chip
  if chip.peak_bf16_tflops:
    return 1e12 * chip.peak_bf16_tflops
  return timing.gpu_peak(jax.devices()[0].device_kind)


def check(experiment: Experiment) -> None:
  """Checks an experiment as a training does, but for its data: a measurement needs none.

  Raises:
    UserError: A value does not fit, or the mesh needs other devices; the message has the fix.
  """
  experiment.check_overrides()
  experiment.check_numbers()
  experiment.check()
  experiment.check_pod()
  checks.check_batch(experiment.GLOBAL_BATCH_SIZE, jax.device_count(), num_processes=1)


def common_batch(experiment: Experiment, against: Experiment) -> py_utils.NestedMap:
  """Returns a random batch that both experiments train on.

  Raises:
    UserError: They take different batches; the message says in what they differ.
  """
  pair = (experiment, against)
  names = ' and '.join(type(e).__name__ for e in pair)
  for what in ('UNIT', 'GLOBAL_BATCH_SIZE'):
    first, second = (getattr(e, what) for e in pair)
    if first != second:
      raise UserError(
        f'{names} cannot share a batch: {what} is {first} in one and {second} in the other; name '
        'two of one family and batch, such as --exp=C4Laser2B --against=C4Standard2B'
      )
  specs = [e.input_specs(e.GLOBAL_BATCH_SIZE) for e in pair]
  if specs[0].keys() != specs[1].keys():
    fields = ' and '.join(', '.join(sorted(x.keys() - y.keys())) for x, y in (specs, specs[::-1]))
    raise UserError(
      f'{names} are of different families: {fields} are in the batch of one alone; name two of one '
      'family, such as --exp=C4Laser2B --against=C4Standard2B'
    )
  for name, spec in specs[0].items():
    if spec != specs[1][name]:
      raise UserError(
        f'{names} cannot share a batch: {name} is {list(spec.shape)} in one and '
        f'{list(specs[1][name].shape)} in the other; give both the same sizes by --fdl.NAME=VALUE'
      )
  first, second = (e.random_batch(np.random.default_rng(_SEED), e.GLOBAL_BATCH_SIZE) for e in pair)
  if different := [name for name in first if not np.array_equal(first[name], second[name])]:
    raise UserError(
      f'{names} cannot share a batch: their {different[0]} are of different ranges; give both the '
      'same sizes, such as --fdl.VOCAB_SIZE, by --fdl.NAME=VALUE'
    )
  return first


class Step:
  """One experiment's train step, compiled, and its batch, on this machine's devices.

  Attributes:
    experiment: The experiment.
    parameters: Number of its trainable parameters.
    program_bytes: Peak of a device by the compiler.
    compile_seconds: Time of tracing and compiling.
    path: The attention that it takes; None if no layer tells it.
    state_specs: Shape, dtype and sharding of each array of the state that it trains.
  """

  def __init__(self, experiment: Experiment, batch: py_utils.NestedMap):
    """Compiles the step, and puts its batch on the devices."""
    paths, step_fn = [], training.train_step(experiment.micro_batches())
    batch_size, devices = experiment.GLOBAL_BATCH_SIZE, jax.devices()
    with attention_paths.telling(paths.append):
      traced = compiler.trace(experiment, devices, step_fn, batch_size, is_eval=False)
    start = time.perf_counter()
    with traced.mesh:
      self._compiled = traced.jitted.lower().compile()
    self.compile_seconds = traced.seconds + time.perf_counter() - start
    self._partitioner = traced.partitioner
    self.state_specs = traced.arguments[0]
    self._key, self._batch = (
      jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), values, like)
      for values, like in zip(
        (np.asarray(jax.random.PRNGKey(_SEED)), batch), traced.arguments[1:], strict=True
      )
    )
    self.experiment, self.parameters = experiment, traced.parameters
    self.program_bytes = compiler.peak_bytes(self._compiled)
    self.path = paths[0] if paths else None

  def initial_state(self) -> Any:
    """Returns PAX's state at the start of a training, on the devices."""
    key = jax.random.PRNGKey(self.experiment.INIT_SEED)
    _, state, _ = self._partitioner.initialize_prng_key_and_train_state(key, None, None)
    return state

  def __call__(self, state: Any) -> tuple[Any, jax.Array]:
    """Trains one step on the batch; returns the new state, and the loss. The old one is gone."""
    state, output = self._compiled(state, self._key, self._batch)
    return state, output.loss


class _Trainer:
  """A step that trains its state, which others may share."""

  def __init__(self, step: Step, states: list[Any]):
    """Takes a step, and the list that has its state alone."""
    self._step, self._states, self.loss = step, states, None

  def __call__(self) -> Any:
    """Trains one step, and returns the new state."""
    self._states[0], self.loss = self._step(self._states[0])
    return self._states[0]


def measure(steps: Sequence[Step], num_rounds: int) -> list[Measured]:
  """Trains two experiments in turns, and returns the measurements of each.

  Compiling, and two steps of each before the first round, are not timed. In each round both train
  the same number of steps.

  Args:
    steps: The steps of the two.
    num_rounds: Number of rounds.
  """
  states = [[steps[0].initial_state()]]
  is_shared = steps[0].state_specs == steps[1].state_specs
  states.append(states[0] if is_shared else [steps[1].initial_state()])
  trainers = [_Trainer(step, held) for step, held in zip(steps, states, strict=True)]
  peaks, calls = {}, {}
  # A device tells the most that it has held so far. So the smaller program comes first.
  for i in sorted(range(len(steps)), key=lambda i: steps[i].program_bytes):
    calls[i] = timing.calls_of_a_turn(trainers[i], TURN_SECONDS)
    peaks[i] = timing.peak_bytes(jax.devices())
  number = max(calls.values())
  turns = {
    i: functools.partial(timing.seconds, trainer, number) for i, trainer in enumerate(trainers)
  }
  taken = rounds.in_turns(turns, num_rounds)
  return [
    Measured(seconds=taken[i], steps=number, peak_bytes=peaks[i], last_loss=float(trainers[i].loss))
    for i in range(len(steps))
  ]
