"""SIGTERM of a training that is a process alone: it saves at its step, and ends with code 75.

Where jax's distributed service runs, all processes agree on the step, by PAX's own mechanism. A
process alone needs no service. Python calls a handler of signals between two of its instructions,
so that it may wait for a compilation of minutes. A thread hears the signal at once.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable
from typing import TypeVar

from laser_pax.experiment import jobs

_Output = TypeVar('_Output')


class _Stopped(BaseException):
  """An evaluation is given up."""


def save_on_demand_when(is_asked: Callable[[], bool]) -> None:
  """Makes PAX save at the step at which this is so, instead of asking jax's distributed service.

  Args:
    is_asked: Whether to save. PAX asks several times in a step, and gets one answer.
  """
  from orbax.checkpoint import utils

  utils.reached_preemption = functools.lru_cache(maxsize=8)(lambda step: is_asked())


class OnDemand:
  """Whether SIGTERM has asked this process to save and end.

  Attributes:
    say: Function that prints a line.
    has_trained: Whether there is a step that no checkpoint has. The training sets it.
  """

  def __init__(self, say: Callable[[str], None] = print):
    """Takes a function that prints a line."""
    self.say = say
    self._asked = threading.Event()
    self._is_evaluating = False
    self._stack = contextlib.ExitStack()
    self.has_trained = False

  def is_asked(self) -> bool:
    """Returns whether it has."""
    return self._asked.is_set()

  def is_listening(self) -> bool:
    """Returns whether it answers SIGTERM."""
    return signal.getsignal(signal.SIGTERM) == self._handle

  def listen(self) -> None:
    """Answers SIGTERM from now on. The main thread calls this."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous = signal.signal(signal.SIGTERM, self._handle)
    previous_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=self._hear, args=(reader,), daemon=True).start()
    self._stack.callback(os.close, writer)  # The thread reads the end, and ends.
    self._stack.callback(signal.signal, signal.SIGTERM, previous)
    self._stack.callback(signal.set_wakeup_fd, previous_writer)

  def close(self) -> None:
    """Leaves SIGTERM to whoever had it before."""
    self._stack.close()

  def unless_asked(self, evaluate: Callable[[], _Output]) -> _Output | None:
    """Returns what an evaluation gives, or None. It is given up when SIGTERM comes.

    The state that it evaluates can still be saved.
    """
    if self.is_asked():
      return None
    self._is_evaluating = True
    try:
      return evaluate()
    except _Stopped:
      return None
    finally:
      self._is_evaluating = False

  def _handle(self, number: int, frame) -> None:
    if self._is_evaluating:
      self._is_evaluating = False
      self._asked.set()
      raise _Stopped

  def _hear(self, reader: int) -> None:
    with open(reader, 'rb', buffering=0) as numbers:
      while number := numbers.read(1):
        if number[0] == signal.SIGTERM:
          self._answer()

  def _answer(self) -> None:
    if self.has_trained:
      self._asked.set()
      self.say('SIGTERM: it saves a checkpoint, and ends')
      return
    self.say('SIGTERM before its first step: there is nothing new to save')
    os._exit(jobs.SAVED_ON_DEMAND)  # The main thread may be compiling.
