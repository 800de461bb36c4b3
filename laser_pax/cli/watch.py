"""A training run that a person can watch: one progress line, and a record of each step."""

import collections
import contextlib
import functools
import itertools
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TextIO

import jax
from jax.experimental import multihost_utils
from paxml import decode_programs, programs

from laser_pax.cli import consoles, on_demand, profiling
from laser_pax.experiment import evaluation, progress, training
from laser_pax.experiment.base import Experiment
from laser_pax.experiment.family import Metric

_WINDOW_SECONDS = 30.0
_TTY_INTERVAL_SECONDS = 0.2
_PLAIN_INTERVAL_SECONDS = 15.0
# A loss is a spike if it is above the median of so many losses before it, by so many times their
# median deviation from that.
_LOSSES, _SPIKE_DEVIATIONS = 100, 12
_SKIPS_SAID = 20  # Of the skipped steps so many get a line of their own.

# The metric of PAX's own experiments, which are no subclasses of `Experiment`.
_METRIC_OF_PAX = Metric(name='total_loss', label='loss')


def _duration(seconds: float) -> str:
  """Returns a duration as people write it: 1h02m, 3m05s or 12s."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}h{minutes:02}m'
  return f'{minutes}m{seconds:02}s' if minutes else f'{seconds}s'


class Watch:
  """Collects a run's events, shows them on `console` and appends them to DIR/progress.jsonl.

  The records are {"kind": "train", "step", "loss", "tokens_per_second", "skipped_steps"} for each
  step, and {"kind": "eval", "step", "split", "loss", "perplexity"}. Each has "started", when its
  process started in seconds of Unix time, and "seconds" since then.
  An experiment's UNIT names the speed: images_per_second, for example. Another METRIC replaces loss
  and perplexity. Seconds count from the start of this process's training. A resumed run appends. If
  a step has several records, the last one is valid.
  """

  def __init__(self, console: TextIO, job_log_dir: pathlib.Path, unit: str = 'tokens'):
    """Opens the record.

    Args:
      console: The output for the progress line. A terminal shows one line, which is rewritten. Any
        other output gets a line every 15 seconds.
      job_log_dir: The job's folder.
      unit: The unit that training counts.
    """
    self._console, self._unit = console, unit
    self._evaluated = progress.evaluated(job_log_dir)
    self._records = consoles.open_records(job_log_dir / progress.FILE)
    self._records_are_whole = True
    self._pending = collections.deque()
    self._window = collections.deque()
    self._shown_at = 0.0
    self._line_open = False
    self._started = time.time()
    self._num_train_steps = self.last_step = 0
    self.skipped_steps = self.spikes = 0
    self._losses = collections.deque(maxlen=_LOSSES)
    self.loss = math.nan

  def start(self, step: int, num_train_steps: int) -> None:
    """Says at which step training begins."""
    self._num_train_steps, self._started = num_train_steps, time.time()
    self.last_step = step
    how = f'resuming at step {step:,}' if step else 'starting'
    self.say(f'{how} of {num_train_steps:,}; the first step compiles')

  def lacks(self, step: int, split: str) -> bool:
    """Returns whether the run has records, and none of a split's evaluation at a step."""
    return self._evaluated is not None and (step, split) not in self._evaluated

  def step(self, step: int, loss: jax.Array, is_valid: jax.Array | bool, units: int) -> None:
    """Takes one step's result, without waiting until it is computed."""
    self._pending.append((step, loss, is_valid, units))
    self._finish_ready_steps()

  def evaluation(self, step: int, split: str, metric: Metric, value: float, seconds: float) -> None:
    """Takes the metric of one complete evaluation."""
    self.drain()
    derived = {label: derive(value) for label, derive in metric.derived.items()}
    shown = [f'{metric.label} {value:.4f}', *(f'{k} {v:,.2f}' for k, v in derived.items())]
    self.say(f'step {step:,}: {split} {", ".join(shown)} ({_duration(seconds)})')
    self._record(kind='eval', step=step, split=split, **{metric.label: value}, **derived)
    self._window.clear()

  def decoded(self, step: int, name: str, seconds: float) -> None:
    """Takes that an input was decoded, whose results PAX has written."""
    self.say(f'step {step:,}: {name} decoded, in decoder_out/{name} ({_duration(seconds)})')

  def drain(self) -> None:
    """Waits for the steps that are not computed yet."""
    while self._pending:
      self._pending[0][1].block_until_ready()
      self._finish_ready_steps()

  def close(self) -> None:
    """Finishes the line and the record."""
    self.drain()
    if self._line_open:
      self._console.write('\n')
    with contextlib.suppress(OSError):
      self._records.close()

  def say(self, text: str) -> None:
    """Prints a line of its own."""
    if _is_silent():
      return
    clear = '\r\x1b[K' if self._line_open else ''
    self._console.write(f'{clear}{text}\n')
    self._line_open = False

  def units_per_second(self) -> float:
    """Returns units a second over the last half minute of training, without evaluations."""
    if len(self._window) < 2:
      return math.nan
    seconds = self._window[-1][0] - self._window[0][0]
    return sum(units for _, units, _ in list(self._window)[1:]) / max(seconds, 1e-9)

  def _finish_ready_steps(self) -> None:
    """Takes the results of the next steps that are computed.

    Steps that are found finished together give one point in time: the first may have ended long
    ago, and the time between them says nothing.
    """
    count = sum(1 for _ in itertools.takewhile(lambda x: x[1].is_ready(), self._pending))
    if not count:
      return
    now = time.time()
    units = sum(pending[3] for pending in itertools.islice(self._pending, count))
    self._window.append((now, units, count))
    while now - self._window[0][0] > _WINDOW_SECONDS and len(self._window) > 2:
      self._window.popleft()
    for _ in range(count):
      self._finish_step(*self._pending.popleft()[:3])

  def _finish_step(self, step: int, loss, is_valid) -> None:
    self.last_step, self.loss = step, float(loss)
    if not is_valid:
      self.skipped_steps += 1
      if self.skipped_steps <= _SKIPS_SAID:
        self.say(f'step {step:,} was skipped: its gradients are not finite (loss {self.loss:.4f})')
    self._look_for_spike(step)
    rate = self.units_per_second()
    self._record(
      kind='train',
      step=step,
      loss=self.loss,
      **{f'{self._unit}_per_second': None if math.isnan(rate) else round(rate, 1)},
      skipped_steps=self.skipped_steps,
    )
    now = time.time()
    interval = _TTY_INTERVAL_SECONDS if self._console.isatty() else _PLAIN_INTERVAL_SECONDS
    if now - self._shown_at >= interval or step == self._num_train_steps:
      self._shown_at = now
      self._show(step, rate)

  def _look_for_spike(self, step: int) -> None:
    """Says when the loss is far above the losses before it [ours]."""
    if len(self._losses) == _LOSSES:
      middle = statistics.median(self._losses)
      deviation = statistics.median(abs(x - middle) for x in self._losses)
      if self.loss > middle + _SPIKE_DEVIATIONS * max(deviation, 1e-3 * abs(middle)):
        self.spikes += 1
        above = self.loss - middle
        self.say(
          f'step {step:,}: loss {self.loss:.4f} is {above:.4f} above the median of the last '
          f'{_LOSSES} steps; `python -m laser_pax replay JOB_LOG_DIR --step={step}` shows its batch'
        )
    if math.isfinite(self.loss):
      self._losses.append(self.loss)

  def _show(self, step: int, rate: float) -> None:
    if _is_silent():
      return
    line = f'step {step:,}/{self._num_train_steps:,}  loss {self.loss:.4f}'
    if not math.isnan(rate):
      steps = sum(count for _, _, count in list(self._window)[1:])
      seconds = (self._window[-1][0] - self._window[0][0]) / steps
      line += (
        f'  {rate:,.0f} {self._unit}/s  {_duration(seconds * (self._num_train_steps - step))} left'
      )
    line += f'  {self.skipped_steps} skipped'
    line += f'  {self.spikes} spikes' if self.spikes else ''
    if self._console.isatty():
      self._console.write(f'\r\x1b[K{line}')
      self._line_open = True
    else:
      self._console.write(f'{line}\n')
    self._console.flush()

  def _record(self, **fields) -> None:
    if _is_silent():
      return
    # JSON has no NaN and no infinity: such a loss is written as null.
    fields = {
      k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()
    }
    seconds = round(time.time() - self._started, 3)
    try:
      self._records.write(
        json.dumps({**fields, 'seconds': seconds, 'started': round(self._started)}) + '\n'
      )
    except OSError as e:  # The run goes on: a checkpoint may still find room.
      if self._records_are_whole:
        self._records_are_whole = False
        self.say(f'{self._records.name} cannot be written ({e.strerror}); some records are lost')


