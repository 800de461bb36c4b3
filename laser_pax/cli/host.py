"""What scripts/tpu_pod.sh runs on each host of a slice: checks, and the training process, detached.

Each command prints one line: `laser_pax`, the worker's number, then its fields, tabs between. What
a start leaves on its host is in ~/laser_pax_jobs/JOB/START:

| file | |
|---|---|
| command | the words of the command, one a line |
| console.log | what it printed |
| runner, pid | the process that waits, the one that trains: number, and when it began |
| stopped | there if `stop` was asked for |
| exit | the exit code, 128 + N for signal N, and the second at which it ended |
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from laser_pax.errors import UserError
from laser_pax.experiment import jobs

ROOT = pathlib.Path(__file__).parents[2]
# `sha256  path` of each file that `tpu_pod.sh setup` brought.
MANIFEST = ROOT / '.manifest'
# In the job's folder: a file for each start, which the first host writes and all others must see.
LAUNCHES = 'launches'


class Status(NamedTuple):
  """What became of a host's newest start.

  Attributes:
    state: `none`, `running`, `done`, `saved` (it ended after it saved on demand), `stopped`,
      `failed`, or `lost` (it vanished without an exit code, as when its machine restarts).
    code: the exit code; 0 where there is none.
    ended: the second at which it ended; 0 where it did not.
    start: which start it is.
    command: hash of its command.
    last: the last line that it printed.
  """

  state: str
  code: int = 0
  ended: float = 0
  start: str = '-'
  command: str = '-'
  last: str = '-'


def status(starts: pathlib.Path) -> Status:
  """Looks at the newest of a job's starts: their names sort by time."""
  commands = sorted(starts.glob('*/command'))
  if not commands:
    return Status('none')
  folder = commands[-1].parent
  known = {
    'start': folder.name,
    'command': hashlib.sha256(commands[-1].read_bytes()).hexdigest()[:12],
    'last': _last_line(folder / 'console.log'),
  }
  if not (folder / 'exit').exists():
    is_alive = _find(folder / 'runner') or _find(folder / 'pid')
    return Status('running' if is_alive else 'lost', **known)
  code, ended = (folder / 'exit').read_text().split()
  state = {0: 'done', jobs.SAVED_ON_DEMAND: 'saved'}.get(int(code), 'failed')
  if state != 'done' and (folder / 'stopped').exists():
    state = 'stopped'
  return Status(state, int(code), float(ended), **known)


def start(starts: pathlib.Path, name: str, job_log_dir: str, command: Sequence[str]) -> Status:
  """Starts the command, detached, once this host sees that the first host announced the start.

  Raises:
    UserError: the job runs already, or its folder is not shared by the hosts.
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
  """Runs the command to its end and notes its exit code, whatever signal comes meanwhile."""
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    # A function, as the command would inherit SIG_IGN: the machine's shutdown sends to both.
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
    number: The signal: SIGTERM saves a checkpoint first, if training has begun.
    by_user: Whether to note that the end was wanted.
  """
  found = status(starts)
  if found.state != 'running':
    return found
  folder = starts / found.start
  if by_user:
    (folder / 'stopped').touch()
  while not (folder / 'pid').exists() and _find(folder / 'runner'):
    time.sleep(0.1)  # It starts at this moment.
  if pid := _find(folder / 'pid'):
    with contextlib.suppress(ProcessLookupError):
      os.kill(pid, number)
  return status(starts)


def announce(name: str, job_log_dir: str, text: str) -> None:
  """Writes down in the job's folder what is about to start; the first host does."""
  from etils import epath

  folder = epath.Path(job_log_dir).expanduser() / LAUNCHES
  folder.mkdir(parents=True, exist_ok=True)
  (folder / f'{name}.txt').write_text(text + '\n')


def check(code: str, pod: str, data: str, vocab: str, job_log_dir: str) -> list[str]:
  """Makes every check that one host can make.

  Returns:
    For code, versions, chips, data and vocabulary, and job folder: `ok: what was found`, or
    `wrong: what to do`.
  """
  checks = (
    lambda: check_code(code),
    check_versions,
    lambda: check_chips(pod),
    lambda: check_data(data, vocab),
    lambda: check_job_log_dir(job_log_dir),
  )
  found = []
  for one in checks:
    try:
      found.append(f'ok: {one()}')
    except Exception as e:  # noqa: BLE001  # Each kind of storage has its own.
      found.append(f'wrong: {e}')
  return found


def check_code(expected: str) -> str:
  """Compares the files here with those that `setup` brought; returns the hash of the whole.

  Args:
    expected: The hash of the checkout that `tpu_pod.sh` is part of.
  """
  fix = 'run: scripts/tpu_pod.sh setup'
  if not MANIFEST.exists():
    raise UserError(f'no code was brought here; {fix}')
  for line in MANIFEST.read_text().splitlines():
    digest, path = line.split('  ', 1)
    file = ROOT / path
    if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
      raise UserError(f'{path} is not as setup brought it; {fix}')
  found = hashlib.sha256(MANIFEST.read_bytes()).hexdigest()[:12]
  if found != expected:
    raise UserError(f'the code here is {found}, that of tpu_pod.sh is {expected}; {fix}')
  return found


