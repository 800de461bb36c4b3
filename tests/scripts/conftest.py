"""A checkout with its own settings, and a cloud of folders. No test reaches the real cloud."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# The scripts have these commands alone. The real gcloud is not among them.
TOOLS = (
  'awk basename bash cat chmod cp cut date dirname env git grep gzip head ln ls mkdir mktemp mv '
  'printf rm sed seq sh sha256sum sleep sort tail tar touch tr uname wc xargs'
)
SETTINGS = {
  'NAME': 'my-pod',
  'PROJECT': 'my-project',
  'ZONE': 'my-zone',
  'POD': 'two-hosts',
  'EXPERIMENT': 'C4LaserTiny',
  'POLL_SECONDS': '1',
  'STOP_SECONDS': '120',
}


@dataclasses.dataclass
class Cloud:
  """A copied checkout, whose scripts run against stand-in slices.

  Attributes:
    folder: The folder that holds everything.
    checkout: The copy of the checkout.
    settings: The settings of tpu_pod.conf, which is written before each command.
  """

  folder: pathlib.Path
  checkout: pathlib.Path
  settings: dict[str, str]

  @property
  def env(self) -> dict[str, str]:
    return {
      'PATH': str(self.folder / 'bin'),
      'HOME': str(self.folder),
      'FAKE_CLOUD': str(self.folder),
    }

  def start(self, *words: str, output: pathlib.Path) -> subprocess.Popen:
    """Starts tpu_pod.sh. Its output goes to a file."""
    lines = [f'{name}={value}' for name, value in self.settings.items()]
    (self.checkout / 'tpu_pod.conf').write_text('\n'.join(lines) + '\n')
    with open(output, 'w') as file:
      return subprocess.Popen(
        [self.checkout / 'scripts' / 'tpu_pod.sh', *words],
        env=self.env,
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_restore_signals,
      )

  def pod(self, *words: str, code: int = 0, timeout: float = 60) -> str:
    """Runs tpu_pod.sh to its end and returns what it printed."""
    output = self.folder / 'output.txt'
    process = self.start(*words, output=output)
    try:
      exit_code = process.wait(timeout=timeout)
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      raise AssertionError(output.read_text()) from None
    assert exit_code == code, output.read_text()
    return output.read_text()

  def refused(self, *words: str) -> str:
    """Runs tpu_pod.sh, which must refuse in one line, and returns the line."""
    lines = self.pod(*words, code=1).splitlines()
    assert len(lines) == 1 and lines[0].startswith('error: '), lines
    return lines[0]

  def calls(self) -> list[list[str]]:
    """Returns the calls of gcloud so far, without the words that all calls share."""
    log = self.folder / 'calls.log'
    lines = log.read_text().splitlines() if log.exists() else []
    shared = {'compute', 'tpus', '--quiet', '--project=my-project', '--zone=my-zone'}
    return [[word for word in json.loads(line) if word not in shared] for line in lines]

  def home(self, worker: int, node: str = 'my-pod') -> pathlib.Path:
    """Returns the home folder of a host."""
    return self.folder / 'nodes' / node / str(worker)

  def newest(self, worker: int, node: str = 'my-pod') -> pathlib.Path:
    """Returns the folder of a host's newest start."""
    return max((self.home(worker, node) / 'laser_pax_jobs' / 'my-pod').iterdir())

  def pid(self, worker: int, node: str = 'my-pod') -> int:
    """Returns the recorded number of a host's training process."""
    return int((self.newest(worker, node) / 'pid').read_text().split()[0])

  def end(self) -> None:
    """Kills the training processes that still run on the hosts."""
    for file in self.folder.glob('nodes/*/*/laser_pax_jobs/*/*/pid'):
      if not (file.parent / 'exit').exists():
        with contextlib.suppress(ProcessLookupError):
          os.kill(int(file.read_text().split()[0]), signal.SIGKILL)


def _restore_signals() -> None:
  # A shell that starts the tests in the background makes them and their children ignore these
  # signals.
  for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)


def _script(path: pathlib.Path, text: str) -> None:
  path.write_text(text)
  path.chmod(0o755)


