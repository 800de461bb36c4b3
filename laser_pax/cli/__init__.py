"""`python -m laser_pax COMMAND`: thin commands, one module each, imported when they are called."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from laser_pax import pax_names
from laser_pax.errors import UserError, require_pax

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

_INTERRUPTED = 128 + signal.SIGINT
_PROGRAM = 'python -m laser_pax'
# The flag that shows tracebacks, of any command.
TRACEBACK = '--traceback'

COMMANDS = {
  'quickstart': Command(
    'laser_pax.cli.quickstart:quickstart', 'Train LASER and standard attention side by side.'
  ),
  'list': Command('laser_pax.cli.list:list_experiments', 'List the experiments.'),
  'show': Command('laser_pax.cli.show:show', "Show one experiment's resolved facts."),
  'aot': Command(
    'laser_pax.cli.aot:aot', 'Compile an experiment for a TPU slice, without a TPU.', TAKES_ANY_FLAG
  ),
  'bench': Command(
    'laser_pax.cli.bench:bench', "Time two experiments on this machine's devices.", TAKES_ANY_FLAG
  ),
  'train': Command(
    'laser_pax.cli.train:train', 'Train an experiment; takes every flag of paxml.', TAKES_ANY_FLAG
  ),
  'checkpoints': Command(
    'laser_pax.cli.checkpoints:list_checkpoints',
    "List a training's checkpoints; compare their checksums.",
  ),
  'replay': Command(
    'laser_pax.cli.replay:replay', 'Compute a step of a training again.', TAKES_ANY_FLAG
  ),
  'sweep': Command('laser_pax.cli.sweep:sweep', 'Train the points of a search space.'),
  'eval': Command('laser_pax.cli.eval:evaluate', "Run lm_eval's tasks on a trained decoder."),
  'analyse': Command(
    'laser_pax.cli.analyse:analyse', 'Measure what the attention of trained jobs does.'
  ),
  'report': Command('laser_pax.cli.report:report', 'Write one page about trained jobs.'),
  'scaling': Command(
    'laser_pax.cli.scaling:scaling', 'Fit power laws of the loss in the parameters.'
  ),
  'generate': Command(
    'laser_pax.cli.generate:generate', "Continue texts with a trained decoder's words."
  ),
  'export': Command(
    'laser_pax.cli.export:export', 'Export a decoder: safetensors, NumPy, transformers.'
  ),
  'import-weights': Command(
    'laser_pax.cli.export:import_weights', 'Make a checkpoint of exported weights.'
  ),
  'prepare': Command('laser_pax.cli.prepare:app', 'Turn raw text into data to train on.'),
  'vocab': Command('laser_pax.cli.vocab:vocab', 'Train a vocabulary, SentencePiece or WordPiece.'),
  'doctor': Command('laser_pax.cli.doctor:doctor', 'Check the environment; say how to mend it.'),
}


def main(args: Sequence[str] | None = None) -> None:
  """Runs the command line. Whatever fails is told in one line, `error: message`.

  The flag `--traceback`, anywhere among the words, also shows where an error was raised.

  Args:
    args: The words after the program's name. The default is the process's own.

  Raises:
    SystemExit: Raised always, with the command's exit code: 2 after a mistake of the user, and 1
      after any other failure.
  """
  args = sys.argv[1:] if args is None else list(args)
  with_traceback = TRACEBACK in args
  args = [arg for arg in args if arg != TRACEBACK]
  for variable, value in _QUIET_TENSORFLOW.items():
    os.environ.setdefault(variable, value)
  for name in ('stdout', 'stderr'):
    if getattr(sys, name) is None:  # It was closed before the start.
      setattr(sys, name, open(os.devnull, 'w'))  # noqa: SIM115
    # A path may have characters that the locale lacks.
    getattr(sys, name).reconfigure(errors='backslashreplace')
  try:
    sys.exit(_run(args))
  except BrokenPipeError:  # The reader of a pipe, such as `head`, has left.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    sys.exit(_INTERRUPTED)
  except Exception as e:
    if with_traceback:
      traceback.print_exc()
    message, code = _explain(e)
    print(f'error: {message}', file=sys.stderr)
    sys.exit(code)


def _run(args: list[str]) -> int:
  """Runs the command, and returns its exit code."""
  command_name = next((arg for arg in args if not arg.startswith('-')), None)
  # `doctor` says more of a damaged environment. The light install lacks typer, and so a doctor.
  if command_name != 'doctor' or importlib.util.find_spec('typer') is None:
    require_pax()
  pax_names.restore_before_pax()
  code = _app(command_name)(args or ['--help'], prog_name=_PROGRAM, standalone_mode=False)
  if code == _INTERRUPTED:  # typer has caught Ctrl-C.
    raise KeyboardInterrupt
  return (code or 0) if args else 2


def _explain(error: Exception) -> tuple[str, int]:
  """Returns an error in one line, and the exit code."""
  error = getattr(error, 'proxy_base_exception', error)  # Fiddle adds the whole configuration.
  if isinstance(error, UserError):
    return ' '.join(str(error).split()), 2
  from typer import exceptions

  from laser_pax import folders

  if isinstance(error, exceptions.TyperException):
    context = getattr(error, 'ctx', None)
    program = context.command_path if context else _PROGRAM
    what = error.format_message().rstrip('.?')
    message, code = f'{what}; `{program} --help` lists what it takes', 2
  elif reason := folders.storage_failure(error):
    name = getattr(error, 'filename', None)
    where = f'{folders.shown(name)}: ' if isinstance(name, str | bytes) else ''
    message, code = f'{where}{reason}', 1
  else:
    message = f'{type(error).__name__}: {str(error) or "no message"} ({TRACEBACK} shows where)'
    code = 1
  return ' '.join(message.split()), code


def _app(command_name: str | None) -> typer.Typer:
  """Makes an app that lists all commands and has imported only the called one."""
  import typer  # Imported here, so that other programs of this folder start fast.

  app = typer.Typer(
    help='LASER attention on PAX: experiments, data and tools.',
    add_completion=False,
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
