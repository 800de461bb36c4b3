"""The root of the command line: its imports, its errors, and the flags that it passes on."""

import subprocess
import sys

import pytest
import typer

from laser_pax import cli
from laser_pax.errors import UserError


@pytest.mark.parametrize('args', [['--help'], ['trian'], []])
def test_help_is_quick_and_imports_nothing_heavy(args):
  program = (
    'import sys\nfrom laser_pax import cli\n'
    f'try:\n  cli.main({args!r})\n'
    'except SystemExit as e:\n'
    "  print(e.code, *({'tensorflow', 'paxml', 'jax'} & sys.modules.keys()), file=sys.stderr)\n"
  )
  completed = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  )
  assert completed.stderr.splitlines()[-1] == ('0' if args == ['--help'] else '2')
  if args == ['trian']:
    assert "Did you mean 'train'" in completed.stderr
  else:
    assert all(name in completed.stdout for name in ('train', 'doctor', 'quickstart'))


@pytest.mark.parametrize(
  ('error', 'line', 'code'),
  [
    (UserError('expected this, got that; do so'), 'expected this, got that; do so', 2),
    (UserError('of a name\nof two lines'), 'of a name of two lines', 2),
    (PermissionError(13, 'Permission denied', '/x/y'), '/x/y: Permission denied', 1),
    (KeyError('shape'), "KeyError: 'shape' (--traceback shows where)", 1),
    (AssertionError(), 'AssertionError: no message (--traceback shows where)', 1),
  ],
)
def test_an_error_is_one_line(monkeypatch, capsys, error, line, code):
  def fails():
    raise error

  monkeypatch.setattr(cli, '_load', lambda target: fails)
  with pytest.raises(SystemExit) as e:
    cli.main(['list'])
  assert e.value.code == code
  assert capsys.readouterr().err == f'error: {line}\n'
  with pytest.raises(SystemExit) as e:
    cli.main(['list', '--traceback'])
  lines = capsys.readouterr().err.splitlines()
  assert e.value.code == code
  assert lines[0].startswith('Traceback')
  assert lines[-1] == f'error: {line}'


def test_ctrl_c_is_told(monkeypatch, capsys):
  def stopped():
    raise KeyboardInterrupt

  monkeypatch.setattr(cli, '_load', lambda target: stopped)
  with pytest.raises(SystemExit) as e:
    cli.main(['list'])
  assert e.value.code == 130
  assert capsys.readouterr().err == 'interrupted\n'


def test_a_command_that_takes_any_flag_gets_them_all(monkeypatch):
  got = []

  def train(ctx: typer.Context, exp: str = ''):
    got.extend([exp, *ctx.args])

  monkeypatch.setattr(cli, '_load', lambda target: train)
  with pytest.raises(SystemExit) as e:
    cli.main(['train', '--exp=A', '--tfds_data_dir=d', '--eval_on_test', '--fdl.LR=1'])
  assert e.value.code == 0
  assert got == ['A', '--tfds_data_dir=d', '--eval_on_test', '--fdl.LR=1']


@pytest.mark.parametrize('closed', ['>&-', '2>&-'])
def test_a_closed_stream_is_no_failure(closed):
  command = f'"{sys.executable}" -m laser_pax list {closed}'
  completed = subprocess.run(['bash', '-c', command], capture_output=True, text=True, check=False)
  assert (completed.returncode, completed.stderr) == (0, '')
