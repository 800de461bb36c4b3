"""`python -m laser_pax train`: paxml.main with a console that a person can read."""

import contextlib
import importlib
import importlib.util
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator
from typing import Annotated, TextIO

import typer

from laser_pax.cli import experiments, fast_import
from laser_pax.errors import UserError

_JOB_FILE = 'experiment.txt'


def train(
  ctx: typer.Context,
  exp: Annotated[
    str | None, typer.Option(help='Experiment: C4LaserTiny, laser_pax.configs.C4Laser2B, ...')
  ] = None,
  job_log_dir: Annotated[
    pathlib.Path | None,
    typer.Option('--job_log_dir', help='Folder of checkpoints, summaries, logs.'),
  ] = None,
  data: Annotated[str | None, typer.Option(help='Prepared data; over DATA_DIR.')] = None,
  vocab: Annotated[str | None, typer.Option(help='SentencePiece model; over VOCAB.')] = None,
) -> None:
  """Trains an experiment: paxml.main with a quiet console. Takes every flag of paxml as well.

  The console has one progress line, and evaluations as they come (--noeval_on_test leaves them
  out). The full logs are in JOB_LOG_DIR/logs, the steps in JOB_LOG_DIR/progress.jsonl,
  TensorBoard's summaries where PAX writes them. Run again with the same folder, it resumes.
  """
  flags = _checked_flags(exp, job_log_dir, list(ctx.args))
  name = exp or _fdl_config(flags)
  job_log_dir = pathlib.Path(job_log_dir).expanduser()
  _claim(job_log_dir, name)
  process = f'{socket.gethostname()}-{os.getpid()}'
  log = job_log_dir / 'logs' / f'train-{time.strftime("%Y%m%d-%H%M%S")}-{process}.log'
  with _output_to(log) as console:
    console.write(f'{name}: logs in {log}\n')
    try:
      _run(name, exp is not None, job_log_dir, flags, {'DATA_DIR': data, 'VOCAB': vocab}, console)
    except (UserError, KeyboardInterrupt):
      raise
    except BaseException as e:
      if isinstance(e, SystemExit) and not e.code:
        return
      import traceback

      traceback.print_exc()
      raise UserError(f'{type(e).__name__}: {_first_line(e)}; the whole of it is in {log}') from e


def _first_line(error: BaseException) -> str:
  return (str(error).strip() or 'no message').splitlines()[0]


def _checked_flags(
  exp: str | None, job_log_dir: pathlib.Path | None, flags: list[str]
) -> list[str]:
  """Refuses what paxml would ignore, or answer only after minutes.

  Raises:
    UserError: for such a flag, a missing flag, or an unknown experiment.
  """
  if stray := [f for f in flags if not f.startswith('-')]:
    raise UserError(f'unexpected argument {stray[0]!r}: flags are written --name=value')
  names = [f.lstrip('-').split('=')[0] for f in flags]
  overrides = [f for f, n in zip(flags, names, strict=True) if n.startswith('fdl.')]
  if exp and ('fdl_config' in names or 'fdl' in names):
    raise UserError('give the experiment once: --exp=NAME, or --fdl_config=NAME with overrides')
  if exp and overrides:
    full = experiments.full_name(exp)
    raise UserError(
      f'paxml ignores {overrides[0]} beside --exp; write: --fdl_config={full} {" ".join(overrides)}'
    )
  if not exp and 'fdl_config' not in names:
    raise UserError('which experiment? --exp=NAME; `python -m laser_pax list` lists them')
  experiments.full_name(exp or _fdl_config(flags))
  if job_log_dir is None:
    raise UserError('where to? --job_log_dir=DIR, a new folder or one to resume from')
  needs = {'server_addr': 'multiprocess_gpu', 'num_hosts': 'multiprocess_gpu'}
  needs |= {'host_idx': 'multiprocess_gpu', 'num_trials': 'study', 'metrics_from': 'study'}
  needs |= {'tuner_group': 'study', 'pythia_port': 'study', 'controller_mode': 'study'}
  for name in names:
    if name in needs and needs[name] not in names:
      raise UserError(f'paxml ignores --{name} without --{needs[name]}')
  return flags


