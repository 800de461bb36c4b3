"""The console of a training job: its output goes to a log, and Ctrl-C is answered."""

import contextlib
import os
import pathlib
import signal
import sys
from collections.abc import Iterator
from typing import TextIO


class _BestEffort:
  """A stream that ignores what the file system refuses: a run must not end for its words."""

  def __init__(self, stream: TextIO):
    self._stream = stream

  def write(self, text: str) -> int:
    with contextlib.suppress(OSError):
      self._stream.write(text)
    return len(text)

  def flush(self) -> None:
    with contextlib.suppress(OSError):
      self._stream.flush()

  def __getattr__(self, name: str):
    return getattr(self._stream, name)


@contextlib.contextmanager
def output_to(log: pathlib.Path) -> Iterator[TextIO]:
  """Sends all output of this process, also that of C++, to `log`. Yields the real output.

  If the log cannot be written, its lines are lost, and nothing else.
  """
  streams = sys.stdout, sys.stderr
  for stream in streams:
    stream.flush()
  saved = [os.dup(fd) for fd in (1, 2)]
  console = _BestEffort(os.fdopen(os.dup(1), 'w', buffering=1, errors='backslashreplace'))
  with _open_or_drop(log, 'ab', buffering=0) as file:
    try:
      for fd in (1, 2):
        os.dup2(file.fileno(), fd)
      sys.stdout, sys.stderr = map(_BestEffort, streams)
      yield console
    finally:
      sys.stdout, sys.stderr = streams
      for stream, fd, original in zip(streams, (1, 2), saved, strict=True):
        _flush_or_drop(stream, fd)
        os.dup2(original, fd)
        os.close(original)
      with contextlib.suppress(OSError):
        console.close()


def _open_or_drop(path: pathlib.Path, mode: str, **options):
  """Opens a file, or what takes everything and keeps nothing."""
  try:
    return open(path, mode, **options)
  except OSError:
    return open(os.devnull, mode, **options)


def open_records(path: pathlib.Path) -> TextIO:
  """Opens a file of records, one a line, to append to it. A line that was cut is ended first."""
  file = _open_or_drop(path, 'a', buffering=1)
  with contextlib.suppress(OSError):
    content = path.read_bytes()[-1:]
    if content not in (b'', b'\n'):
      file.write('\n')
  return file


def _flush_or_drop(stream: TextIO, fd: int) -> None:
  """Empties a stream's buffer. What the log cannot take must not come out on the console."""
  try:
    stream.flush()
  except OSError:
    with open(os.devnull, 'wb') as nothing:
      os.dup2(nothing.fileno(), fd)
    stream.flush()


@contextlib.contextmanager
def telling_of_interrupts(console: TextIO) -> Iterator[None]:
  """Says at once that Ctrl-C was seen, as the end may take a while. A second one ends at once."""

  def handle(number, frame):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    console.write('\ninterrupted: it ends after the steps that run; Ctrl-C again ends it at once\n')
    raise KeyboardInterrupt

  previous = signal.signal(signal.SIGINT, handle)
  yield
  signal.signal(signal.SIGINT, previous)  # Not after Ctrl-C: the end may take a while.
