"""The launchers for Slurm and GKE, with stand-ins for srun, scontrol and xpk."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TOOLS = ('bash', 'dirname', 'sed')
GKE = {
  'CLUSTER': 'my-cluster',
  'PROJECT': 'my-project',
  'ZONE': 'my-zone',
  'IMAGE': 'my-image',
  'POD': 'v5p-2x64chips',
}


@pytest.fixture
def bin_(tmp_path):
  """A PATH with a few tools and the stand-ins. SRUN_CODE is srun's exit code."""
  bin_ = tmp_path / 'bin'
  bin_.mkdir()
  for tool in TOOLS:
    (bin_ / tool).symlink_to(shutil.which(tool))
  for name in ('srun', 'scontrol', 'xpk'):
    (bin_ / name).write_text(
      f'#!/bin/sh\nfor word in {name} "$@"; do echo "$word"; done >>{tmp_path}/calls\n'
      f'[ {name} = srun ] && exit "$SRUN_CODE"\nexit 0\n'
    )
    (bin_ / name).chmod(0o755)
  return bin_


def _run(bin_, script, *words, cwd=ROOT, **env):
  return subprocess.run(
    [ROOT / 'scripts' / script, *words],
    env={'PATH': str(bin_), **env},
    cwd=cwd,
    capture_output=True,
    text=True,
    stdin=subprocess.DEVNULL,
    timeout=60,
  )


def _slurm(bin_, *words, code=0):
  repository = bin_.parent / 'repository'
  (repository / '.venv' / 'bin').mkdir(parents=True, exist_ok=True)
  (repository / 'laser_pax').mkdir(exist_ok=True)
  python = repository / '.venv' / 'bin' / 'python'
  if not python.exists():
    python.symlink_to(shutil.which('true'))
  env = {'SLURM_JOB_ID': '17', 'SLURM_SUBMIT_DIR': str(repository), 'SRUN_CODE': str(code)}
  return _run(bin_, 'slurm_gpu.sh', *words, cwd='/', **env)


def _calls(bin_) -> list[str]:
  file = bin_.parent / 'calls'
  return file.read_text().splitlines() if file.exists() else []


def test_slurm_trains_one_task_a_gpu(bin_):
  completed = _slurm(bin_, '--exp=C4LaserTiny', '--job_log_dir=a folder')
  assert completed.returncode == 0, completed.stderr
  call = _calls(bin_)
  assert call[0] == 'srun' and '.venv/bin/python' in call
  assert {'--exp=C4LaserTiny', '--job_log_dir=a folder', '--multiprocess_gpu'} < set(call)
  assert {'--jax_fully_async_checkpoint', '--exit_after_ondemand_checkpoint'} < set(call)
  assert 'scontrol' not in call
  script = (ROOT / 'scripts' / 'slurm_gpu.sh').read_text()
  for option in ('gpus-per-node=8', 'ntasks-per-node=8', 'signal=TERM@300', 'requeue'):
    assert f'#SBATCH --{option}\n' in script


@pytest.mark.parametrize(('code', 'is_requeued'), [(75, True), (1, False), (137, False)])
def test_slurm_requeues_only_after_a_saved_checkpoint(bin_, code, is_requeued):
  completed = _slurm(bin_, '--exp=C4LaserTiny', code=code)
  assert (_calls(bin_)[-3:] == ['scontrol', 'requeue', '17']) == is_requeued
  assert completed.returncode == (0 if is_requeued else code)


def test_slurm_does_not_requeue_a_cancelled_job(bin_):
  (bin_ / 'srun').write_text('#!/bin/sh\nkill -TERM $PPID\nexit 75\n')
  completed = _slurm(bin_, '--exp=C4LaserTiny')
  assert completed.returncode == 75 and not _calls(bin_)


def test_slurm_refuses_wrong_use(bin_, tmp_path):
  assert 'sbatch scripts/slurm_gpu.sh' in _run(bin_, 'slurm_gpu.sh', '--exp=X').stderr
  assert 'which experiment?' in _slurm(bin_).stderr
  elsewhere = {'SLURM_JOB_ID': '17', 'SLURM_SUBMIT_DIR': str(tmp_path)}
  assert 'scripts/setup.sh gpu' in _run(bin_, 'slurm_gpu.sh', '--exp=X', **elsewhere).stderr
  assert not _calls(bin_)


@pytest.mark.parametrize('exp', [['--exp=C4Laser1B'], ['--exp', 'C4Laser1B']])
def test_gke_asks_xpk_for_the_slices_of_the_pod(bin_, exp):
  flags = [*exp, '--fdl.X=[1, 2]']
  completed = _run(bin_, 'xpk_gke.sh', 'my-run', *flags, '--dry-run', **GKE)
  assert completed.returncode == 0, completed.stderr
  call = _calls(bin_)
  assert call[:4] == ['xpk', 'workload', 'create', '--dry-run']
  options = dict(word[2:].partition('=')[::2] for word in call[4:])
  assert options['workload'] == 'my-run' and options['docker-image'] == 'my-image'
  assert options['tpu-type'] == 'v5p-128' and options['num-slices'] == '2'
  assert options['restart-on-exit-codes'] == '75' and int(options['max-restarts']) > 0
  program = (
    options['command']
    .replace('.venv/bin/python', 'printf "%s\\n"')
    .replace('cd /laser_pax', 'true')
  )
  words = subprocess.run(
    ['bash', '-c', program.replace('exec ', '')], capture_output=True, text=True, check=True
  ).stdout.splitlines()
  assert words[:3] == ['-m', 'laser_pax', 'train'] and words[3:5] == [
    '--fdl_config=C4Laser1B',
    '--fdl.X=[1, 2]',
  ]
  assert '--exit_after_ondemand_checkpoint' in words


@pytest.mark.parametrize(
  ('words', 'settings', 'expected'),
  [
    ([], {}, 'which name?'),
    (['--exp=X'], {}, 'which name?'),
    (['my-run'], {}, 'which experiment?'),
    (['my-run', '--exp=X'], {'IMAGE': ''}, 'IMAGE is not set'),
    (['my-run', '--exp=X'], {'POD': 'v9'}, 'POD is v9'),
    (['my-run', '--exp=X'], {'POD': 'cpu'}, 'no TPU slice'),
  ],
)
def test_gke_refuses_wrong_use(bin_, words, settings, expected):
  completed = _run(bin_, 'xpk_gke.sh', *words, **{**GKE, **settings})
  assert completed.returncode == 1 and not _calls(bin_)
  assert completed.stderr.startswith('error: ') and len(completed.stderr.splitlines()) == 1
  assert expected in completed.stderr


def test_gke_without_xpk_says_what_to_install(bin_):
  os.unlink(bin_ / 'xpk')
  assert 'xpk was not found' in _run(bin_, 'xpk_gke.sh', 'my-run', '--exp=X', **GKE).stderr
