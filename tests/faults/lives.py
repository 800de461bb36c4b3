"""A training that is disturbed over and over, and what must hold after each of its lives.

A life is one process of the training, or two that train together, from a start to an end that a
disturbance brings. The undisturbed training gives the losses and the arrays to compare with.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from laser_pax.experiment import checkpoints, jobs
from tests.support.commands import QUICK_COMPILE, ROOT, Command, Commands

CHECKPOINT_STEPS, EVAL_STEPS = 3, 12
# The clock jumps by CLOCK seconds, three seconds after the start.
_CLOCK = """
import os
import time
_time, _start, _jump = time.time, time.time(), float(os.environ.get('CLOCK', 0))
if _jump:
  time.time = lambda: _time() + (_jump if _time() > _start + 3 else 0)
"""
_SETTINGS = f"""
  NUM_TRAIN_STEPS = int(os.environ['STEPS'])
  SUMMARY_INTERVAL_STEPS = 1
  CHECKPOINT_EVERY_N_STEPS = {CHECKPOINT_STEPS}
  CHECKPOINT_MAX_TO_KEEP = 3
  EVAL_INTERVAL_STEPS = {EVAL_STEPS}
"""
# Experiments of two families: a small decoder, and one that starts faster.
DECODER = f"""{_CLOCK}
from paxml import experiment_registry
from laser_pax.configs import C4LaserTiny

@experiment_registry.register
class Disturbed(C4LaserTiny):
  NUM_LAYERS = 1
  MODEL_DIMS = 64
  HIDDEN_DIMS = 64
  SEQ_LEN = 64
  WARMUP_STEPS = 2
{_SETTINGS}
"""
BAGS = f"""{_CLOCK}
from paxml import experiment_registry
from tests.support.toy_family import Bags

