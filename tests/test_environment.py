"""The requirements files agree with pyproject.toml, and the setup script refuses wrong uses."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_ROOT = pathlib.Path(__file__).parents[1]
_FILES = (
  'requirements.txt',
  'requirements-tpu.txt',
  'requirements-gpu.txt',
  'requirements-eval.txt',
  'requirements-dev.txt',
)
_CURRENT, _ARM = 'requirements-current.txt', 'requirements-arm.txt'
_PYTHONS = ('3.11', '3.12', '3.13')
_PROJECT = tomllib.loads((_ROOT / 'pyproject.toml').read_text())
_GROUPS = _PROJECT['dependency-groups']
_LINUX = {'sys_platform': 'linux', 'platform_machine': 'x86_64'}


def _blocks(file):
  """Returns the requirements of a file, each with its hashes."""
  text = (_ROOT / file).read_text().replace('\\\n', ' ')
  return [line for line in text.splitlines() if line and not line.startswith('#')]


def _versions(file, python='3.11', machine=_LINUX):
  environment = machine | {'python_version': python, 'python_full_version': f'{python}.0'}
  versions = {}
  for block in _blocks(file):
    requirement = Requirement(block.split(' --hash')[0].strip())
    if requirement.marker is None or requirement.marker.evaluate(environment):
      name = canonicalize_name(requirement.name)
      assert name not in versions, f'{file} has {name} twice for Python {python}'
      versions[name] = str(requirement.specifier).removeprefix('==')
  return versions


def _unconditional(requirements):
  return [r for r in map(Requirement, requirements) if not r.marker]


@pytest.mark.parametrize('file', [*_FILES, _CURRENT, _ARM])
def test_file_holds_names_versions_and_hashes_alone(file):
  lines = (_ROOT / file).read_text().splitlines()
  assert lines[0].startswith('#') and '--no-deps' in lines[0] and 'pins cannot be met' in lines[0]
  assert len(_blocks(file)) > 100
  for block in _blocks(file):
    assert re.fullmatch(
      r'[a-z0-9._-]+(\[[a-z0-9_,-]+\])?==[\w.+!]+( ; [^@:/]+?)?(\s+--hash=sha256:[0-9a-f]{64})+',
      block,
    ), block


@pytest.mark.parametrize('python', _PYTHONS)
@pytest.mark.parametrize('file', _FILES)
def test_file_satisfies_pyproject(file, python):
  versions = _versions(file, python)
  direct = _unconditional(_PROJECT['project']['dependencies'])
  direct += _unconditional(_PROJECT['project']['optional-dependencies']['pax'])
  direct += _unconditional(_PROJECT['tool']['uv']['override-dependencies'])
  if file == 'requirements-dev.txt':
    direct += _unconditional(r for r in _GROUPS['dev'] if isinstance(r, str))
  if file in ('requirements-dev.txt', 'requirements-eval.txt'):
    direct += _unconditional(_GROUPS['eval'])
  for requirement in direct:
    version = versions.get(canonicalize_name(requirement.name))
    assert version and requirement.specifier.contains(version), f'{requirement}: {version}'


@pytest.mark.parametrize('file', _FILES)
def test_file_omits_the_packages_that_the_overrides_drop(file):
  dropped = [
    r.name
    for r in map(Requirement, _PROJECT['tool']['uv']['override-dependencies'])
    if r.marker and 'python_version' in str(r.marker)
  ]
  assert 'tfds-nightly' in dropped and 'tensorflow' in dropped
  assert not set(dropped) & _versions(file).keys()


@pytest.mark.parametrize('python', _PYTHONS)
def test_files_differ_only_in_packages_for_their_machine(python):
  base, tpu, gpu, evaluation, dev = (_versions(file, python) for file in _FILES)
  for versions in (tpu, gpu, evaluation, dev):
    assert base.items() <= versions.items()
  assert evaluation.items() <= dev.items()
  jax = base['jax']
  assert all(jax in v for v in _PROJECT['project']['optional-dependencies']['tpu'])
  assert all(jax in v for v in _PROJECT['project']['optional-dependencies']['cuda'])
  assert 'libtpu' in tpu and 'libtpu' not in base | gpu | dev
  assert 'lm-eval' in evaluation and 'lm-eval' not in base | tpu | gpu
  assert 'torch' not in dev
  assert gpu['jax-cuda12-plugin'] == gpu['jax-cuda12-pjrt'] == jax
  assert {'pytest', 'ruff'} <= dev.keys()


@pytest.mark.parametrize('python', _PYTHONS)
def test_the_current_set_is_dev_with_other_versions(python):
  current, dev = _versions(_CURRENT, python), _versions('requirements-dev.txt', python)
  overrides = map(Requirement, _PROJECT['tool']['laser_pax']['current-override-dependencies'])
  expected = {
    r.name: r.specifier
    for r in overrides
    if r.marker is None or r.marker.evaluate({'python_version': python})
  }
  assert {'jax', 'jaxlib', 'flax', 'optax', 'numpy'} == expected.keys()
  for name, specifier in expected.items():
    assert specifier.contains(current[name]) and current[name] != dev[name], name
  same = ('paxml', 'praxis', 'orbax-checkpoint', 'tensorflow-cpu', 'tensorflow-text', 'seqio')
  assert {name: current[name] for name in same} == {name: dev[name] for name in same}
  assert {
    r.name for r in _unconditional(r for r in _GROUPS['dev'] if isinstance(r, str))
  } <= current.keys()
  assert 'libtpu' not in current


@pytest.mark.parametrize('python', _PYTHONS)
@pytest.mark.parametrize(
  'machine',
  [
    {'sys_platform': 'linux', 'platform_machine': 'aarch64'},
    {'sys_platform': 'darwin', 'platform_machine': 'arm64'},
  ],
)
def test_the_file_for_arm_has_what_pax_needs_but_lingvo(python, machine):
  arm, cpu = _versions(_ARM, python, machine), _versions('requirements.txt', python)
  assert not _versions(_ARM, python)  # Nothing of it is for x86-64.
  assert arm['tensorflow'] == cpu['tensorflow-cpu'] and 'tensorflow-cpu' not in arm
  assert 'lingvo' not in arm and 'lingvo' in cpu
  same = [r.name for r in _unconditional(_PROJECT['tool']['uv']['override-dependencies'])]
  for name in {canonicalize_name(name) for name in same} - {'lingvo', 'tensorflow-cpu'}:
    assert arm[name].split('.')[:2] == cpu[name].split('.')[:2] or name == 'tensorstore', name


@pytest.mark.slow
def test_no_compiled_file_of_lingvo_is_loaded():
  """So lingvo's wheel for Linux x86-64 serves where its compiled files cannot be loaded."""
  program = 'import sys, paxml.main; print(sorted(m for m in sys.modules if "lingvo" in m)); '
  program += 'print([l for l in open("/proc/self/maps") if "lingvo" in l])'
  completed = subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', program], capture_output=True, text=True, cwd=_ROOT
  )
  modules, maps = completed.stdout.splitlines()[-2:]
  assert 'lingvo.core.nested_map' in modules and maps == '[]'


