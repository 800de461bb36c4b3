"""Starts, follows and ends a training process on one host of a slice, for scripts/tpu_pod.sh.

Each command prints one line: `laser_pax`, the worker's number, and its fields, separated by tabs. A
start leaves these files on its host, in ~/laser_pax_jobs/JOB/START:

| file | |
|---|---|
| command | the words of the command, one a line |
| console.log | its output |
| runner, pid | number and start time of the process that waits, and of the one that trains |
| stopped | present if `stop` was called |
| exit | the exit code, 128 + N for signal N, and the second at which it ended |
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from laser_pax.cli import host_checks
from laser_pax.errors import UserError
from laser_pax.experiment import jobs

ROOT = pathlib.Path(__file__).parents[2]
# In this folder of the job's folder, the first host writes a file for each start. All must see it.
LAUNCHES = 'launches'


class Status(NamedTuple):
  """The state of a host's newest start.

  Attributes:
    state: One of `none`, `running`, `done`, `saved`, `stopped`, `failed` and `lost`. A `saved`
      start ended after it saved on demand. A `lost` start vanished without an exit code, as when
      its machine restarts.
    code: The exit code; 0 if there is none.
    ended: The second at which it ended; 0 if it has not ended.
    start: The name of the start.
    command: The hash of its command.
    last_line: The last line that it printed.
  """

  state: str
  code: int = 0
  ended: float = 0
  start: str = '-'
  command: str = '-'
  last_line: str = '-'


def status(starts: pathlib.Path) -> Status:
  """Returns the status of a job's newest start. The names of starts sort by time."""
  commands = sorted(starts.glob('*/command'))
  if not commands:
    return Status('none')
  folder = commands[-1].parent
  fields = {
    'start': folder.name,
    'command': hashlib.sha256(commands[-1].read_bytes()).hexdigest()[:12],
    'last_line': _last_line(folder / 'console.log'),
  }
  # Asked first: a runner that ends between the two questions has noted its exit.
  is_alive = _living(folder / 'runner') or _living(folder / 'pid')
  if not (folder / 'exit').exists():
    return Status('running' if is_alive else 'lost', **fields)
  code, ended = (folder / 'exit').read_text().split()
  state = {0: 'done', jobs.SAVED_ON_DEMAND: 'saved'}.get(int(code), 'failed')
  if state != 'done' and (folder / 'stopped').exists():
    state = 'stopped'
  return Status(state, int(code), float(ended), **fields)


def start(starts: pathlib.Path, name: str, job_log_dir: str, command: Sequence[str]) -> Status:
  """Starts the command, detached. This host must see that the first host announced the start.

  Raises:
    UserError: The job runs already, or the hosts do not share its folder.
  """
  from etils import epath

  if status(starts).state == 'running':
    raise UserError('the job runs already on this host')
  announced = epath.Path(job_log_dir).expanduser() / LAUNCHES / f'{name}.txt'
  if not announced.exists():
    raise UserError(
      f'{announced}, which the first host wrote, is not seen here: JOB_LOG_DIR must be storage '
      f'that all hosts share, a bucket or a network drive'
    )
  folder = starts / name
  folder.mkdir(parents=True)
  (folder / 'command').write_text('\n'.join(command) + '\n')
  with open(folder / 'console.log', 'ab') as console:
    runner = subprocess.Popen(
      [sys.executable, '-m', 'laser_pax.cli.host', 'run', str(folder), '--', *command],
      cwd=ROOT,
      stdin=subprocess.DEVNULL,
      stdout=console,
      stderr=console,
      start_new_session=True,  # It outlives the connection.
    )
  _note(folder / 'runner', runner.pid)
  return status(starts)


def run(folder: pathlib.Path, command: Sequence[str]) -> None:
  """Runs the command to its end and notes its exit code. No signal interrupts this."""
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    # A function that does nothing, not SIG_IGN: the command would inherit SIG_IGN, and miss the
    # SIGTERM on which it saves. A machine that shuts down signals this process and the command.
    signal.signal(number, lambda *_: None)
  process = subprocess.Popen(command)
  _note(folder / 'pid', process.pid)
  code = process.wait()
  code = 128 - code if code < 0 else code
  (folder / 'exit.new').write_text(f'{code} {time.time():.3f}\n')
  (folder / 'exit.new').rename(folder / 'exit')


def end(starts: pathlib.Path, number: int, *, by_user: bool) -> Status:
  """Sends a signal to the training process of the newest start.

  Args:
    starts: The job's folder of starts.
    number: The signal. SIGTERM saves a checkpoint first, if training has begun.
    by_user: Whether the user called `stop`, which is noted.
  """
  newest = status(starts)
  if newest.state != 'running':
    return newest
  folder = starts / newest.start
  if by_user:
    (folder / 'stopped').touch()
  while not (folder / 'pid').exists() and _living(folder / 'runner'):
    time.sleep(0.1)  # The runner has not started it yet.
  if pid := _living(folder / 'pid'):
    with contextlib.suppress(ProcessLookupError):
      os.kill(pid, number)
  return status(starts)


