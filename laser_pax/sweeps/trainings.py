"""Processes that train: one after another, or several at once on their share of the cores."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pathlib
import queue
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from laser_pax import folders
from laser_pax.errors import UserError
from laser_pax.experiment import jobs

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INTERRUPTED = 128 + signal.SIGINT
# Held by the training that runs in a job folder.
_LOCK = 'training.lock'
# What the newest training of a job folder printed to its standard error, and, where several run at
# once, to its standard output.
_ERRORS, _OUTPUT = 'errors.txt', 'console.txt'


class Trainings:
  """Starts trainings, passes signals on to them, and waits for their ends."""

  def __init__(self, parallel: int):
    """Takes the number of trainings at once.

    Raises:
      UserError: There are fewer cores.
    """
    cores = _cores()
    if not 1 <= parallel <= len(cores):
      raise UserError(
        f'--parallel={parallel}: expected 1 to {len(cores)}, a core for each training'
      )
    self._parallel = parallel
    self._shares: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for i in range(parallel):
      self._shares.put(cores[i::parallel])
    self._processes: set[subprocess.Popen] = set()
    self._signals: list[int] = []
    self._code: int | None = None
    self._has_raised = False

  def each(self, work: Callable[[Any], None], runs: Sequence[Any]) -> None:
    """Calls a function on each run, on several threads. It calls `train`.

    Args:
      work: The function.
      runs: What it is called on.

    Raises:
      KeyboardInterrupt: Ctrl-C ended a training.
      SystemExit: Another signal ended it, or it saved a checkpoint because it was told to.
      Exception: What `work` raised. The trainings that run at that time end first.
    """
    with self._passing_signals_on(), concurrent.futures.ThreadPoolExecutor(self._parallel) as pool:
      futures = [pool.submit(self._unless_stopped, work, run) for run in runs]
      for future in concurrent.futures.as_completed(futures):
        future.result()
    self._raise_if_stopped()

  def train(self, command: Sequence[str], folder: pathlib.Path, lock: IO[Any]) -> str | None:
    """Runs a training to its end, and returns why it failed, or None.

    The training is a process group of its own. So Ctrl-C on a terminal reaches it once, from here.

    Args:
      command: The command.
      folder: Its job folder.
      lock: The folder's lock, which it inherits.

    Raises:
      Stopped: It was told to stop.
    """
    errors = folder / _ERRORS
    with contextlib.ExitStack() as stack:
      stdout = stack.enter_context((folder / _OUTPUT).open('ab')) if self._parallel > 1 else None
      stderr = stack.enter_context(errors.open('wb'))
      process = subprocess.Popen(
        command, stdout=stdout, stderr=stderr, pass_fds=[lock.fileno()], process_group=0
      )
    self._processes.add(process)
    for number in [*self._signals]:  # They may have come while it was started.
      process.send_signal(number)
    code = process.wait()
    self._processes.discard(process)
    if code in (_INTERRUPTED, jobs.SAVED_ON_DEMAND):
      self._code = code
    if self._is_stopped():
      raise Stopped
    return _failure(code, errors) if code else None

  def _unless_stopped(self, work: Callable[[Any], None], run: Any) -> None:
    if self._is_stopped() or self._has_raised:
      return
    share = self._shares.get()
    if self._parallel > 1 and hasattr(os, 'sched_setaffinity'):
      os.sched_setaffinity(0, share)  # That of this thread, which its processes inherit.
    try:
      work(run)
    except Stopped:
      pass
    except Exception:
      self._has_raised = True
      raise
    finally:
      self._shares.put(share)

  def _is_stopped(self) -> bool:
    return bool(self._signals) or self._code is not None

  @contextlib.contextmanager
  def _passing_signals_on(self) -> Iterator[None]:
    def pass_on(number, frame):
      self._signals.append(number)
      for process in [*self._processes]:
        process.send_signal(number)

    # Under nohup SIGHUP is ignored, and stays so.
    heard = [n for n in _PASSED_ON if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, pass_on) for number in heard}
    try:
      yield
    finally:
      for number, handler in previous.items():
        signal.signal(number, handler)

  def _raise_if_stopped(self) -> None:
    if signal.SIGINT in self._signals or self._code == _INTERRUPTED:
      raise KeyboardInterrupt
    if self._code is not None:
      raise SystemExit(self._code)
    if self._signals:
      raise SystemExit(128 + self._signals[0])


class Stopped(Exception):
  """A training ended because it was told to. Its checkpoints stay, and nothing is recorded."""


@contextlib.contextmanager
def locked(folder: pathlib.Path, say: Callable[[str], None]) -> Iterator[IO[Any]]:
  """Holds the lock of a job folder, which its training inherits.

  A training outlives a sweep that was killed. Then this waits for the training's end.

  Args:
    folder: The job folder.
    say: Prints a line.
  """
  with contextlib.ExitStack() as stack:
    try:
      lock = stack.enter_context(folders.locked(folder / _LOCK, 'it is held'))
    except UserError:
      say(f'{folder.name} is still trained, by an earlier sweep that was killed: waiting for it')
      lock = stack.enter_context(folders.locked(folder / _LOCK))
    yield lock


def _cores() -> list[int]:
  """Returns the numbers of the cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def _failure(code: int, errors: pathlib.Path) -> str:
  """Returns why a training failed, in one line: the last that it printed, or its signal."""
  if code < 0:
    return f'ended by {signal.Signals(-code).name}'
  lines = errors.read_text(errors='replace').split('\n')
  last = next((line.strip() for line in reversed(lines) if line.strip()), '')
  return last.removeprefix('error: ') or f'ended with code {code}'