def check_versions() -> str:
  """Compares the packages with the requirements; returns the versions that matter most."""
  from laser_pax.cli import doctor

  environment = doctor.read_environment(pathlib.Path())
  findings = [*doctor.check_python(environment), *doctor.check_packages(environment)]
  if wrong := [f for f in findings if f.state == 'wrong']:
    first = wrong[0]
    raise UserError(f'{first.subject}: {first.found}; run: scripts/tpu_pod.sh setup')
  return f'python {platform.python_version()}, jax {importlib.metadata.version("jax")}'


def check_chips(pod: str) -> str:
  """Counts the chips of this host without taking hold of them; returns how many there are."""
  from laser_pax.experiment import slices

  chip = slices.find(pod).chip
  if chip.platform == 'tpu':
    from laser_pax import pax_fixes

    found = pax_fixes.count_tpu_chips()
  else:
    import jax

    found = jax.local_device_count()
  if found != chip.chips_per_host:
    raise UserError(
      f'expected {chip.chips_per_host} {chip.name} chips, found {found}: make the slice anew with '
      f'scripts/tpu_pod.sh delete and create'
    )
  return f'{found} {chip.name}'


def check_data(data: str, vocab: str) -> str:
  """Looks for the prepared data and the vocabulary, and reads a byte of the data."""
  if not data and not vocab:
    return 'the sample'

  from etils import epath

  from laser_pax.data import sources, vocabulary
  from laser_pax.data.datasets import C4

  if not vocab:
    raise UserError('DATA_DIR is set and VOCAB is not: set the vocabulary that goes with the data')
  if not epath.Path(vocab).exists():
    raise UserError(f'no vocabulary: {vocab} is not there: copy it, or set VOCAB to where it is')
  size = vocabulary.vocabulary_size(vocab)
  source = sources.find_source(C4, data, vocab, size)
  folder = epath.Path(source.data_dir) / C4.folder
  for split in C4.splits:
    file = next(iter(sorted(folder.glob(f'*-{split}.*'))), None)
    if file is None:
      raise UserError(f'{folder} has no file of the split {split}: copy the whole of the data')
    with file.open('rb') as f:
      f.read(1)
  return f'{size} pieces'


def check_job_log_dir(job_log_dir: str) -> str:
  """Writes a file into the job's folder, and removes it."""
  from etils import epath

  folder = epath.Path(job_log_dir).expanduser()
  probe = folder / f'.probe-{socket.gethostname()}-{os.getpid()}'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe.write_text('')
    probe.unlink()
  except Exception as e:  # noqa: BLE001  # Each kind of storage has its own.
    reason = getattr(e, 'strerror', None) or str(e)
    raise UserError(f'cannot write to {job_log_dir} ({reason}): name one that you may write') from e
  return 'writable'


def tail(starts: pathlib.Path, lines: int) -> str:
  """The end of the newest start's console."""
  found = status(starts)
  if found.state == 'none':
    raise UserError('nothing was started on this host')
  log = starts / found.start / 'console.log'
  return '\n'.join([f'{log}:', *log.read_text(errors='replace').splitlines()[-lines:]])


def _note(file: pathlib.Path, pid: int) -> None:
  """Writes a process down so that no later process of the same number is taken for it."""
  began = '-'
  with contextlib.suppress(FileNotFoundError):  # It ended already.
    began = _began(pid)
  file.write_text(f'{pid} {began}\n')


def _find(file: pathlib.Path) -> int | None:
  """The number of the process that was noted, if it lives."""
  with contextlib.suppress(FileNotFoundError, ValueError):
    pid, began = file.read_text().split()
    if _began(int(pid)) == began:
      return int(pid)
  return None


def _began(pid: int) -> str:
  """When the process began, in the kernel's clock.

  Raises:
    FileNotFoundError: there is no such process, or it has ended and waits to be read.
  """
  fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  if fields[0] == 'Z':
    raise FileNotFoundError(pid)
  return fields[19]


def _last_line(log: pathlib.Path) -> str:
  """The last line that says something: paxml still logs while it shuts down."""
  with open(log, 'rb') as file:
    file.seek(max(0, log.stat().st_size - 4096))
    lines = file.read().decode(errors='replace').replace('\r', '\n').splitlines()
  said = [line for line in lines if line.strip() and not re.match(r'[IW]\d{4} [\d:.]+ ', line)]
  return said[-1] if said else '-'


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
  """Runs one command; a failure is one line, as its answer, and exit code 1."""
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
        fields = check(args.code, args.pod, args.data, args.vocab, args.job_log_dir)
      case 'announce':
        announce(args.start, args.job_log_dir, args.text)
        fields = ['ok']
      case 'start':
        fields = start(starts, args.start, args.job_log_dir, args.command)
  except Exception as e:  # noqa: BLE001  # Whoever asked sees this line alone.
    fields = ['error', str(e) or type(e).__name__]
  words = ['laser_pax', args.worker, *map(str, fields)]
  print('\t'.join(' '.join(word.split()) or '-' for word in words), flush=True)
  sys.exit(1 if fields[0] == 'error' else 0)


if __name__ == '__main__':
  main()