# These tests run a copy of the script with a false Python, which never installs anything.


@pytest.fixture
def clone(tmp_path):
  clone = tmp_path / 'clone'
  (clone / 'scripts').mkdir(parents=True)
  shutil.copy(_ROOT / 'scripts' / 'setup.sh', clone / 'scripts')
  for file in (*_FILES, _CURRENT, 'pyproject.toml'):
    shutil.copy(_ROOT / file, clone)
  return clone


def _setup(clone, *args, path=None):
  return subprocess.run(
    [clone / 'scripts' / 'setup.sh', *args],
    env={'PATH': path or os.environ['PATH'], 'HOME': str(clone)},
    capture_output=True,
    text=True,
    stdin=subprocess.DEVNULL,
    timeout=60,
  )


def test_setup_refuses_an_unknown_kind(clone):
  completed = _setup(clone, 'npu')
  assert completed.returncode == 1
  assert completed.stderr == "error: expected cpu, tpu, gpu, eval, dev or current, got 'npu'\n"


def test_setup_leaves_a_foreign_venv_alone(clone):
  (clone / '.venv').mkdir()
  (clone / '.venv' / 'precious').write_text('mine')
  completed = _setup(clone)
  assert completed.returncode == 1 and 'mv .venv .venv.old' in completed.stderr
  assert [f.name for f in (clone / '.venv').iterdir()] == ['precious']


def test_setup_without_a_usable_python(clone, tmp_path):
  tools = tmp_path / 'bin'
  tools.mkdir()
  for tool in ('bash', 'dirname', 'env', 'uname', 'cat', 'sha256sum', 'grep', 'mkdir'):
    (tools / tool).symlink_to(shutil.which(tool))
  old = tools / 'python3'
  old.write_text('#!/bin/sh\necho Python 3.9.2\nexit 1\n')
  old.chmod(0o755)
  completed = _setup(clone, path=str(tools))
  assert completed.returncode == 1
  assert 'Python 3.11, 3.12 or 3.13' in completed.stderr and '3.9.2' in completed.stderr
  assert 'apt-get install' in completed.stderr and not (clone / '.venv').exists()


def test_setup_does_nothing_when_nothing_changed(clone, tmp_path):
  """The false Python only counts the calls that install."""
  tools = tmp_path / 'bin'
  tools.mkdir()
  log = tmp_path / 'log'
  uv = f'#!/bin/sh\necho uv >>{log}\n'
  (tools / 'python3.11').write_text(
    f"""#!/bin/sh
case "$*" in
  --version) echo Python 3.11.0 ;;
  *'-m venv'*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *'-m pip install'*) uv=$(dirname "$0")/uv; printf '{uv.strip()}\\n' >"$uv"; chmod +x "$uv" ;;
  *laser_pax.pax_names*) echo names >>{log} ;;
esac
"""
  )
  (tools / 'python3.11').chmod(0o755)
  shutil.copy(tools / 'python3.11', tools / 'python3.12')
  path = f'{tools}:{os.environ["PATH"]}'

  def installations(*args):
    log.write_text('')
    completed = _setup(clone, *args, path=path)
    assert completed.returncode == 0, completed.stderr
    return len(log.read_text().splitlines())

  assert installations() == 2  # The requirements, then the project.
  assert installations() == 0
  assert installations('dev') == 2
  assert installations('dev') == installations('cpu') == 0
  with open(clone / 'requirements.txt', 'a') as f:
    f.write('# changed\n')
  assert installations('cpu') == 2
  assert installations('dev') == 2
  assert not (clone / '.venv-current').exists()
  assert installations('current') == 3  # It also writes the file that restores the names.
  assert (clone / '.venv-current').exists()
  assert installations('current') == installations('dev') == 0


def test_package_imports_neither_tensorflow_nor_paxml():
  program = 'import sys, laser_pax.cli, laser_pax; print(*sys.modules)'
  completed = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True, cwd=_ROOT
  )
  assert not {'tensorflow', 'paxml', 'praxis', 'jax'} & set(completed.stdout.split())
