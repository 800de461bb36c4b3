"""The doctor finds each fault and names the command that mends it."""

import dataclasses
import os
import subprocess
import sys

import pytest

from laser_pax.cli import doctor
from laser_pax.data import sources
from laser_pax.data.datasets import C4
from tests.support import small_speech

_REQUIRED = {name: '1.0' for name in doctor.PINNED} | {'rich': '15.0'}
_CPU = doctor.Devices(('cpu cpu',))


@pytest.fixture
def healthy(tmp_path):
  return doctor.Environment(
    python=(3, 12),
    installed=dict(_REQUIRED),
    required=_REQUIRED,
    requirements='requirements.txt',
    has_names=False,
    environ={},
    has_tpu=False,
    has_nvidia=False,
    job_dir=tmp_path / 'new' / 'job',
  )


def _with(environment, **changes):
  return dataclasses.replace(environment, **changes)


def _with_packages(environment, **versions):
  installed = dict(environment.installed)
  for name, version in versions.items():
    installed[name.replace('_', '-')] = version
  return _with(environment, installed=installed)


def _only_wrong(findings):
  wrong = [f for f in findings if f.state == 'wrong']
  assert len(wrong) == 1, wrong
  assert wrong[0].fix and '\n' not in wrong[0].fix
  return wrong[0]


def _diagnose(environment, devices=_CPU):
  return doctor.diagnose(environment, lambda: devices)


def test_healthy_environment_has_no_finding_to_mend(healthy):
  assert all(f.state != 'wrong' for f in _diagnose(healthy))


@pytest.mark.parametrize(
  ('python', 'fine'), [((3, 10), False), ((3, 11), True), ((3, 13), True), ((3, 14), False)]
)
def test_python(healthy, python, fine):
  findings = _diagnose(_with(healthy, python=python))
  if fine:
    assert all(f.state != 'wrong' for f in findings)
  else:
    wrong = _only_wrong(findings)
    assert 'expected 3.11 to 3.13' in wrong.actual and wrong.fix == 'scripts/setup.sh'


def test_another_jax(healthy):
  wrong = _only_wrong(_diagnose(_with_packages(healthy, jax='0.6.0')))
  assert wrong.subject == 'jax' and wrong.actual == '0.6.0; expected 1.0'
  assert wrong.fix.endswith('-m pip install --no-deps --requirement requirements.txt')


def test_the_set_is_named(healthy):
  def found(**changes):
    return next(f for f in _diagnose(_with(healthy, **changes)) if f.subject == 'set')

  assert found()[1:3] == ('ok', 'pinned, requirements.txt')
  current = 'requirements-current.txt'
  assert found(requirements=current, has_names=True)[1:3] == (
    'ok',
    'current, experimental, requirements-current.txt',
  )
  wrong = found(requirements=current)
  assert wrong.state == 'wrong' and wrong.fix.endswith('-m laser_pax.pax_names')


def test_the_set_is_that_whose_jax_is_installed(monkeypatch, tmp_path):
  (jax,) = {d.version for d in doctor.importlib.metadata.distributions(name='jax')}
  (tmp_path / 'requirements-current.txt').write_text(f'jax=={jax}\nnumpy==0.1\n')
  (tmp_path / 'requirements.txt').write_text('jax==0.1\n')
  monkeypatch.setattr(doctor, '_ROOT', tmp_path)
  environment = doctor.read_environment(tmp_path)
  assert environment.requirements.endswith('requirements-current.txt')
  assert environment.required == {'jax': jax, 'numpy': '0.1'}
  (tmp_path / 'requirements-current.txt').write_text('jax==999\n')
  assert doctor.read_environment(tmp_path).requirements.endswith('requirements.txt')


@pytest.mark.parametrize('name', ['praxis', 'rich'])
def test_missing_package(healthy, name):
  installed = {k: v for k, v in healthy.installed.items() if k != name}
  wrong = _only_wrong(_diagnose(_with(healthy, installed=installed)))
  assert wrong.subject == name and 'missing' in wrong.actual and 'pip install' in wrong.fix