def announce(name: str, job_log_dir: str, text: str) -> None:
  """Writes the coming start into the job's folder. Only the first host calls this."""
  from etils import epath

  folder = epath.Path(job_log_dir).expanduser() / LAUNCHES
  folder.mkdir(parents=True, exist_ok=True)
  (folder / f'{name}.txt').write_text(text + '\n')


def tail(starts: pathlib.Path, lines: int) -> str:
  """Returns the last lines of the newest start's console."""
  newest = status(starts)
  if newest.state == 'none':
    raise UserError('nothing was started on this host')
  log = starts / newest.start / 'console.log'
  return '\n'.join([f'{log}:', *log.read_text(errors='replace').splitlines()[-lines:]])


def _note(file: pathlib.Path, pid: int) -> None:
  """Notes a process by number and start time, because a later process may get its number."""
  start_time = '-'
  with contextlib.suppress(FileNotFoundError):  # The process has ended already.
    start_time = _start_time(pid)
  partial = file.with_suffix('.partial')  # A reader never sees a file without its number.
  partial.write_text(f'{pid} {start_time}\n')
  partial.replace(file)


def _living(file: pathlib.Path) -> int | None:
  """Returns the number of the noted process, or None if it has ended."""
  with contextlib.suppress(FileNotFoundError, ValueError):
    pid, start_time = file.read_text().split()
    if _start_time(int(pid)) == start_time:
      return int(pid)
  return None


def _start_time(pid: int) -> str:
  """Returns the start time of a process, in the kernel's clock.

  Raises:
    FileNotFoundError: There is no such process, or it has ended and is a zombie.
  """
  fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  if fields[0] == 'Z':
    raise FileNotFoundError(pid)
  return fields[19]


def _last_line(log: pathlib.Path) -> str:
  """Returns the last line that is no log line, because paxml still logs while it shuts down."""
  with open(log, 'rb') as file:
    file.seek(max(0, log.stat().st_size - 4096))
    lines = file.read().decode(errors='replace').replace('\r', '\n').splitlines()
  words = [line for line in lines if line.strip() and not re.match(r'[IW]\d{4} [\d:.]+ ', line)]
  return words[-1] if words else '-'


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog='python -m laser_pax.cli.host', description=__doc__)
  parser.add_argument('--worker', default='?', help='number of this host in its slice')
  parser.add_argument('--job', default='', help='name of the job')
  commands = parser.add_subparsers(dest='called', required=True)
  for name in ('status', 'stop', 'kill'):
    commands.add_parser(name)
  commands.add_parser('log').add_argument('--lines', type=int, default=50)
  checks = commands.add_parser('check')
  for name in ('code', 'pod', 'data', 'vocab', 'job_log_dir'):
    checks.add_argument(f'--{name}', required=True)
  announcing = commands.add_parser('announce')
  starting = commands.add_parser('start')
  for command in (announcing, starting):
    command.add_argument('--start', required=True)
    command.add_argument('--job_log_dir', required=True)
  announcing.add_argument('--text', required=True)
  running = commands.add_parser('run')
  running.add_argument('folder', type=pathlib.Path)
  for command in (starting, running):
    command.add_argument('command', nargs='+')
  return parser


def main() -> None:
  """Runs one command. A failure prints one line too, and the exit code is 1."""
  args = _parser().parse_args()
  starts = pathlib.Path.home() / 'laser_pax_jobs' / args.job
  try:
    match args.called:
      case 'run':
        run(args.folder, args.command)
        return
      case 'log':
        print(tail(starts, args.lines))
        return
      case 'status':
        fields = status(starts)
      case 'stop':
        fields = end(starts, signal.SIGTERM, by_user=True)
      case 'kill':
        fields = end(starts, signal.SIGKILL, by_user=False)
      case 'check':
        fields = host_checks.check(args.code, args.pod, args.data, args.vocab, args.job_log_dir)
      case 'announce':
        announce(args.start, args.job_log_dir, args.text)
        fields = ['ok']
      case 'start':
        fields = start(starts, args.start, args.job_log_dir, args.command)
  except Exception as e:  # noqa: BLE001  # tpu_pod.sh shows this line alone.
    fields = ['error', str(e) or type(e).__name__]
  words = ['laser_pax', args.worker, *map(str, fields)]
  print('\t'.join(' '.join(word.split()) or '-' for word in words), flush=True)
  sys.exit(1 if fields[0] == 'error' else 0)


if __name__ == '__main__':
  main()