class WatchedTrainProgram(training.TrainProgram):
  """Training's program. It also reports each step to a Watch, and repeats lost evaluations."""

  def __init__(
    self,
    watch: Watch,
    tracer: profiling.Tracer,
    demand: on_demand.OnDemand,
    evaluations: Sequence[programs.BaseEvalProgram],
    micro_batches: int = 1,
    units_per_step: int = 1,
    **options,
  ):
    """Takes the watch, the tracer of steps, what answers SIGTERM, and the evaluations.

    Parts and units of a step follow, and options of the base.
    """
    super().__init__(micro_batches, **options)
    self._watch, self._units_per_step, self._tracer = watch, units_per_step, tracer
    self._demand, self._evaluations = demand, evaluations

  def setup(self, task, *args, **kwargs) -> None:
    """Sets the program up and reports the step at which training begins."""
    super().setup(task, *args, **kwargs)
    self._watch.start(self._initial_step, task.train.num_train_steps)

  def should_run(self, state, step):
    """As the base's. First it repeats the evaluations that SIGTERM cut off at this step."""
    is_first = step and step == self._initial_step and not self._demand.has_trained
    if is_first and self._demand.ends_training():
      train = self._task.train
      at_end = step >= train.num_train_steps
      if train.eval_interval_steps and (at_end or step % train.eval_interval_steps == 0):
        for program in self._evaluations:
          if _says_the_first(self._watch.lacks(step, program.eval_input.name)):
            program.run(self._evaluated(state), step)
    return super().should_run(state, step)

  def _evaluated(self, state):
    """Returns the state that evaluations get."""
    return programs.get_eval_train_state(self._task, state, self._task.train.eval_use_ema_states)

  def _try_evaluations(self, state) -> None:
    if self._task.train.eval_interval_steps and self._evaluations:
      self._watch.say('trying the first batch of each evaluation')
      for program in self._evaluations:
        self._demand.unless_asked(lambda p=program: evaluation.try_out(p, self._evaluated(state)))

  def run(self, state, step):
    """Runs one step with its input. Traces it if --profile names it."""
    if not self._demand.has_trained:
      self._try_evaluations(state)
    self._tracer.before(step)
    output = super().run(state, step)
    self._demand.has_trained = True
    self._tracer.after(step, output.loss)
    return output

  def train_step(self, step, state, prng_key, inputs, static_args):
    """Runs one step and hands its loss to the watch."""
    new_step, new_state, outputs = super().train_step(step, state, prng_key, inputs, static_args)
    self._watch.step(new_step, outputs.loss, training.is_valid(outputs), self._units_per_step)
    return new_step, new_state, outputs

  def shutdown(self) -> None:
    """Waits for the last steps."""
    self._watch.drain()
    self._tracer.close()
    super().shutdown()