def test_another_version_of_a_minor_package_is_only_noted(healthy):
  findings = _diagnose(_with_packages(healthy, rich='14.0'))
  assert [f.state for f in findings if f.subject == 'rich'] == ['note']
  assert all(f.state != 'wrong' for f in findings)


@pytest.mark.parametrize('kept, stray', doctor.CLASHES)
def test_two_packages_in_one_folder(healthy, kept, stray):
  wrong = _only_wrong(_diagnose(_with_packages(healthy, **{stray: '2.0'})))
  assert kept in wrong.subject and stray in wrong.subject
  # Uninstalling one takes files of the other with it, so both go and the kept one comes again.
  assert f'uninstall --yes {stray} {kept}' in wrong.fix and 'install --no-deps' in wrong.fix


def test_libtpu_without_tpu_is_refused_and_jax_not_asked(healthy):
  def ask():
    raise AssertionError('jax would hang')

  wrong = _only_wrong(doctor.diagnose(_with_packages(healthy, libtpu='0.0.11.4'), ask))
  assert wrong.subject == 'libtpu' and wrong.fix.endswith('pip uninstall --yes libtpu')


def test_libtpu_with_tpu_is_fine(healthy):
  environment = _with(_with_packages(healthy, libtpu='0.0.11.4'), has_tpu=True)
  findings = _diagnose(environment, doctor.Devices(('tpu TPU v5p',) * 4))
  assert all(f.state != 'wrong' for f in findings)
  assert '4 x tpu TPU v5p' in [f.actual for f in findings]


def test_tpu_that_jax_does_not_use(healthy):
  wrong = _only_wrong(_diagnose(_with(healthy, has_tpu=True)))
  assert wrong.fix == 'scripts/setup.sh tpu'


def test_gpu_that_jax_does_not_use_is_noted(healthy):
  (note,) = [f for f in _diagnose(_with(healthy, has_nvidia=True)) if 'GPU' in f.actual]
  assert (note.state, note.fix) == ('note', 'scripts/setup.sh gpu')


def test_chosen_cpu_is_fine_beside_a_tpu(healthy):
  environment = _with(healthy, has_tpu=True, environ={'JAX_PLATFORMS': 'cpu'})
  assert all(f.state != 'wrong' for f in _diagnose(environment))


def test_jax_that_fails(healthy):
  wrong = _only_wrong(_diagnose(healthy, doctor.Devices((), 'jax gave no answer in 60 s')))
  assert wrong.actual == 'jax gave no answer in 60 s'


def test_jax_that_hangs_or_crashes_is_told_in_one_line(monkeypatch):
  monkeypatch.setattr(doctor, '_DEVICES_TIMEOUT_S', 0.5)
  monkeypatch.setattr(doctor, '_DEVICES_PROGRAM', 'import time; time.sleep(30)')
  assert doctor._ask_devices() == doctor.Devices((), 'jax gave no answer in 0.5 s')
  monkeypatch.setattr(doctor, '_DEVICES_TIMEOUT_S', 30)
  monkeypatch.setattr(doctor, '_DEVICES_PROGRAM', 'raise RuntimeError("no backend")')
  assert doctor._ask_devices() == doctor.Devices((), 'jax failed: RuntimeError: no backend')


def test_named_data_and_vocabulary_that_are_missing(healthy, tmp_path):
  data_dir, vocab = str(tmp_path / 'data'), str(tmp_path / 'v.model')
  environ = {sources.DATA_DIR_VARIABLE: data_dir}
  wrong = _only_wrong(_diagnose(_with(healthy, environ=environ)))
  assert wrong.subject == 'data' and f'prepare c4 SOURCE... --out {data_dir}' in wrong.fix
  wrong = _only_wrong(_diagnose(_with(healthy, environ={sources.VOCAB_VARIABLE: vocab})))
  assert wrong.subject == 'vocabulary' and f'--out {vocab}' in wrong.fix


