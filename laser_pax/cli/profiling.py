"""Traces training steps by jax's profiler. PAX's own profiler, as published, traces nothing."""

import contextlib
import re
from collections.abc import Iterator

import jax

from laser_pax.errors import UserError


def steps(text: str) -> range:
  """Returns the steps that --profile names.

  Args:
    text: The value START:STOP. Step START is traced, step STOP is not.

  Raises:
    UserError: The value has another form, or names no step.
  """
  match = re.fullmatch(r'(\d+):(\d+)', text)
  traced = range(int(match[1]), int(match[2])) if match else range(0)
  if not traced:
    raise UserError(
      f'--profile takes START:STOP, START less than STOP, such as 10:13; got {text!r}'
    )
  return traced


def tracer(text: str | None, folder: str) -> 'Tracer':
  """Returns a tracer of the steps that --profile names. If `text` is None, it traces no step."""
  return Tracer(range(0) if text is None else steps(text), folder)


class Tracer:
  """Traces a range of steps into a folder. It is called before and after each step."""

  def __init__(self, traced: range, folder: str):
    """Takes the steps, and the folder, which may be in a bucket."""
    self._steps, self._folder, self._is_tracing = traced, folder, False

  def before(self, step: int) -> None:
    """Starts the trace at the first of the steps that this run trains."""
    if step in self._steps and not self._is_tracing:
      with _tensorflow_unharmed():
        jax.profiler.start_trace(self._folder)
      self._is_tracing = True

  def after(self, step: int, loss: jax.Array) -> None:
    """Ends the trace after the last of the steps, when it is computed."""
    if self._is_tracing and step + 1 not in self._steps:
      loss.block_until_ready()
      self.close()

  def close(self) -> None:
    """Writes the trace if training ended before the last of the steps."""
    if self._is_tracing:
      with _tensorflow_unharmed():
        jax.profiler.stop_trace()
      self._is_tracing = False


@contextlib.contextmanager
def _tensorflow_unharmed() -> Iterator[None]:
  """Puts back a function of TensorFlow that jax's profiler overwrites.

  The profiler sets tensorflow.python.profiler.trace.enabled to True or False. TensorFlow now calls
  this name, so the next checkpoint of the data would end in a TypeError.
  """
  from tensorflow.python.profiler import trace

  enabled = trace.enabled
  yield
  trace.enabled = enabled
