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


def test_user_error_is_one_line_and_exit_code_2(monkeypatch, capsys):
  def fails():
    raise UserError('expected this, got that; do so')

  monkeypatch.setattr(cli, '_load', lambda target: fails)
  monkeypatch.delenv('LASER_PAX_TRACEBACK', raising=False)
  with pytest.raises(SystemExit) as e:
    cli.main(['list'])
  assert e.value.code == 2
  assert capsys.readouterr().err == 'error: expected this, got that; do so\n'
  monkeypatch.setenv('LASER_PAX_TRACEBACK', '1')
  with pytest.raises(UserError):
    cli.main(['list'])


def test_a_command_that_takes_any_flag_gets_them_all(monkeypatch):
  got = []

  def train(ctx: typer.Context, exp: str = ''):
    got.extend([exp, *ctx.args])

  monkeypatch.setattr(cli, '_load', lambda target: train)
  with pytest.raises(SystemExit) as e:
    cli.main(['train', '--exp=A', '--tfds_data_dir=d', '--eval_on_test', '--fdl.LR=1'])
  assert e.value.code == 0
  assert got == ['A', '--tfds_data_dir=d', '--eval_on_test', '--fdl.LR=1']