def _fdl_config(flags: list[str]) -> str:
  """The experiment that --fdl_config names."""
  return next(f.split('=', 1)[1] for f in flags if f.lstrip('-').startswith('fdl_config='))


def _claim(job_log_dir: pathlib.Path, name: str) -> None:
  """Marks the folder as this experiment's.

  Raises:
    UserError: it is another experiment's, or cannot be written.
  """
  name = experiments.full_name(name)
  mark = job_log_dir / _JOB_FILE
  try:
    job_log_dir.mkdir(parents=True, exist_ok=True)
    (job_log_dir / 'logs').mkdir(exist_ok=True)
    owner = mark.read_text().strip() if mark.exists() else _owner_by_pax(job_log_dir)
    if owner and owner != name:
      raise UserError(
        f'{job_log_dir} holds a run of {owner}, not of {name}: name another --job_log_dir'
      )
    mark.write_text(name + '\n')
  except OSError as e:
    raise UserError(
      f'cannot write to --job_log_dir={job_log_dir} ({e.strerror}): name one that you may write'
    ) from e


def _owner_by_pax(job_log_dir: pathlib.Path) -> str | None:
  """The experiment of a folder that paxml.main began: the class whose attributes it wrote first."""
  written = job_log_dir / 'experiment_cls_vars.txt'
  if not written.exists():
    return None
  return next(
    (line[:-1].strip() for line in written.read_text().splitlines() if line.endswith(':')), None
  )


@contextlib.contextmanager
def _output_to(log: pathlib.Path) -> Iterator[TextIO]:
  """Sends all that this process prints, C++ included, to `log`; yields the real standard output."""
  sys.stdout.flush()
  sys.stderr.flush()
  saved = [os.dup(fd) for fd in (1, 2)]
  with open(log, 'ab', buffering=0) as file, os.fdopen(os.dup(1), 'w', buffering=1) as console:
    try:
      for fd in (1, 2):
        os.dup2(file.fileno(), fd)
      yield console
    finally:
      sys.stdout.flush()
      sys.stderr.flush()
      for fd, real in zip((1, 2), saved, strict=True):
        os.dup2(real, fd)
        os.close(real)


def _run(
  name: str,
  by_exp: bool,
  job_log_dir: pathlib.Path,
  flags: list[str],
  attributes: dict[str, str | None],
  console: TextIO,
) -> None:
  """Runs paxml.main in this process on the experiment, watched."""
  fast_import.speed_up()

  import jax
  from absl import app
  from absl import flags as absl_flags
  from fiddle import absl_flags as fiddle_flags
  from paxml import experiment_registry
  from paxml import main as paxml_main

  from laser_pax.cli import watch as watch_lib

  name = experiments.full_name(name)
  module, _, class_name = name.rpartition('.')
  experiment_cls = getattr(importlib.import_module(module), class_name)
  watch = watch_lib.Watch(console, job_log_dir)
  experiment_cls = watch_lib.watched(experiment_cls, watch)
  for attribute, value in attributes.items():
    if value is not None:
      setattr(experiment_cls, attribute, value)
  argv = ['laser_pax train', f'--job_log_dir={job_log_dir}', '--eval_on_test', *flags]
  if by_exp:
    experiment_registry.register(experiment_cls, allow_overwrite=True)
    argv.append(f'--exp={name}')
  else:
    setattr(importlib.import_module(module), class_name, experiment_cls)
  jax.config.config_with_absl()
  try:
    remaining = fiddle_flags.flags_parser(argv)
  except absl_flags.Error as e:
    raise UserError(f'{_first_line(e)}; `python -m paxml.main --helpfull` lists all flags') from e
  try:
    app.run(paxml_main.main, argv=argv, flags_parser=lambda _: remaining)
  finally:
    watch.close()