@experiment_registry.register
class Disturbed(Bags):
{_SETTINGS}
"""
# It must come into no file.
_SECRET = 'hf_vKxJqTzWb0'
# A disk keeps so few bytes when it is full.
_LEFT = 100_000


class Life(NamedTuple):
  """How a life began and ended.

  Attributes:
    disturbance: What ended it.
    began: The step that it went on from.
    reached: The last step that it recorded.
    code: Its exit code.
  """

  disturbance: str
  began: int
  reached: int
  code: int


class Training:
  """A training in a folder, whose lives are started and disturbed.

  Attributes:
    folder: The job's folder.
    lives: Its lives so far.
  """

  def __init__(
    self,
    commands: Commands,
    folder: pathlib.Path,
    environment: dict[str, str],
    steps: int,
    processes: int = 1,
    experiment: str = DECODER,
  ):
    """Takes what starts commands, the job's folder, variables, steps, processes, and the code."""
    self._commands, self._steps, self._processes = commands, steps, processes
    self.folder, self.lives = folder, []
    code = folder.parent / 'code'
    code.mkdir(exist_ok=True)
    (code / 'disturbed_experiment.py').write_text(experiment)
    self._environment = environment | {
      'PYTHONPATH': f'{code}:{ROOT}',
      'STEPS': str(steps),
      'HF_TOKEN': _SECRET,
      'XLA_FLAGS': QUICK_COMPILE,
    }

  def start(self, **environment: str) -> list[Command]:
    """Starts a life."""
    flags = ['train', '--exp=disturbed_experiment.Disturbed', f'--job_log_dir={self.folder}']
    environment = self._environment | environment
    if self._processes > 1:
      with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
      flags += ['--multiprocess_gpu', '--jax_fully_async_checkpoint']
      flags += ['--exit_after_ondemand_checkpoint', f'--server_addr=localhost:{port}']
      flags += [f'--num_hosts={self._processes}']
      environment |= {
        'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo',
        'JAX_COMPILATION_CACHE_DIR': '',  # Several processes hang by it: jax 0.5.3, on a CPU.
      }
    hosts = [[f'--host_idx={i}'] if self._processes > 1 else [] for i in range(self._processes)]
    return [
      self._commands.start('laser_pax', [*flags, *host], cwd=self.folder.parent, env=environment)
      for host in hosts
    ]

  def recorded(self) -> dict[int, float]:
    """Returns the loss of each recorded step. If a step was trained twice, the last loss counts."""
    return {r['step']: r['loss'] for r in self._records() if r['kind'] == 'train'}

  def evaluations(self) -> dict[int, float]:
    """Returns the loss of each recorded evaluation."""
    return {r['step']: r['loss'] for r in self._records() if r['kind'] == 'eval'}

  def _records(self) -> Iterator[dict]:
    file = self.folder / 'progress.jsonl'
    for line in file.read_text().splitlines() if file.exists() else ():
      with contextlib.suppress(ValueError):
        yield json.loads(line)

  def whole(self) -> int | None:
    """Returns the newest checkpoint that is whole, by its checksums."""
    return checkpoints.survey(self.folder, checkpoints.damaged_files).whole

  def _best(self) -> float | None:
    """Returns the least loss of which there is a whole checkpoint."""
    figures = checkpoints.figures(self.folder)
    whole = checkpoints.damaged_files
    losses = [x for s, x in figures.items() if checkpoints.fault(self.folder, s, whole) is None]
    return min(losses, default=None)

  def finish(self, **environment: str) -> None:
    """Trains to the end, undisturbed."""
    processes = self.start(**environment)
    codes = [process.wait(3600) for process in processes]
    assert not any(codes), ''.join(p.stdout + p.stderr for p in processes)

  def live(self, disturbance: str, rng: random.Random) -> Life:
    """Runs a life to the end that a disturbance brings, and checks what must hold after it.

    Args:
      disturbance: One of `DISTURBANCES`.
      rng: Decides the moment.
    """
    before, best = self.whole(), self._best()
    clock = {'CLOCK': str(rng.choice([-1, 1]) * 10**6)} if disturbance == 'clock' else {}
    processes = self.start(**clock)
    with self._full_disk(processes) if disturbance == 'full disk' else contextlib.nullcontext():
      self._wait(processes, disturbance, before or 0, rng)
      for process in processes:  # One after the other, as hosts die.
        with contextlib.suppress(ProcessLookupError):
          process.send_signal(_SIGNALS.get(disturbance, signal.SIGKILL))
        time.sleep(rng.uniform(0, 0.5) if len(processes) > 1 else 0)
      codes = [process.wait(600) for process in processes]
    life = Life(disturbance, before or 0, max(self.recorded(), default=0), codes[0])
    self._check(life, before, processes)
    assert best is None or self._best() <= best, f'{life}: the best checkpoint was lost'
    if disturbance == 'damage':
      self._damage(rng)
    self.lives.append(life)
    return life

  def _wait(
    self, processes: Sequence[Command], disturbance: str, began: int, rng: random.Random
  ) -> None:
    """Waits for the moment: at random during the start, or after a random number of steps."""
    steps = rng.randrange(0, 4 * CHECKPOINT_STEPS)
    deadline = time.monotonic() + 200
    if disturbance == 'SIGTERM in an evaluation':
      steps = EVAL_STEPS - began % EVAL_STEPS
    if steps == 0:
      deadline = time.monotonic() + rng.uniform(0, 4)
    last = began + steps
    while time.monotonic() < deadline and all(p.poll() is None for p in processes):
      records = self.recorded()
      if steps and last in records and max(records) >= last:
        break
      time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.2))

  def _check(self, life: Life, before: int | None, processes: Sequence[Command]) -> None:
    told = '\n'.join(p.stdout + p.stderr for p in processes)
    told = f'{life}, before it {before}\n{told}'
    whole = self.whole()
    assert (whole or 0) >= (before or 0), f'a finished checkpoint was lost: {told}'
    assert 'Traceback' not in told, told
    assert _SECRET not in told, told
    if life.disturbance.startswith('SIGTERM'):
      # Before that, Python itself starts, or jax's service of several processes.
      is_begun = processes[0].stdout if len(processes) == 1 else 'the first step compiles' in told
      assert life.code in (0, jobs.SAVED_ON_DEMAND, *(() if is_begun else (-15,))), told
      if 'saved on demand' in told:  # Each step that was trained is saved.
        assert whole == [r['step'] for r in self._records() if r['kind'] == 'train'][-1], told
    if life.disturbance == 'full disk' and life.code > 0:
      assert 'error: ' in told and ('No space left' in told or 'File too large' in told), told

  @contextlib.contextmanager
  def _full_disk(self, processes: Sequence[Command]) -> Iterator[None]:
    """Fills the disk of the folder, if it is a small one; else limits the size of files."""
    usage = os.statvfs(self.folder.parent)
    free = usage.f_bavail * usage.f_frsize
    if free > 2**30:
      for process in processes:
        with contextlib.suppress(ProcessLookupError):
          subprocess.run(['prlimit', f'--pid={process.pid}', '--fsize=100000'], check=False)
      yield
      return
    ballast = self.folder.parent / 'ballast'
    with ballast.open('wb') as file:
      os.posix_fallocate(file.fileno(), 0, max(1, free - _LEFT))
    yield
    ballast.unlink()

  def _damage(self, rng: random.Random) -> None:
    """Damages the newest checkpoint, if an older one is whole."""
    newest = self.whole()
    steps = checkpoints.steps(self.folder)
    if newest is None or len(steps) < 2 or newest != steps[-1]:
      return
    folder = self.folder / 'checkpoints' / f'checkpoint_{newest:08d}'
    files = sorted(p for p in folder.rglob('*') if p.is_file() and p.stat().st_size)
    file = rng.choice(files)
    match rng.choice(['cut', 'flip', 'remove', 'empty']):
      case 'cut':
        os.truncate(file, rng.randrange(file.stat().st_size))
      case 'flip':
        content = bytearray(file.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
      case 'remove':
        file.unlink()
      case 'empty':
        file.write_bytes(b'')


_SIGNALS = {'SIGTERM': signal.SIGTERM, 'SIGTERM in an evaluation': signal.SIGTERM}
DISTURBANCES = ('SIGKILL', *_SIGNALS, 'full disk', 'damage', 'clock')


def check_no_secret(training: Training) -> None:
  """Checks that no file of a training has the token that is in its environment."""
  files = [path for path in training.folder.rglob('*') if path.is_file()]
  assert files and not [p for p in files if _SECRET.encode() in p.read_bytes()]


def check_equal(disturbed: Training, undisturbed: Training) -> None:
  """Checks that two trainings ended alike: losses, evaluations, and each array to the bit."""
  assert disturbed.recorded() == undisturbed.recorded()
  assert disturbed.evaluations() == undisturbed.evaluations()
  ends = [training.whole() for training in (disturbed, undisturbed)]
  assert ends[0] == ends[1] is not None
  lists = []
  for training in (disturbed, undisturbed):
    folder = training.folder / 'checkpoints' / f'checkpoint_{ends[0]:08d}'
    lists.append({k: v for k, v in checkpoints.checksums(folder).items() if 'state/' in k})
  assert lists[0] == lists[1]


def table(lives: Sequence[Life]) -> str:
  """Returns how often each disturbance ended a life, and with which codes, as a table."""
  rows = ['| disturbance | lives | exit codes |', '|---|---|---|']
  for name in DISTURBANCES:
    codes = collections.Counter(life.code for life in lives if life.disturbance == name)
    text = ', '.join(f'{code}: {count}' for code, count in sorted(codes.items()))
    if codes:
      rows.append(f'| {name} | {codes.total()} | {text} |')
  return '\n'.join(rows)
