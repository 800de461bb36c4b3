"""The stages of a job on a slice of stand-in hosts, with a trainer that only counts."""

import contextlib
import os
import signal
import time

import pytest


def wait_for(condition, seconds=60):
  deadline = time.time() + seconds
  while not condition():
    assert time.time() < deadline, 'it did not happen'
    time.sleep(0.05)


def _steps(cloud) -> int:
  """Returns the number of steps that the first host's newest start made."""
  return (cloud.newest(0) / 'console.log').read_text().count('step ')


def _first_step(cloud) -> str:
  """Returns the first line of the first host's newest start."""
  return (cloud.newest(0) / 'console.log').read_text().splitlines()[0]


@contextlib.contextmanager
def following(cloud):
  """Starts `train`, waits until it shows a step, and yields the process and its output."""
  output = cloud.folder / 'train.txt'
  process = cloud.start('train', output=output)
  try:
    wait_for(lambda: ' step ' in output.read_text() or process.poll() is not None)
    assert process.poll() is None, output.read_text()
    yield process, output
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def ready(quick):
  """The cloud with a slice that is set up."""
  quick.pod('create')
  quick.pod('setup')
  return quick


def test_from_create_to_delete(quick):
  quick.settings['TRAIN_FLAGS'] = '(--steps=5)'
  assert 'my-pod is ready' in quick.pod('create')
  assert 'is on every host' in quick.pod('setup')
  for worker in (0, 1):
    assert (quick.home(worker) / 'setup_called').read_text() == 'tpu\n'
  shown = quick.pod('train')
  assert [line.split()[-1] for line in shown.splitlines() if line.startswith('my-pod worker')] == [
    'writable'
  ] * 2
  assert 'done: step 5/5' in shown
  (launch,) = (quick.folder / 'job' / 'launches').iterdir()
  assert '--exp=C4LaserTiny' in launch.read_text() and 'two-hosts' in launch.read_text()
  shown = quick.pod('status')
  assert shown.count('done') == 2 and shown.count('step 5/5') == 2
  assert 'step 5/5' in quick.pod('logs', '1')
  assert 'is deleted' in quick.pod('delete')
  assert not list((quick.folder / 'nodes').iterdir())
  assert (quick.folder / 'job').exists()
  assert 'there is no slice' in quick.refused('train')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGHUP])
def test_the_job_outlives_the_command(ready, number):
  with following(ready) as (process, _):
    os.killpg(process.pid, number)  # As Ctrl-C or a closed terminal does.
    process.wait(timeout=10)
  before = _steps(ready)
  wait_for(lambda: _steps(ready) > before)


def test_a_job_that_runs_is_followed_again(ready):
  with following(ready):
    pass
  with following(ready) as (_, output):
    wait_for(lambda: 'following the job that runs' in output.read_text())
    assert 'starting' not in output.read_text()
  ready.settings['EXPERIMENT'] = 'C4StandardTiny'
  assert 'other settings' in ready.refused('train')
  assert 'runs a job' in ready.refused('setup')
  assert 'runs a job' in ready.refused('delete')


def test_stop_saves_and_train_resumes(ready):
  with following(ready) as (process, output):
    shown = ready.pod('stop')
    assert shown.count('stopped') == 2
    assert process.wait(timeout=20) == 0
    assert 'stopped, as asked' in output.read_text()
  saved = int((ready.folder / 'job' / 'saved').read_text())
  with following(ready):
    assert _first_step(ready) == f'step {saved + 1}/600'


def test_a_killed_worker_ends_the_job_with_its_name(ready):
  with following(ready) as (process, output):
    killed = time.time()
    os.kill(ready.pid(1), signal.SIGKILL)
    assert process.wait(timeout=60) == 1
    assert time.time() - killed < 60
    error = output.read_text().splitlines()[-1]
  for words in ('my-pod worker 1', 'SIGKILL', 'logs 1', 'resumes'):
    assert words in error
  assert 'failed' in ready.pod('status')
  with pytest.raises(ProcessLookupError):
    os.kill(ready.pid(0), 0)


def test_a_crash_is_shown_with_its_exit_code_and_last_line(ready):
  ready.settings['TRAIN_FLAGS'] = '(--steps=3 --fail)'
  error = ready.pod('train', code=1).splitlines()[-1]
  assert 'exit code 1' in error and 'error: it went wrong' in error