@pytest.fixture
def cloud(tmp_path):
  """A cloud with no slice yet. A slice has two hosts of two chips."""
  checkout, bin_ = tmp_path / 'checkout', tmp_path / 'bin'
  for part in ('laser_pax', 'configs', 'scripts'):
    shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns('__pycache__'))
  for file in ('pyproject.toml', *(path.name for path in ROOT.glob('requirements*.txt'))):
    shutil.copy(ROOT / file, checkout)
  subprocess.run(['git', 'init', '--quiet', checkout], check=True)
  pods = checkout / 'configs' / 'pods'
  chip = (pods / 'chips' / 'cpu.toml').read_text()
  chip = chip.replace('name = "cpu"', 'name = "cpu2"')
  chip = chip.replace(
    'chips_per_host = 1', 'chips_per_host = 2\nruntime_version = "v2-alpha-tpuv5"'
  )
  (pods / 'chips' / 'cpu2.toml').write_text(chip)
  for name, slices in {'two-hosts': 1, 'two-slices': 2}.items():
    (pods / f'{name}.toml').write_text(
      f'chip = "cpu2"  # chips/cpu2.toml\nchips = {4 * slices}\nslices = {slices}\n'
      f'hosts = {2 * slices}\naccelerator_type = "v5p-8"  # of one\n'
    )
  # This environment trains. The real setup.sh would download one.
  _script(
    checkout / 'scripts' / 'setup.sh',
    f'#!/usr/bin/env bash\nset -e\ncd "$(dirname "$0")/.."\necho "$1" >../setup_called\n'
    f'[ -e .venv ] || ln -s {sys.prefix} .venv\n',
  )
  bin_.mkdir()
  for tool in TOOLS.split():
    (bin_ / tool).symlink_to(shutil.which(tool))
  python = shutil.which(sys.executable)
  stand_in = ROOT / 'tests' / 'support' / 'stand_in_gcloud.py'
  _script(bin_ / 'gcloud', f'#!/bin/sh\nexec {python} -S {stand_in} "$@"\n')
  # A host has Google's metadata, and a Python that setup.sh accepts.
  _script(bin_ / 'curl', '#!/bin/sh\necho "$FAKE_WORKER"\n')
  _script(bin_ / 'python3.11', '#!/bin/sh\n')
  (tmp_path / 'workers').write_text('2')
  (tmp_path / 'host.json').write_text(
    json.dumps(
      {
        'PATH': str(bin_),
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
        'TF_CPP_MIN_LOG_LEVEL': '3',
      }
    )
  )
  cloud = Cloud(tmp_path, checkout, {**SETTINGS, 'JOB_LOG_DIR': str(tmp_path / 'job')})
  yield cloud
  cloud.end()


TRAINER = """
import os, pathlib, signal, sys, time

flags = dict(word[2:].partition('=')[::2] for word in sys.argv[2:])
saved = pathlib.Path(flags['job_log_dir']) / 'saved'
is_ending = []
signal.signal(signal.SIGTERM, lambda *_: is_ending.append(1))
first = int(saved.read_text()) if saved.exists() else 0
for step in range(first, int(flags['steps'])):
  print(f'step {step + 1}/{flags["steps"]}', flush=True)
  if is_ending:
    saved.write_text(str(step + 1))
    sys.exit(75)
  time.sleep(0.1)
if 'fail' in flags:
  sys.exit('error: it went wrong')
"""


# It comes before the real jax, which each check of a host would import in a second.
JAX = 'def local_device_count():\n  return 2\n'


@pytest.fixture
def quick(cloud):
  """The cloud with a trainer that only counts steps, and saves its count on SIGTERM.

  Its hosts count their chips by a stand-in for jax. test_tpu_pod_training.py has the real one.
  """
  (cloud.checkout / 'laser_pax' / '__main__.py').write_text(TRAINER)
  (cloud.checkout / 'jax.py').write_text(JAX)
  cloud.settings['TRAIN_FLAGS'] = '(--steps=600)'
  return cloud
