"""`python -m laser_pax COMMAND`: thin commands, one module each, imported when they are called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from laser_pax.errors import UserError

if TYPE_CHECKING:
  import typer


class Command(NamedTuple):
  """The place of a command, and its line in `--help`, which needs no import of the command.

  Attributes:
    target: The `module:attribute` of a function, or of a `typer.Typer` that has sub-commands.
    help: The command's line in `--help`.
    context_settings: Settings of click's context, such as `TAKES_ANY_FLAG`.
  """

  target: str
  help: str
  context_settings: dict[str, bool] | None = None


# TensorFlow only reads data here. Its messages at the start help nobody.
_QUIET_TENSORFLOW = {'TF_CPP_MIN_LOG_LEVEL': '3', 'TF_ENABLE_ONEDNN_OPTS': '0'}

# The command gets the flags that it does not define in `ctx.args`.
TAKES_ANY_FLAG = {'allow_extra_args': True, 'ignore_unknown_options': True}

COMMANDS = {
  'quickstart': Command(
    'laser_pax.cli.quickstart:quickstart', 'Train LASER and standard attention side by side.'
  ),
  'list': Command('laser_pax.cli.list:list_experiments', 'List the experiments.'),
  'show': Command('laser_pax.cli.show:show', "Show one experiment's resolved facts."),
  'aot': Command(
    'laser_pax.cli.aot:aot', 'Compile an experiment for a TPU slice, without a TPU.', TAKES_ANY_FLAG
  ),
  'train': Command(
    'laser_pax.cli.train:train', 'Train an experiment; takes every flag of paxml.', TAKES_ANY_FLAG
  ),
  'prepare': Command('laser_pax.cli.prepare:app', 'Turn raw text into data to train on.'),
  'vocab': Command('laser_pax.cli.vocab:vocab', 'Train a SentencePiece vocabulary.'),
  'doctor': Command('laser_pax.cli.doctor:doctor', 'Check the environment; say how to mend it.'),
}


def main(args: Sequence[str] | None = None) -> None:
  """Runs the command line.

  A `UserError` is printed as `error: message`, and the exit code is 2. `LASER_PAX_TRACEBACK=1`
  shows its traceback.

  Args:
    args: The words after the program's name. The default is the process's own.

  Raises:
    SystemExit: Raised always, with the command's exit code.
  """
  args = sys.argv[1:] if args is None else list(args)
  for variable, value in _QUIET_TENSORFLOW.items():
    os.environ.setdefault(variable, value)
  command_name = next((arg for arg in args if not arg.startswith('-')), None)
  try:
    _app(command_name)(args=args, prog_name='python -m laser_pax')
  except UserError as e:
    if os.environ.get('LASER_PAX_TRACEBACK') == '1':
      raise
    print(f'error: {e}', file=sys.stderr)
    sys.exit(2)


def _app(command_name: str | None) -> typer.Typer:
  """Makes an app that lists all commands and has imported only the called one."""
  import typer  # Imported here, so that other programs of this folder start fast.

  app = typer.Typer(
    help='LASER attention on PAX: experiments, data and tools.',
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
  )
  for name, command in COMMANDS.items():
    target = _load(command.target) if name == command_name else _not_imported
    if isinstance(target, typer.Typer):
      app.add_typer(target, name=name)
    else:
      one_line = command.help if target is _not_imported else None
      app.command(name, help=one_line, context_settings=command.context_settings)(target)
  return app


def _not_imported() -> None:
  """Takes the place of each command that is not called."""


def _load(target: str):
  module, _, attribute = target.partition(':')
  return getattr(importlib.import_module(module), attribute)