def test_a_preempted_slice_is_made_again_and_the_job_resumes(ready):
  with following(ready) as (_, output):
    processes = [ready.pid(worker) for worker in (0, 1)]
    (ready.folder / 'nodes' / 'my-pod' / 'state').write_text('PREEMPTED')
    for process in processes:  # As a preempted machine does.
      os.kill(process, signal.SIGTERM)
    wait_for(lambda: ' step ' in output.read_text().partition('making the slice anew')[2])
    saved = int((ready.folder / 'job' / 'saved').read_text())
    assert _first_step(ready) == f'step {saved + 1}/600'
  assert 'my-pod is PREEMPTED' in output.read_text()


def test_the_job_resumes_after_a_host_restarts(ready):
  with following(ready) as (_, output):
    before = ready.newest(0)
    # A machine that restarts leaves no exit code. Then the other processes fail.
    os.kill(int((ready.newest(1) / 'runner').read_text().split()[0]), signal.SIGKILL)
    for worker in (1, 0):
      os.kill(ready.pid(worker), signal.SIGKILL)
    wait_for(lambda: ' step ' in output.read_text().partition('restarted (lost)')[2])
    assert ready.newest(0) != before
  assert 'error' not in output.read_text()


def test_train_makes_a_lost_slice_again(ready):
  ready.settings['TRAIN_FLAGS'] = '(--steps=2)'
  (ready.folder / 'resources' / 'my-pod').write_text('SUSPENDED\nmy-pod\n')
  assert 'done: step 2/2' in ready.pod('train')


def test_two_slices(quick):
  quick.settings |= {'POD': 'two-slices', 'CAPACITY': 'spot'}
  quick.pod('create')
  create = next(call for call in quick.calls() if call[:2] == ['queued-resources', 'create'])
  assert {'--node-count=2', '--node-prefix=my-pod', '--spot', '--accelerator-type=v5p-8'} < set(
    create
  )
  quick.pod('setup')
  with following(quick) as (process, output):
    assert quick.pod('status').count('running') == 4
    os.kill(quick.pid(0, 'my-pod-1'), signal.SIGKILL)
    assert process.wait(timeout=120) == 1
    error = output.read_text().splitlines()[-1]
  assert 'my-pod-1 worker 0' in error and 'logs 0 1' in error
  assert 'step ' in quick.pod('logs', '0', '1')


# The checks before a start.


def test_a_host_with_other_code_is_named(ready):
  (ready.home(1) / 'laser_pax' / 'pyproject.toml').write_text('')
  error = ready.pod('train', code=1).splitlines()[-1]
  assert 'my-pod worker 1: pyproject.toml' in error and 'setup' in error
  (ready.checkout / 'new.py').write_text('')
  error = ready.pod('train', code=1).splitlines()[-1]
  assert 'my-pod worker 0: the code here is' in error and '(and 1 more' in error


def test_setup_replaces_only_its_own_files(ready):
  (ready.checkout / 'gone.py').write_text('')
  ready.pod('setup')
  (ready.checkout / 'gone.py').unlink()
  users_file = ready.home(0) / 'laser_pax' / 'users_file.txt'
  users_file.write_text('')
  ready.pod('setup')
  assert users_file.exists() and not (ready.home(0) / 'laser_pax' / 'gone.py').exists()


def test_output_of_a_run_in_the_checkout_is_no_code(ready):
  (ready.checkout / 'nohup.out').write_text('12:00:00 step 1')
  ready.settings['TRAIN_FLAGS'] = '(--steps=2)'
  assert 'done: step 2/2' in ready.pod('train')


def test_create_does_not_wait_for_a_slice_that_gcloud_refuses_to_describe(quick):
  (quick.folder / 'refuses').write_text('PERMISSION_DENIED')
  assert 'gcloud could not tell about my-pod: ' in quick.refused('create')


def test_hosts_without_the_code_are_named(quick):
  quick.pod('create')
  error = quick.refused('train')
  assert 'my-pod worker 0' in error and 'scripts/tpu_pod.sh setup' in error


def test_a_hosts_faults_are_shown_with_its_name(ready):
  ready.settings |= {'DATA_DIR': '/none', 'VOCAB': '/none.model', 'JOB_LOG_DIR': '/dev/null/job'}
  shown = ready.pod('train', code=1)
  assert shown.count('WRONG') == 4
  error = shown.splitlines()[-1]
  assert 'my-pod worker 0: no prepared data' in error and '(and 3 more' in error
  assert not list(ready.home(0).glob('laser_pax_jobs/*'))


