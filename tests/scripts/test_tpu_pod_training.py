"""Two stand-in hosts train, are stopped, killed and resumed, and give one process's losses."""

import json
import os
import re
import signal
import socket
import subprocess
import time

import pytest

from tests.support.commands import QUICK_COMPILE

STEPS = 20
FLAGS = [
  f'--fdl.NUM_TRAIN_STEPS={STEPS}',
  '--fdl.WARMUP_STEPS=4',
  '--fdl.LEARNING_RATE=1e-3',
  '--fdl.NUM_LAYERS=1',
  '--fdl.MODEL_DIMS=64',
  '--fdl.HIDDEN_DIMS=64',
  '--fdl.SEQ_LEN=32',
  '--noeval_on_test',
]


def _losses(folder) -> dict[int, float]:
  """Returns each step's loss. If a step was trained twice, the last loss counts."""
  file = folder / 'progress.jsonl'
  lines = file.read_text().splitlines() if file.exists() else []
  records = [json.loads(line) for line in lines if line.endswith('}')]
  return {record['step']: record['loss'] for record in records if record['kind'] == 'train'}


def _free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def _host(index: int | str, hosts: int | str, port: int) -> dict[str, str]:
  """Returns the environment of a host of two chips. jax finds the other hosts as under Slurm."""
  address = f'127.0.0.1:{port}'
  return {
    'XLA_FLAGS': f'--xla_force_host_platform_device_count=2 {QUICK_COMPILE}',
    'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo',
    # Programs of several processes hang if they come from the cache: jax 0.5.3, on a CPU.
    'JAX_COMPILATION_CACHE_DIR': '',
    'JAX_COORDINATOR_ADDRESS': address,
    'JAX_COORDINATOR_BIND_ADDRESS': address,
    'SLURM_JOB_ID': '1',
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_NTASKS': str(hosts),
    'SLURM_PROCID': str(index),
    'SLURM_LOCALID': str(index),
  }


@pytest.fixture
def ready(cloud, commands, source):
  """The cloud with a slice that is set up. Its hosts train in forked processes."""
  hosts = cloud.folder / 'host.json'
  environment = json.loads(hosts.read_text()) | _host('{index}', '{hosts}', _free_port())
  hosts.write_text(json.dumps(environment))
  python = '.venv/bin/python'
  (cloud.checkout / 'scripts' / 'setup.sh').write_text(
    '#!/usr/bin/env bash\nset -e\ncd "$(dirname "$0")/.."\n'
    f'mkdir -p .venv/bin; [ -e {python} ] || ln -s {commands.python} {python}\n'
  )
  flags = ' '.join(FLAGS)
  cloud.settings |= {
    'DATA_DIR': source.data_dir,
    'VOCAB': source.vocab,
    'TRAIN_FLAGS': f'({flags})',
  }
  cloud.pod('create')
  cloud.pod('setup')
  return cloud


def _train_until(cloud, condition, name: str) -> subprocess.Popen:
  """Starts or resumes the job, and waits for a condition. The output goes to NAME.txt."""
  output = cloud.folder / f'{name}.txt'
  process = cloud.start('train', output=output)
  deadline = time.time() + 300
  while not condition(output.read_text()):
    assert process.poll() is None, output.read_text()
    assert time.time() < deadline, output.read_text()
    time.sleep(0.05)
  return process


def _console(cloud) -> str:
  """Returns what the first host's training has printed."""
  files = cloud.folder.glob('nodes/*/0/laser_pax_jobs/*/*/console.log')
  return ''.join(file.read_text() for file in files)


def _train(commands, source, folder, hosts: list[dict]) -> dict[int, float]:
  """Trains in a process for each environment, and returns the losses."""
  args = ['train', '--fdl_config=C4LaserTiny', *FLAGS, f'--job_log_dir={folder}']
  args += [f'--data={source.data_dir}', f'--vocab={source.vocab}']
  if len(hosts) > 1:
    args += ['--jax_fully_async_checkpoint']  # PAX then asks jax for the other hosts.
  for command in [commands.start('laser_pax', args, env=env) for env in hosts]:
    assert command.wait() == 0, command.stdout + command.stderr
  return _losses(folder)


def _one_process(commands, source, folder) -> dict[int, float]:
  """Returns the losses of the same training in one process with the same number of devices."""
  env = {'XLA_FLAGS': f'--xla_force_host_platform_device_count=4 {QUICK_COMPILE}'}
  return _train(commands, source, folder, [env])


def _assert_same(losses: dict[int, float], expected: dict[int, float]) -> None:
  assert losses.keys() == expected.keys() == set(range(1, STEPS + 1))
  assert max(abs(losses[step] - expected[step]) for step in losses) < 1e-5


@pytest.mark.slow
def test_two_hosts_train_as_one_through_a_stop_and_a_kill(ready, commands, source, tmp_path):
  job = tmp_path / 'job'
  # SIGTERM comes while the first step compiles, because the steps are too quick for a test. The
  # follower may show that line only after them.
  process = _train_until(ready, lambda _: 'starting of' in _console(ready), 'stopped')
  shown = ready.pod('stop', timeout=180)
  assert process.wait(timeout=60) == 0
  assert len(re.findall(r'stopped +75 .*saved on demand', shown)) == 2, shown
  saved = max(_losses(job))
  assert saved < STEPS and (job / 'checkpoints' / f'checkpoint_{saved:08}').exists()

  process = _train_until(ready, lambda _: max(_losses(job)) > saved, 'killed')
  killed = time.time()
  os.kill(ready.pid(1), signal.SIGKILL)
  assert process.wait(timeout=60) == 1
  assert time.time() - killed < 60
  error = (tmp_path / 'killed.txt').read_text().splitlines()[-1]
  assert 'my-pod worker 1 ended with SIGKILL' in error

  shown = ready.pod('train', timeout=300)
  assert shown.splitlines()[-1].partition('done: ')[2].startswith(f'step {STEPS}/{STEPS}')

  _assert_same(_losses(job), _one_process(commands, source, tmp_path / 'one'))
