"""Runs commands of this package in separate processes, without the time that imports take.

A server imports jax, TensorFlow and PAX once. For each command it forks a child. The child has the
command's arguments, environment, folder and output, imports laser_pax, and ends with the command's
exit code. The server never starts jax's devices, so each child chooses its own.
"""

import contextlib
import functools
import gc
import json
import os
import pathlib
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

from tests.support.forked_python import request

ROOT = pathlib.Path(__file__).parents[2]
# With these flags XLA compiles quickly. For a small model and a few steps this saves time.
QUICK_COMPILE = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'


class Command:
  """A command that was started.

  Attributes:
    pid: The number of its process.
    returncode: The exit code; None while it runs, and -N if signal N ended it.
  """

  def __init__(self, connection: socket.socket, output: pathlib.Path):
    """Takes the connection to the server, and the folder of stdout.txt and stderr.txt."""
    self._connection, self._answers, self._output = connection, connection.makefile(), output
    self.pid, self.returncode = int(self._answers.readline()), None

  @property
  def stdout(self) -> str:
    """The text that it has printed so far."""
    return (self._output / 'stdout.txt').read_text()

  @property
  def stderr(self) -> str:
    """The text that it has printed to standard error so far."""
    return (self._output / 'stderr.txt').read_text()

  def poll(self) -> int | None:
    """Returns the exit code if the command has ended."""
    if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
      self.returncode = int(self._answers.readline())
    return self.returncode

  def wait(self, timeout: float = 300) -> int:
    """Waits for the command's end, and returns its exit code."""
    deadline = time.time() + timeout
    while self.poll() is None:
      if time.time() > deadline:
        self.send_signal(signal.SIGKILL)
        raise TimeoutError(self.stdout + self.stderr)
      time.sleep(0.02)
    return self.returncode

  def send_signal(self, number: int) -> None:
    """Sends a signal to the process."""
    os.kill(self.pid, number)


class Server:
  """Starts commands. One server serves all tests of a run, in several processes too.

  Attributes:
    folder: The folder of its socket, of the output of its commands, and of a quick `python`.
  """

  def __init__(self, folder: pathlib.Path):
    """Starts the server. It imports nothing before the first command."""
    self.folder = folder
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'tests.support.commands', folder],
      cwd=ROOT,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3'},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
    )
    assert self._process.stdout.readline() == b'ready\n'

  def close(self) -> None:
    """Ends the server and the commands that still run."""
    self._process.stdin.close()
    self._process.wait()


class Commands:
  """Starts commands by a server."""

  def __init__(self, folder: pathlib.Path):
    """Takes the folder of the server."""
    self._folder = folder

  @property
  def python(self) -> pathlib.Path:
    """An executable that runs `-m laser_pax` as a command, and all else as Python does."""
    return self._folder / 'python'

  def start(
    self,
    module: str,
    args: Sequence[str],
    *,
    cwd: os.PathLike | str = ROOT,
    env: Mapping[str, str] | None = None,
  ) -> Command:
    """Starts `python -m module args`.

    Args:
      module: The module, which the server must not have imported as such: laser_pax, for example.
      args: The arguments of the command.
      cwd: The folder that the command runs in.
      env: Further variables. PYTHONPATH has its effect. Other variables of Python, and those that
        jax reads when it is imported, come too late. Commands share their compiled programs, but
        JAX_COMPILATION_CACHE_DIR='' compiles them anew.
    """
    output = pathlib.Path(tempfile.mkdtemp(dir=self._folder))
    compiled = str(self._folder / 'compiled')
    variables = {**os.environ, 'PYTHONPATH': '', 'JAX_COMPILATION_CACHE_DIR': compiled}
    variables |= env or {}
    variables['PYTHONPATH'] += f':{ROOT}'
    with open(output / 'stdout.txt', 'ab') as stdout, open(output / 'stderr.txt', 'ab') as stderr:
      descriptors = stdout.fileno(), stderr.fileno()
      words = [*map(str, args)]
      address = str(self._folder / 'socket')
      return Command(request(address, module, words, str(cwd), variables, descriptors), output)

  def run(self, module: str, args: Sequence[str], timeout: float = 300, **kwargs) -> Command:
    """Runs `python -m module args` to its end, as `start` does."""
    command = self.start(module, args, **kwargs)
    command.wait(timeout)
    return command