def test_a_job_folder_that_is_not_shared_is_refused(ready):
  ready.settings['JOB_LOG_DIR'] = "'~/job'"
  error = ready.pod('train', code=1).splitlines()[-1]
  assert 'my-pod worker 1' in error and 'all hosts share' in error
  assert 'running' not in ready.pod('status')


# Wrong uses are refused in one line. None of them reaches gcloud.


@pytest.mark.parametrize(
  ('words', 'settings', 'expected'),
  [
    ([], {}, ['which command?', 'create setup train']),
    (['trian'], {}, ['unknown command trian', 'create setup train']),
    (['train', 'now'], {}, ['unexpected now']),
    (['train', '3'], {}, ['takes no numbers']),
    (['train'], {'JOB_LOG_DIR': ''}, ['JOB_LOG_DIR is missing', 'tpu_pod.conf']),
    (['train'], {'PROJECT': 'CHANGE_ME'}, ['PROJECT', "still the example's", 'tpu_pod.conf']),
    (['train'], {'JOB_DIR': 'x'}, ['JOB_DIR, which nothing reads', 'JOB_LOG_DIR']),
    (['train'], {'NAME': 'My_Pod'}, ['NAME', 'a to z', 'My_Pod']),
    (['train'], {'CAPACITY': 'cheap'}, ['on-demand, spot or reserved', 'cheap']),
    (['train'], {'POLL_SECONDS': '0'}, ['POLL_SECONDS', 'seconds']),
    (['train'], {'POD': 'v5p-512'}, ['v5p-512', 'v5p-256chips']),
    (['train'], {'POD': 'v5p-255chips'}, ['v5p-255chips', 'v5p-256chips']),
    (['train'], {'POD': 'cpu'}, ['cpu.toml', 'no TPU slice']),
    (['train', '--conf=none.conf'], {}, ['none.conf', 'tpu_pod.conf.example']),
  ],
)
def test_wrong_use_is_refused(quick, words, settings, expected):
  quick.settings |= settings
  error = quick.refused(*words)
  for word in expected:
    assert word in error
  assert not quick.calls()


def test_without_gcloud_it_says_what_to_install(quick):
  (quick.folder / 'bin' / 'gcloud').unlink()
  assert 'gcloud was not found' in quick.refused('status')


def test_the_example_names_every_setting_and_runs_when_it_is_filled_in(quick):
  example = (quick.checkout / 'scripts' / 'tpu_pod.conf.example').read_text()
  conf = quick.folder / 'mine.conf'
  conf.write_text(example)
  assert "still the example's" in quick.refused('create', f'--conf={conf}')
  conf.write_text(example.replace('CHANGE_ME', 'mine'))
  shown = quick.pod('create', '--dry-run', f'--conf={conf}')
  assert 'gcloud compute tpus' in shown


# A dry run.


@pytest.mark.parametrize(
  ('command', 'expected'),
  [
    ('create', ['+ gcloud compute tpus queued-resources describe my-pod']),
    ('setup', ['tpu-vm scp', 'my-pod:laser_pax.tgz --worker=all', 'scripts/setup.sh tpu']),
    ('train', ['check --code=', 'announce --start=', '--exp=C4LaserTiny', 'cli.host', ' status']),
    ('status', ['tpu-vm describe my-pod', '--job=my-pod status']),
    ('logs', ['--worker=0', '--job=my-pod log']),
    ('stop', ['--worker=all', '--job=my-pod stop']),
    ('delete', ['queued-resources delete my-pod --force']),
  ],
)
def test_a_dry_run_prints_the_commands_and_runs_none(quick, command, expected):
  shown = quick.pod(command, '--dry-run')
  for words in expected:
    assert words in shown
  assert not quick.calls()
  assert not (quick.folder / 'nodes').exists()


def test_overrides_make_the_train_command_take_fdl_config(quick):
  quick.settings['TRAIN_FLAGS'] = "(--fdl.NUM_LAYERS=2 '--fdl.ICI_MESH_SHAPE=[1, 4, 1]')"
  shown = quick.pod('train', '--dry-run')
  assert '--fdl_config=C4LaserTiny' in shown and '--exp=' not in shown
  assert "'--fdl.ICI_MESH_SHAPE=[1, 4, 1]'" in shown.replace("'\\''", "'")
