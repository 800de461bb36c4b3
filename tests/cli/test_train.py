"""Wrong uses of `train`: one clear error, before anything is compiled."""

import gzip

import pytest

from laser_pax.cli import experiments
from laser_pax.data import sample
from laser_pax.errors import UserError


@pytest.fixture
def laser_pax(commands):
  """Returns a function that runs `python -m laser_pax`. Its keywords change the environment."""

  def run(*args, **env):
    return commands.run('laser_pax', args, env={'JAX_PLATFORMS': 'cpu', **env})

  return run


def _refused(result, *words) -> None:
  assert result.returncode in (1, 2), result.stdout + result.stderr
  errors = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
  assert len(errors) == 1, result.stderr
  assert 'Traceback' not in result.stderr + result.stdout
  for word in words:
    assert word in errors[0]


def test_unknown_experiment_suggests_near_names(laser_pax, tmp_path):
  result = laser_pax('train', '--exp=C4Lazer2B', f'--job_log_dir={tmp_path}')
  _refused(result, 'C4Lazer2B', 'C4Laser2B')
  assert not list(tmp_path.iterdir())


def test_exp_with_fdl_is_refused_with_the_form_that_works(laser_pax, tmp_path):
  result = laser_pax(
    'train', '--exp=C4LaserTiny', '--fdl.NUM_LAYERS=2', f'--job_log_dir={tmp_path}'
  )
  _refused(result, '--fdl_config=laser_pax.configs.C4LaserTiny --fdl.NUM_LAYERS=2')


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (['--exp=C4LaserTiny'], ['--job_log_dir']),
    (['--job_log_dir=x'], ['--exp']),
    (['--exp=C4LaserTiny', '--job_log_dir=x', '--num_hosts=2'], ['--multiprocess_gpu']),
    (['--exp=C4LaserTiny', '--job_log_dir=x', '--num_trials=2'], ['--study']),
    (['--exp=C4LaserTiny', '--job_log_dir=x', 'stray'], ['stray']),
    (['--fdl_config', '--job_log_dir=x'], ['--fdl_config=NAME']),
  ],
)
def test_flags_that_paxml_would_ignore_are_refused(commands, flags, words, tmp_path):
  _refused(commands.run('laser_pax', ['train', *flags], cwd=tmp_path), *words)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'owner', ['laser_pax.configs.C4StandardTiny', 'laser_pax.configs.C4LaserTiny\nfdl.NUM_LAYERS=9']
)
def test_a_folder_of_another_run_is_refused_and_kept(laser_pax, owner, tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / 'experiment.txt').write_text(owner + '\n')
  result = laser_pax('train', '--exp=C4LaserTiny', f'--job_log_dir={tmp_path}')
  _refused(result, owner.split()[-1], '--job_log_dir')
  assert (tmp_path / 'experiment.txt').read_text() == owner + '\n'


def test_a_refused_run_does_not_keep_its_folder(laser_pax, tmp_path):
  result = laser_pax('train', '--exp=C4Laser2B', f'--job_log_dir={tmp_path}')
  _refused(result, 'planned for v5p-256chips', "POD = 'cpu'")
  flags = ['--exp=C4LaserTiny', f'--data={tmp_path}/none']
  _refused(laser_pax('train', *flags, f'--job_log_dir={tmp_path}'), 'prepare c4')


def test_an_unwritable_folder_is_refused(laser_pax, tmp_path):
  (tmp_path / 'file').write_text('')
  result = laser_pax('train', '--exp=C4LaserTiny', f'--job_log_dir={tmp_path}/file/run')
  _refused(result, 'cannot write')


def test_missing_data_is_refused_with_the_command_that_makes_it(laser_pax, tmp_path):
  flags = ['--exp=C4LaserTiny', f'--job_log_dir={tmp_path}/run', f'--data={tmp_path}/none']
  _refused(laser_pax('train', *flags), f'{tmp_path}/none', 'laser_pax prepare c4')


def test_a_missing_vocabulary_is_refused_with_the_command_that_makes_it(laser_pax, tmp_path):
  flags = ['--exp=C4LaserTiny', f'--job_log_dir={tmp_path}/run', f'--vocab={tmp_path}/v.model']
  data_dir = sample.prepare_sample().data_dir
  result = laser_pax('train', *flags, LASER_PAX_DATA_DIR=data_dir)
  _refused(result, f'{tmp_path}/v.model', 'laser_pax vocab')


def test_a_truncated_file_is_refused_by_name(laser_pax, tmp_path):
  whole = gzip.compress(b'{"text": "a text that is long enough to be cut"}\n' * 100)
  (tmp_path / 'c4-train.00000-of-00001.json.gz').write_bytes(whole[: len(whole) // 2])
  result = laser_pax('prepare', 'c4', str(tmp_path), '--out', str(tmp_path / 'out'))
  _refused(result, 'c4-train.00000-of-00001.json.gz')


@pytest.mark.parametrize(
  ('override', 'words'),
  [
    ('GLOBAL_BATCH_SIZE=7', ['GLOBAL_BATCH_SIZE', '4 or 8']),
    ('NUM_HEADS=3', ['NUM_HEADS = 4']),
    ('ICI_MESH_SHAPE=[1,8,1]', ['[1, 4, 1]']),
    ('NUM_LAYER=2', ['NUM_LAYERS']),
  ],
)
def test_numbers_that_do_not_fit_are_refused(laser_pax, override, words, tmp_path):
  result = laser_pax(
    'train',
    '--fdl_config=C4LaserTiny',
    f'--fdl.{override}',
    f'--job_log_dir={tmp_path}',
    XLA_FLAGS='--xla_force_host_platform_device_count=4',
  )
  _refused(result, *words)


def test_names_resolve():
  assert experiments.full_name('C4LaserTiny') == 'laser_pax.configs.C4LaserTiny'
  assert experiments.full_name('configs.C4LaserTiny') == 'laser_pax.configs.C4LaserTiny'
  assert experiments.full_name('os.path.Mine') == 'os.path.Mine'
  with pytest.raises(UserError, match='no.such.module'):
    experiments.full_name('no.such.module.X')