def _serve(folder: pathlib.Path) -> None:
  """Forks a child for each connection, until standard input ends."""
  listener = socket.socket(socket.AF_UNIX)
  listener.bind(str(folder / 'socket'))
  listener.listen()
  python = folder / 'python'
  forked_python = pathlib.Path(__file__).with_name('forked_python.py')
  python.write_text(
    f'#!/bin/sh\nexec {sys.executable} -S {forked_python} {folder / "socket"} "$@"\n'
  )
  python.chmod(0o755)
  print('ready', flush=True)
  children = {}
  while True:
    ready, _, _ = select.select([listener, sys.stdin, *children.values()], [], [], 0.02)
    if listener in ready:
      pid, connection = _fork(listener, python)
      children[pid] = connection
    elif sys.stdin in ready:
      for pid in children:
        _kill(pid)
      return
    for pid, connection in children.items():
      if connection in ready:  # Its other end is closed.
        _kill(pid)
    while children:
      pid, status = os.waitpid(-1, os.WNOHANG)
      if not pid:
        break
      connection = children.pop(pid)
      with contextlib.suppress(BrokenPipeError):
        connection.sendall(f'{os.waitstatus_to_exitcode(status)}\n'.encode())
      connection.close()


def _fork(listener: socket.socket, python: pathlib.Path) -> tuple[int, socket.socket]:
  """Accepts a connection and forks its child; returns the child's number, and the connection."""
  connection, _ = listener.accept()
  _, descriptors, _, _ = socket.recv_fds(connection, 1, 2)
  asked = json.loads(connection.makefile().readline())
  _import_all()
  pid = os.fork()
  if not pid:
    listener.close()
    connection.close()
    sys.executable = str(python)
    _become(**asked, output=descriptors)
  for descriptor in descriptors:
    os.close(descriptor)
  connection.sendall(f'{pid}\n'.encode())
  return pid, connection


def _kill(pid: int) -> None:
  with contextlib.suppress(ProcessLookupError):
    os.kill(pid, signal.SIGKILL)


def _become(
  module: str, args: list[str], cwd: str, env: dict[str, str], output: Sequence[int]
) -> None:
  """Runs a module in this process, and never returns."""
  os.environ.clear()
  os.environ.update(env)
  os.chdir(cwd)
  sys.path[:] = [path for path in sys.path if path != str(ROOT)]
  sys.path[:0] = [cwd, *filter(None, env.get('PYTHONPATH', '').split(':'))]
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  for number, descriptor in enumerate(output, start=1):
    os.dup2(descriptor, number)
  sys.argv = [module, *args]
  import jax

  jax.config.update('jax_compilation_cache_dir', env.get('JAX_COMPILATION_CACHE_DIR') or None)
  code = 0
  try:
    runpy.run_module(module, run_name='__main__', alter_sys=True)
  except SystemExit as e:
    code = e.code if isinstance(e.code, int) else int(e.code is not None)
    if isinstance(e.code, str):
      print(e.code, file=sys.stderr)
  except BaseException:
    sys.excepthook(*sys.exc_info())
    code = 1
  finally:
    _leave(code)


def _leave(code: int) -> None:
  """Ends the process as Python does."""
  import atexit

  atexit._run_exitfuncs()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


@functools.cache
def _import_all() -> None:
  """Imports the slow modules, but not paxml.main: `python -m` would define its flags again."""
  import einops  # noqa: F401
  import matplotlib.pyplot  # noqa: F401
  import praxis.layers  # noqa: F401
  import pydantic  # noqa: F401
  import rich.console  # noqa: F401
  import rich.progress  # noqa: F401
  import rich.table  # noqa: F401
  import typer  # noqa: F401
  from paxml import eval_lib, train, tuning_lib  # noqa: F401

  # The garbage collector of a child leaves out what the imports made, and runs less often.
  gc.freeze()
  gc.set_threshold(50_000, 50, 100)


if __name__ == '__main__':
  _serve(pathlib.Path(sys.argv[1]))
