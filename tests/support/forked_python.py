"""A quick `python -m laser_pax`: a server of tests/support/commands.py forks the process.

`forked_python.py SOCKET -m laser_pax ARGS` behaves as the process: it prints the same, passes
signals on and ends as it ends. If this process is killed, so is the other. Others go to Python.
Only the standard library is imported here, so that it starts at once.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def request(
  address: str,
  module: str,
  args: Sequence[str],
  cwd: str,
  env: Mapping[str, str],
  output: Sequence[int],
) -> socket.socket:
  """Asks a server for a process.

  Args:
    address: The path of the server's socket.
    module: The module that the process runs.
    args: Its arguments.
    cwd: Its folder.
    env: Its environment.
    output: The descriptors of its standard output and standard error.

  Returns:
    The connection. The process's number comes over it in a line, then its exit code in another. The
    end of the connection kills the process.
  """
  connection = socket.socket(socket.AF_UNIX)
  connection.connect(address)
  socket.send_fds(connection, [b'.'], output)
  line = json.dumps(dict(module=module, args=[*args], cwd=cwd, env={**env})) + '\n'
  connection.sendall(line.encode())
  return connection


def main(address: str, *words: str) -> None:
  """Runs Python with these words."""
  if words[:2] != ('-m', 'laser_pax'):
    os.execv(sys.executable, [sys.executable, *words])
  signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)  # Until there is a process to pass them to.
  env, output = os.environ, (sys.stdout.fileno(), sys.stderr.fileno())
  connection = request(address, words[1], words[2:], os.getcwd(), env, output)
  answers = connection.makefile()
  pid = int(answers.readline())
  for number in _PASSED_ON:
    signal.signal(number, lambda number, _: os.kill(pid, number))
  signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
  code = int(answers.readline())
  if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
  os._exit(code)


if __name__ == '__main__':
  main(*sys.argv[1:])
