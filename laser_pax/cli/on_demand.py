"""SIGTERM of a training: it saves at its step, and ends with code 75.

A process alone hears the signal in a thread, at once: Python itself calls a handler only between
two of its instructions, so that a compilation of minutes would come first. Several processes agree
on a step, or on a batch of an evaluation, by jax's distributed service.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

from laser_pax.experiment import jobs

_Output = TypeVar('_Output')


class _Stopped(BaseException):
  """An evaluation is given up."""


class OnDemand:
  """Whether SIGTERM has asked this training to save and end.

  Attributes:
    say: Function that prints a line.
    has_trained: Whether there is a step that no checkpoint has. The training sets it.
  """

  def __init__(self, say: Callable[[str], None] = print):
    """Takes a function that prints a line."""
    self.say = say
    self._asked = threading.Event()
    self._agree: Callable[[], bool] | None = None
    self._stack = contextlib.ExitStack()
    self.has_trained = False

  def is_asked(self) -> bool:
    """Returns whether SIGTERM has asked. Several processes ask equally often, and agree.

    Raises:
      SystemExit: Several processes have agreed, and there is nothing new to save.
    """
    if self._agree and not self._asked.is_set() and self._agree():
      self._obey(sys.exit)
    return self._asked.is_set()

  def ends_training(self) -> bool:
    """Returns whether SIGTERM ends this training by a checkpoint."""
    return self._agree is not None or signal.getsignal(signal.SIGTERM) == self._handle

  def listen(self) -> None:
    """Answers SIGTERM of a process alone from now on. The main thread calls this."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous = signal.signal(signal.SIGTERM, self._handle)
    previous_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=self._hear, args=(reader,), daemon=True).start()
    self._stack.callback(os.close, writer)  # The thread reads the end, and ends.
    self._stack.callback(signal.signal, signal.SIGTERM, previous)
    self._stack.callback(signal.set_wakeup_fd, previous_writer)

  def agree(self) -> None:
    """Asks jax's distributed service from now on, which has heard SIGTERM of any process."""
    from jax.experimental import multihost_utils

    # The service compares numbers that each process counts, one for each question.
    questions = itertools.count(1)
    self._agree = lambda: multihost_utils.reached_preemption_sync_point(next(questions))

  def answer_pax(self) -> None:
    """Makes PAX save when this is asked, instead of asking jax's service for itself.

    PAX asks several times in a step, and gets one answer. The first process asks of older steps
    too, in the thread that finishes their checkpoints. That must draw no question of its own.
    """
    from orbax.checkpoint import utils

    newest, answer = None, False

    def reached_preemption(step: int) -> bool:
      nonlocal newest, answer
      is_main = threading.current_thread() is threading.main_thread()
      if step != newest and is_main:
        newest, answer = step, self.is_asked()
      return answer if step == newest else self._asked.is_set()

    utils.reached_preemption = reached_preemption

  def close(self) -> None:
    """Leaves SIGTERM to whoever had it before."""
    self._stack.close()

  def unless_asked(self, evaluate: Callable[[], _Output]) -> _Output | None:
    """Returns what an evaluation gives, or None, if SIGTERM came: it then ends at its next batch.

    The state that it evaluates can still be saved.
    """
    try:
      self.before_batch()
      return evaluate()
    except _Stopped:
      return None

  def before_batch(self) -> None:
    """Gives the evaluation up if SIGTERM has come."""
    if self.is_asked():
      raise _Stopped

  def _handle(self, number: int, frame) -> None:
    """Does nothing: the thread answers."""

  def _hear(self, reader: int) -> None:
    with open(reader, 'rb', buffering=0) as numbers:
      while number := numbers.read(1):
        if number[0] == signal.SIGTERM:
          self._obey(os._exit)  # The main thread may be compiling.

  def _obey(self, end: Callable[[int], None]) -> None:
    """Asks to save. Where there is nothing new to save, it ends this process."""
    if self.has_trained:
      self._asked.set()
      self.say('SIGTERM: it saves a checkpoint, and ends')
      return
    self.say('SIGTERM before its first step: there is nothing new to save')
    end(jobs.SAVED_ON_DEMAND)
