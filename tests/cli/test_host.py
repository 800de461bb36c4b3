"""The checks of a host before a start, and its record of a run."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from laser_pax.cli import host, host_checks
from laser_pax.data.datasets import C4
from laser_pax.errors import UserError
from tests.support import small_speech

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def starts(tmp_path, monkeypatch):
  """The job's folder of starts on this host. The start named 1 is announced."""
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  host.announce('1', str(tmp_path / 'job'), 'a job')
  return tmp_path / 'starts'


def _start(starts, program, name='1'):
  return host.start(starts, name, str(starts.parent / 'job'), [sys.executable, '-c', program])


def _ended(starts):
  deadline = time.time() + 30
  while (status := host.status(starts)).state == 'running':
    assert time.time() < deadline
    time.sleep(0.05)
  return status


@pytest.mark.parametrize(
  ('program', 'state', 'code'),
  [
    ('print("well")', 'done', 0),
    ('print("well"); raise SystemExit(75)', 'saved', 75),
    ('print("well\\nI1124 00:17:01.89 1 a.py] closed"); raise SystemExit(3)', 'failed', 3),
    ('print("well", flush=True); import os; os.kill(os.getpid(), 9)', 'failed', 137),
  ],
)
def test_how_it_ended_is_remembered(starts, program, state, code):
  assert host.status(starts).state == 'none'
  assert _start(starts, program).state == 'running'
  status = _ended(starts)
  assert (status.state, status.code, status.start, status.last_line) == (state, code, '1', 'well')
  assert abs(status.ended - time.time()) < 60


SLEEPER = 'import time; print("asleep", flush=True); time.sleep(100)'


def test_a_stop_is_remembered_as_asked_for(starts):
  _start(starts, SLEEPER)
  host.end(starts, signal.SIGTERM, by_user=True)
  assert _ended(starts)[:2] == ('stopped', 143)


def test_a_job_that_runs_is_not_started_again_and_can_be_killed(starts):
  _start(starts, SLEEPER)
  with pytest.raises(UserError, match='runs already'):
    _start(starts, SLEEPER, name='2')
  host.end(starts, signal.SIGKILL, by_user=False)
  assert _ended(starts)[:2] == ('failed', 137)


def test_a_process_that_vanished_with_its_runner_is_lost(starts):
  _start(starts, SLEEPER)
  pids = []
  while len(pids) < 2:
    pids = [
      int(f.read_text().split()[0]) for f in starts.glob('1/*') if f.name in ('pid', 'runner')
    ]
  for pid in sorted(pids):  # The runner is the older one.
    os.kill(pid, signal.SIGKILL)
  assert _ended(starts).state == 'lost'
  # Another process that has the same number now does not count.
  (starts / '1' / 'pid').write_text(f'{os.getpid()} 1\n')
  assert host.status(starts).state == 'lost'
  assert host.end(starts, signal.SIGKILL, by_user=False).state == 'lost'


def test_a_start_that_was_not_announced_is_refused(starts):
  with pytest.raises(UserError, match='all hosts share'):
    _start(starts, 'pass', name='2')
  assert host.status(starts).state == 'none'


@pytest.fixture
def pods(tmp_path, monkeypatch):
  """Pods with one and with three chips a host. This machine has one device."""
  folder = tmp_path / 'pods'
  (folder / 'chips').mkdir(parents=True)
  chip = (ROOT / 'configs' / 'pods' / 'chips' / 'cpu.toml').read_text()
  for chips in (1, 3):
    text = chip.replace('per_host = 1', f'per_host = {chips}').replace('"cpu"', f'"cpu{chips}"', 1)
    (folder / 'chips' / f'cpu{chips}.toml').write_text(text)
    (folder / f'{chips}chips.toml').write_text(
      f'chip = "cpu{chips}"\nchips = {chips}\nslices = 1\nhosts = 1\n'
    )
  monkeypatch.setenv('LASER_PAX_PODS', str(folder))


def test_chips_are_counted(pods):
  assert host_checks.check_chips('1chips') == '1 cpu1'
  with pytest.raises(UserError, match='expected 3 cpu3 chips, found 1'):
    host_checks.check_chips('3chips')


def test_data_and_vocabulary_are_looked_for(tmp_path):
  from laser_pax.data import sample

  source = sample.prepare_sample()
  assert host_checks.check_data('', '') == 'the sample'
  assert host_checks.check_data(source.data_dir, source.vocab) == '4096 pieces'
  with pytest.raises(UserError, match='no prepared data: .*none'):
    host_checks.check_data(str(tmp_path / 'none'), source.vocab)
  with pytest.raises(UserError, match='no vocabulary: .*none.model'):
    host_checks.check_data(source.data_dir, str(tmp_path / 'none.model'))
  with pytest.raises(UserError, match='VOCAB is not'):
    host_checks.check_data(source.data_dir, '')
  for name in ('part-00000-of-00001', 'eval_10k'):
    (tmp_path / name).write_text('')
  assert host_checks.check_data(str(tmp_path), '') == 'wikipedia'
  # Beside others, C4 needs a vocabulary for its own jobs alone.
  shutil.copytree(pathlib.Path(source.data_dir) / C4.folder, tmp_path / C4.folder)
  assert host_checks.check_data(str(tmp_path), '') == 'c4, wikipedia; no VOCAB for c4'


def test_speech_without_the_subsets_that_are_not_used_is_prepared():
  data_dir, vocab = small_speech.prepared()  # train-clean-100 and dev-clean alone
  assert host_checks.check_data(data_dir, vocab) == '40 pieces'
  with pytest.raises(UserError, match='VOCAB is not: .* librispeech'):
    host_checks.check_data(data_dir, '')


def test_the_job_folder_is_probed_and_left_clean(tmp_path):
  folder = tmp_path / 'job'
  assert host_checks.check_job_log_dir(str(folder)) == 'writable'
  assert not list(folder.iterdir())
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot write to .*file'):
    host_checks.check_job_log_dir(str(tmp_path / 'file' / 'job'))


def test_an_error_is_one_line_of_tabs(tmp_path):
  command = [sys.executable, '-m', 'laser_pax.cli.host', '--worker=3', '--job=none', 'log']
  completed = subprocess.run(
    command, env={**os.environ, 'HOME': str(tmp_path)}, capture_output=True, text=True, check=False
  )
  assert completed.returncode == 1
  assert completed.stdout == 'laser_pax\t3\terror\tnothing was started on this host\n'
