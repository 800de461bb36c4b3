"""PAX's evaluation: its first batch tried out, and families that are judged by what they decode."""

import collections
import contextlib
import dataclasses
import json
import statistics
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache
from paxml import decode_programs, programs, summary_utils

# The metric in which a task's own metrics, and then the tasks, are brought together.
SCORE = 'score'
# PAX leaves a step out whose results an earlier process has written. It writes none of this one.
_NO_STEP = -1


@contextlib.contextmanager
def compiled_anew() -> Iterator[None]:
  """Keeps jax from reading and writing its folder of compiled programs meanwhile, if on a CPU.

  A decoding loop of PAX that jax 0.5.3 reads back from there ends before its first token, without
  an error.
  """
  is_kept = jax.config.jax_enable_compilation_cache and jax.default_backend() == 'cpu'
  if is_kept:
    jax.config.update('jax_enable_compilation_cache', False)
    compilation_cache.reset_cache()  # jax asks for the setting once, and then after a reset.
  try:
    yield
  finally:
    if is_kept:
      jax.config.update('jax_enable_compilation_cache', True)
      compilation_cache.reset_cache()


class _DecodingProgram(decode_programs.SingleTaskDecodeProgram):
  """PAX's decoding, with programs that are compiled anew."""

  def run(self, state, step):
    """Decodes."""
    with compiled_anew():
      return super().run(state, step)


class DecodingEvalProgram(programs.SingleTaskEvalProgram):
  """An evaluation that also decodes its split. Its metrics are those of both.

  PAX decodes in a training only with --decode_during_train, and an experiment has no say in how.

  Attributes:
    decoding: PAX's program that decodes.
  """

  def __init__(self, input_p, decode_input_p=None):
    """Takes the split's input, and the input to decode; None stands for the same one."""
    super().__init__(input_p)
    self.decoding = _DecodingProgram(decode_input_p or input_p.clone())

  def setup(self, task, partitioner, job_log_dir, eval_prng_seed, *args, **kwargs) -> None:
    """Sets both programs up."""
    super().setup(task, partitioner, job_log_dir, eval_prng_seed, *args, **kwargs)
    self.decoding.setup(task, partitioner, job_log_dir, eval_prng_seed, output_pickle=False)

  def run(self, state, step):
    """Evaluates, and then decodes."""
    output = super().run(state, step)
    decoded = self.decoding.run(state, step)
    metrics = {**(decoded.processed_decode_metrics or {}), **(decoded.seqio_metrics or {})}
    return dataclasses.replace(output, eval_metrics={**(output.eval_metrics or {}), **metrics})

  def shutdown(self) -> None:
    """Closes both programs."""
    self.decoding.shutdown()
    super().shutdown()


class TaskEvalProgram(DecodingEvalProgram):
  """The evaluation of a task of seqio. Its score is the mean of the task's metrics.

  Only the first of several processes knows the score.

  Attributes:
    scores: The score of each evaluation, by its step.
  """

  def __init__(self, input_p, decode_input_p):
    """Takes the input with targets, to score them, and the one without, to decode them."""
    super().__init__(input_p, decode_input_p)
    self.scores: dict[int, float] = {}

  def run(self, state, step):
    """Evaluates and decodes. A step that an earlier process had decoded keeps its score."""
    output = super().run(state, step)
    metrics, score = self._metrics(int(step)), self.score(int(step))
    if score is not None:
      metrics = {**metrics, SCORE: score}
    return dataclasses.replace(output, eval_metrics={**output.eval_metrics, **metrics})

  def score(self, step: int) -> float | None:
    """Returns the score of a step that this or an earlier process has evaluated; else None."""
    if step not in self.scores and (metrics := self._metrics(step)):
      self.scores[step] = statistics.fmean(metrics.values())
    return self.scores.get(step)

  def _metrics(self, step: int) -> Mapping[str, float]:
    """Returns what PAX wrote of the task's metrics at a step."""
    if jax.process_index():
      return {}
    folder = self._job_log_dir / 'decoder_out' / self._name
    lines = [
      line for file in folder.glob('*-metrics.jsonl') for line in file.read_text().split('\n')
    ]
    written = [line for line in map(json.loads, filter(None, lines)) if line['step'] == step]
    return {name: value for name, value in written[-1].items() if name != 'step'} if written else {}