def test_named_data_and_vocabulary_that_are_there(healthy, tmp_path):
  for split in C4.splits:
    shard = tmp_path / C4.folder / f'c4-{split}.tfrecord-00000-of-00001'
    shard.parent.mkdir(parents=True, exist_ok=True)
    shard.write_text('')
  vocab = tmp_path / 'v.model'
  vocab.write_bytes(b'')
  environ = {sources.DATA_DIR_VARIABLE: str(tmp_path), sources.VOCAB_VARIABLE: str(vocab)}
  findings = {f.subject: f for f in _diagnose(_with(healthy, environ=environ))}
  assert (findings['data'].state, findings['data'].actual) == ('ok', f'{tmp_path} (c4)')
  assert (findings['vocabulary'].state, findings['vocabulary'].actual) == ('ok', str(vocab))


def test_data_without_texts_need_no_vocabulary_of_sentencepiece(healthy, tmp_path):
  for name in ('part-00000-of-00001', 'eval_10k'):
    (tmp_path / name).write_text('')
  environ = {sources.DATA_DIR_VARIABLE: str(tmp_path)}
  findings = {f.subject: f for f in _diagnose(_with(healthy, environ=environ))}
  assert findings['data'].state == 'ok' and 'vocabulary' not in findings


def test_speech_without_the_subsets_that_are_not_used_is_prepared(healthy):
  data_dir, vocab = small_speech.prepared()  # train-clean-100 and dev-clean alone
  environ = {sources.DATA_DIR_VARIABLE: data_dir, sources.VOCAB_VARIABLE: vocab}
  findings = {f.subject: f for f in _diagnose(_with(healthy, environ=environ))}
  assert (findings['data'].state, findings['data'].actual) == ('ok', f'{data_dir} (librispeech)')


def test_no_data_at_all_is_noted_with_the_commands(healthy, monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.delenv(sources.DATA_DIR_VARIABLE, raising=False)
  findings = {f.subject: f for f in _diagnose(healthy)}
  assert findings['data'].state == findings['vocabulary'].state == 'note'
  assert 'laser_pax prepare' in findings['data'].fix
  assert 'laser_pax vocab' in findings['vocabulary'].fix


def test_job_folder_that_cannot_be_written(healthy, tmp_path):
  (tmp_path / 'file').write_text('')
  wrong = _only_wrong(_diagnose(_with(healthy, job_dir=tmp_path / 'file' / 'job')))
  assert wrong.subject == 'job folder' and '--job_log_dir=' in wrong.fix


def test_job_folder_is_not_made(healthy):
  _diagnose(healthy)
  assert not healthy.job_dir.exists()


def test_command_reports_this_environment(tmp_path):
  completed = subprocess.run(
    [sys.executable, '-m', 'laser_pax', 'doctor', f'--job_log_dir={tmp_path}'],
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'COLUMNS': '200', sources.DATA_DIR_VARIABLE: '/none'},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert completed.returncode == 1, completed.stderr
  assert 'paxml' in completed.stdout and 'cpu' in completed.stdout
  assert 'python -m laser_pax prepare c4 SOURCE... --out /none' in completed.stdout


@pytest.mark.parametrize('home', [None, '/proc/nothing'])
def test_a_cache_that_cannot_be_written_is_told(healthy, monkeypatch, home):
  """Without HOME, expanduser asks for the name of the user's id, which may have none."""
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  if home is None:
    monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
  else:
    monkeypatch.setenv('HOME', home)
    monkeypatch.setattr(
      doctor.tempfile, 'TemporaryFile', _refuse_below('/proc', doctor.tempfile.TemporaryFile)
    )
  wrong = _only_wrong(_diagnose(healthy))
  assert wrong.subject == 'cache'
  assert 'XDG_CACHE_HOME' in wrong.fix


def _refuse_below(refused, make):
  """A superuser may write everywhere, so the refusal is played."""

  def make_elsewhere(dir):
    if str(dir).startswith(refused):
      raise PermissionError(13, 'Permission denied')
    return make(dir=dir)

  return make_elsewhere


def test_names_with_brackets_are_printed_as_they_are(capsys):
  doctor._print([doctor.Finding('job folder', 'wrong', 'x[/b] [v1]', 'mend [it]')])
  out = capsys.readouterr().out
  assert 'x[/b] [v1]' in out and 'mend [it]' in out
