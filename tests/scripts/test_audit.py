"""The audit of the pins, with a stand-in for uv and pip-audit."""

import pathlib
import shutil
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / 'scripts' / 'audit.sh'
# It knows a fault of good 1.0 alone. Of `unknown` it knows nothing.
UV = f"""#!{sys.executable}
import json, os, pathlib, sys

assert sys.argv[1:4] == ['tool', 'run', 'pip-audit'], sys.argv
if os.environ.get('OFFLINE'):
  sys.exit('Traceback\\nConnectionError: no route')
value = lambda option: pathlib.Path(sys.argv[sys.argv.index(option) + 1])
pins = [line.split('==') for line in value('--requirement').read_text().splitlines()]
assert len({{name for name, _ in pins}}) == len(pins), pins
rows = []
for name, version in pins:
  row = {{'name': name, 'version': version, 'vulns': []}}
  if (name, version) == ('good', '1.0'):
    row['vulns'] = [{{'id': 'PYSEC-1', 'aliases': ['CVE-1'], 'fix_versions': ['1.1']}}]
  if name == 'unknown':
    row = {{'name': name, 'skip_reason': 'not there'}}
  rows.append(row)
value('--output').write_text(json.dumps({{'dependencies': rows, 'fixes': []}}))
sys.exit(any(row.get('vulns') for row in rows))
"""
HASH = ' \\\n    --hash=sha256:0\n'


@pytest.fixture
def audit(tmp_path):
  """Returns a function that audits requirements files with these pins, by the stand-in."""
  (tmp_path / 'scripts').mkdir()
  shutil.copy(SCRIPT, tmp_path / 'scripts')
  bin_ = tmp_path / 'bin'
  bin_.mkdir()
  (bin_ / 'uv').write_text(UV)
  (bin_ / 'uv').chmod(0o755)
  (bin_ / 'python3').symlink_to(sys.executable)

  def run(*files, **env):
    for number, pins in enumerate(files):
      text = '# Pins.\n' + ''.join(pin + HASH for pin in pins)
      (tmp_path / f'requirements-{number}.txt').write_text(text)
    env = {'PATH': f'{bin_}:/usr/bin:/bin', **env}
    command = tmp_path / 'scripts' / 'audit.sh'
    return subprocess.run([command], env=env, capture_output=True, text=True, cwd='/')

  return run


def test_each_version_of_each_platform_is_looked_up_once(audit):
  marked = "good==1.1 ; platform_machine == 'aarch64'", "other==2 ; sys_platform == 'linux'"
  result = audit(marked, ["good==1.2 ; python_full_version < '3.12'", 'other==2'])
  assert (result.returncode, result.stderr) == (0, '')
  assert result.stdout == '3 of 3 pins looked up, 0 known vulnerabilities\n'


def test_a_vulnerability_is_named(audit):
  result = audit(['good==1.0', 'good==1.1'])
  assert result.returncode == 1
  assert result.stdout.splitlines() == [
    'good 1.0: PYSEC-1 CVE-1; mended in 1.1',
    '2 of 2 pins looked up, 1 known vulnerabilities',
  ]


def test_a_pin_that_was_not_looked_up_is_no_success(audit):
  result = audit(['good==1.1', 'unknown==3'])
  assert result.returncode == 2 and result.stdout.startswith('1 of 2 pins looked up')
  assert 'error: 1 pins were not looked up (unknown, ...)' in result.stderr


def test_a_service_that_is_not_reached_is_one_line(audit):
  result = audit(['good==1.1'], OFFLINE='1')
  assert result.returncode == 2 and result.stdout == ''
  assert result.stderr == 'error: pip-audit looked nothing up: ConnectionError: no route\n'