class MeanProgram(programs.SingleTaskEvalProgram):
  """No evaluation of its own, but the mean of the scores of others, which run before it.

  An earlier process may have run some of them.
  """

  def __init__(self, tasks: Sequence[TaskEvalProgram], name: str):
    """Takes the other programs, and a name that is shown like a split's."""
    super().__init__(None)
    self._tasks = tasks
    self._eval_input_pipeline = types.SimpleNamespace(
      name=name, hparams=types.SimpleNamespace(name=name)
    )

  def setup(
    self, task, partitioner, job_log_dir, eval_prng_seed, enable_summary_writer=True
  ) -> None:
    """Opens the summary."""
    folder = programs.get_summary_base_dir(job_log_dir) / f'eval_test_{self.eval_input.name}'
    self._eval_summary_writer = self._exitstack.enter_context(
      summary_utils.get_summary_writer(folder, enable_summary_writer)
    )

  def run(self, state, step):
    """Returns the mean, if each of the others has a score."""
    import tensorflow as tf

    scores = [task.score(int(step)) for task in self._tasks]
    metrics = {}
    if None not in scores:
      metrics[SCORE] = statistics.fmean(scores)
      with self._eval_summary_writer.as_default():
        tf.summary.scalar(SCORE, metrics[SCORE], step=int(step))
    return programs.EvalProgramOutput(state, eval_metrics=metrics)


class _TriedOut(Exception):
  """A batch has run."""


class _Part(NamedTuple):
  """A program of PAX that runs batches, and its attributes for that.

  Attributes:
    program: The program.
    batches: The attribute that holds its input, once it is set up.
    step: Its method that runs a batch.
  """

  program: Any
  batches: str
  step: str


def _parts(program: programs.BaseEvalProgram) -> list[_Part]:
  """Returns what runs batches in an evaluation, in order."""
  if isinstance(program, MeanProgram):
    return []
  parts = [_Part(program, 'eval_input', 'eval_step')]
  if isinstance(program, DecodingEvalProgram):
    parts.append(_Part(program.decoding, 'decode_input', 'decode_step'))
  return parts


def try_out(program: programs.BaseEvalProgram, state: Any) -> None:
  """Runs an evaluation's first batch before the training, and keeps nothing of it.

  So its programs are compiled while nothing can be lost yet, and a fault of the evaluation shows.

  Args:
    program: The evaluation's program, set up.
    state: The state to evaluate, as in a training.
  """
  for part in _parts(program):
    _try_batch(part, state)


def _try_batch(part: _Part, state: Any) -> None:
  """Runs a program up to its first batch. Its input still gives that batch first."""
  program, batches = part.program, getattr(part.program, part.batches)
  batch = batches.peek_padded()
  if batch is None:
    return
  step = getattr(program, part.step)

  def end_after(*args):
    jax.block_until_ready(step(*args).loss)
    raise _TriedOut

  copies = [jax.tree.map(lambda x: x, batch)]  # PAX takes text out of its batch.

  def get_next_once():
    if not copies:
      raise _TriedOut
    return copies.pop()

  with (
    _replaced(batches, 'get_next_padded', get_next_once),
    _replaced(program, part.step, end_after),
    contextlib.suppress(_TriedOut),
  ):
    type(program).run(program, state, _NO_STEP)  # Without what reports an evaluation.


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
  original = getattr(owner, name)
  setattr(owner, name, value)
  try:
    yield
  finally:
    setattr(owner, name, original)


def before_each_batch(program: programs.BaseEvalProgram, call: Callable[[], None]) -> None:
  """Makes an evaluation call a function before each of its batches.

  To score, all but the last of the batches before it are computed then.
  """
  for part in _parts(program):
    _call_before(part, call)


def _call_before(part: _Part, call: Callable[[], None]) -> None:
  step, pending = getattr(part.program, part.step), collections.deque()

  def called_before(*args):
    if len(pending) > 1:
      jax.block_until_ready(pending.popleft())
    call()
    output = step(*args)
    pending.append(output.loss)
    return output

  setattr(part.program, part.step, called_before)
