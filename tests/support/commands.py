"""Runs commands of this package in separate processes, without the time that imports take.

A server imports jax, TensorFlow and PAX once. For each command it forks a child. The child has the
command's arguments, environment, folder and output, and ends with its exit code. The server never
starts jax's devices, so each child chooses its own.
"""

import contextlib
import json
import os
import pathlib
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

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
    self._answers, self._output = connection.makefile(), output
    self._connection, self.returncode = connection, None
    self.pid = json.loads(self._answers.readline())

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
      self.returncode = json.loads(self._answers.readline())
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
  """Starts commands. One server serves all tests of a worker."""

  def __init__(self, folder: pathlib.Path):
    """Starts the server. Its socket and the output of its commands are in `folder`."""
    self._folder, self._count = folder, 0
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'tests.support.commands', folder / 'socket'],
      cwd=ROOT,
      env={
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'TF_CPP_MIN_LOG_LEVEL': '3',
        # Commands share their compiled programs.
        'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'),
      },
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
    )
    assert self._process.stdout.readline() == b'ready\n'

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
        jax reads when it is imported, come too late.
    """
    self._count += 1
    output = self._folder / str(self._count)
    output.mkdir()
    variables = {**os.environ, **(env or {})}
    request = dict(module=module, args=[*map(str, args)], cwd=str(cwd), env=variables)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(self._folder / 'socket'))
    connection.sendall((json.dumps({**request, 'output': str(output)}) + '\n').encode())
    return Command(connection, output)

  def run(self, module: str, args: Sequence[str], timeout: float = 300, **kwargs) -> Command:
    """Runs `python -m module args` to its end, as `start` does."""
    command = self.start(module, args, **kwargs)
    command.wait(timeout)
    return command

  def close(self) -> None:
    """Ends the server and the commands that still run."""
    self._process.stdin.close()
    self._process.wait()


def _serve(address: str) -> None:
  """Forks a child for each connection, until standard input ends."""
  listener = socket.socket(socket.AF_UNIX)
  listener.bind(address)
  listener.listen()
  print('ready', flush=True)
  children = {}
  while True:
    ready, _, _ = select.select([listener, sys.stdin], [], [], 0.02)
    if listener in ready:
      connection, _ = listener.accept()
      request = json.loads(connection.makefile().readline())
      pid = os.fork()
      if not pid:
        listener.close()
        _become(**request)
      children[pid] = connection
      connection.sendall(f'{pid}\n'.encode())
    elif sys.stdin in ready:
      for pid in children:
        with contextlib.suppress(ProcessLookupError):
          os.kill(pid, signal.SIGKILL)
      return
    while children:
      pid, status = os.waitpid(-1, os.WNOHANG)
      if not pid:
        break
      connection = children.pop(pid)
      with contextlib.suppress(BrokenPipeError):
        connection.sendall(f'{os.waitstatus_to_exitcode(status)}\n'.encode())
      connection.close()


def _become(module: str, args: list[str], cwd: str, env: dict[str, str], output: str) -> None:
  """Runs a module in this process, and never returns."""
  os.environ.clear()
  os.environ.update(env)
  os.chdir(cwd)
  sys.path[:0] = [cwd, *env.get('PYTHONPATH', '').split(':')]
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  for number, name in ((1, 'stdout.txt'), (2, 'stderr.txt')):
    os.dup2(os.open(f'{output}/{name}', os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
  sys.argv = [module, *args]
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


def _import_all() -> None:
  """Imports the slow modules, but not paxml.main: `python -m` would define its flags again."""
  from laser_pax import pax_fixes

  pax_fixes.read_lambdas_fast()
  import matplotlib.pyplot  # noqa: F401
  from paxml import eval_lib, train, tuning_lib  # noqa: F401

  import laser_pax.cli.watch  # noqa: F401
  import laser_pax.configs  # noqa: F401


if __name__ == '__main__':
  _import_all()
  _serve(sys.argv[1])