def _report_to(
  watch: Watch, demand: on_demand.OnDemand, program: programs.BaseEvalProgram, metric: Metric
) -> programs.BaseEvalProgram:
  """Lets an evaluation program report its metric to the watch, and returns the program."""
  evaluate = program.run
  evaluation.before_each_batch(program, demand.before_batch)

  def run(state, step):
    watch.drain()
    start = time.time()
    output = demand.unless_asked(lambda: evaluate(state, step))
    if output is None:
      watch.say(f'step {step:,}: {program.eval_input.name} is evaluated when the run goes on')
      return programs.EvalProgramOutput(state)
    metrics = output.eval_metrics or {}
    if metric.name in metrics:
      value, seconds = float(metrics[metric.name]), time.time() - start
      watch.evaluation(step, program.eval_input.name, metric, value, seconds)
    return output

  program.run = run
  return program


def _tell_of_decoding(
  watch: Watch, program: decode_programs.SingleTaskDecodeProgram
) -> decode_programs.SingleTaskDecodeProgram:
  """Lets a decoding program tell the watch when it has ended, and returns the program."""
  decode = program.run

  def run(state, step):
    start = time.time()
    output = decode(state, step)
    watch.decoded(step, program.decode_input.name, time.time() - start)
    return output

  program.run = run
  return program


def _says_the_first(answer: bool) -> bool:
  """Returns the answer of the first of several processes."""
  return bool(multihost_utils.broadcast_one_to_all(answer))


def _is_silent() -> bool:
  """Whether this process prints and records nothing. Only the first of several processes does."""
  return jax.process_index() > 0


def unit_of(experiment_cls: type) -> str:
  """Returns the unit that training counts. For an experiment of PAX's own, this is steps."""
  return experiment_cls.UNIT if issubclass(experiment_cls, Experiment) else 'steps'


def watched(
  experiment_cls: type,
  watch: Watch,
  tracer: profiling.Tracer | None = None,
  demand: on_demand.OnDemand | None = None,
  program: Callable[..., training.TrainProgram] | None = None,
) -> type:
  """Returns a subclass of the same name, whose programs report to `watch`.

  Args:
    experiment_cls: The experiment, of this package or of PAX.
    watch: The watch that gets the reports.
    tracer: The tracer of some of the steps.
    demand: What answers SIGTERM.
    program: Makes the train program; the default is `WatchedTrainProgram`.
  """
  tracer = tracer or profiling.Tracer(range(0), '')
  demand = demand or on_demand.OnDemand()
  evaluations = []

  class Watched(experiment_cls):
    def train_programs(self):
      made = functools.partial(program or WatchedTrainProgram, watch, tracer, demand, evaluations)
      if not isinstance(self, Experiment):
        return [made()]
      limit = self.MAX_SKIPPED_IN_A_ROW
      return [made(self.micro_batches(), self.units_per_step(), max_skipped_in_a_row=limit)]

    def eval_programs(self):
      metric = self.METRIC if isinstance(self, Experiment) else _METRIC_OF_PAX
      evaluations[:] = [
        _report_to(watch, demand, program, metric) for program in super().eval_programs()
      ]
      return evaluations

    def decode_programs(self):
      return [_tell_of_decoding(watch, program) for program in super().decode_programs()]

  take_name(Watched, experiment_cls)
  return Watched


def take_name(cls: type, original: type) -> None:
  """Gives a subclass the name and docstring of the class that it replaces."""
  cls.__name__, cls.__qualname__ = original.__name__, original.__qualname__
  cls.__module__, cls.__doc__ = original.__module__, original.__doc__
