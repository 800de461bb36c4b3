"""`python -m laser_pax train`: paxml.main with a console that a person can read."""

import contextlib
import functools
import importlib
import os
import pathlib
import re
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Annotated, TextIO

import typer

from laser_pax.cli import experiments, fast_import
from laser_pax.data import paths
from laser_pax.errors import UserError

# The exit code of a run that SIGTERM ended after it had saved a checkpoint: run it again. The name
# in sysexits.h is EX_TEMPFAIL.
SAVED_ON_DEMAND = 75

# How jax.distributed notices a process that is gone, so that the others end too: every so many
# seconds each tells that it lives, and so many times may be missed. jax's own are 10 and 10.
HEARTBEAT_SECONDS = 5
MISSED_HEARTBEATS = 6


def train(
  ctx: typer.Context,
  exp: Annotated[
    str | None, typer.Option(help='Experiment: C4LaserTiny, laser_pax.configs.C4Laser2B, ...')
  ] = None,
  job_log_dir: Annotated[
    str | None, typer.Option('--job_log_dir', help='Folder of checkpoints, summaries and logs.')
  ] = None,
  data: Annotated[str | None, typer.Option(help='Prepared data; over DATA_DIR.')] = None,
  vocab: Annotated[str | None, typer.Option(help='SentencePiece model; over VOCAB.')] = None,
  profile: Annotated[
    str | None, typer.Option(help='Steps to trace, START:STOP, into JOB_LOG_DIR/profile.')
  ] = None,
) -> None:
  """Trains an experiment: paxml.main with a quiet console. Takes every flag of paxml as well.

  The console has one progress line, and evaluations as they come (--noeval_on_test leaves them
  out). Full logs are in JOB_LOG_DIR/logs, each step's loss in JOB_LOG_DIR/progress.jsonl, and
  TensorBoard's summaries where PAX writes them. Run again with the same folder, it resumes. Where
  JOB_LOG_DIR is a bucket, logs and progress.jsonl stay on this host, in ~/.cache/laser_pax/runs.

  With --exit_after_ondemand_checkpoint and --jax_fully_async_checkpoint, on hosts of a TPU slice or
  under Slurm, SIGTERM to any process saves a checkpoint and ends all of them with exit code 75.
  """
  flags = _checked_flags(exp, job_log_dir, list(ctx.args))
  name = experiments.full_name(exp or _fdl_config(flags))
  overrides = [f.lstrip('-') for f in flags if f.lstrip('-').startswith('fdl.')]
  mark = paths.job_mark(name, [override.removeprefix('fdl.') for override in overrides])
  local = _open_folder(job_log_dir, mark)
  process = f'{socket.gethostname()}-{os.getpid()}'
  log = local / 'logs' / f'train-{time.strftime("%Y%m%d-%H%M%S")}-{process}.log'
  with _output_to(log) as console:
    console.write(f'{name}: logs in {log}\n')
    try:
      _run(name, exp is not None, job_log_dir, local, mark, flags, data, vocab, profile, console)
    except (UserError, KeyboardInterrupt):
      raise
    except SystemExit as e:
      if e.code == SAVED_ON_DEMAND:
        console.write('a checkpoint was saved on demand; run again to go on from there\n')
      elif e.code:
        console.write(f'stopped with code {e.code}; the reason is at the end of {log}\n')
      raise
    except BaseException as e:
      traceback.print_exc()
      raise UserError(f'{type(e).__name__}: {_first_line(e)}; the whole of it is in {log}') from e


def _first_line(error: BaseException) -> str:
  return (str(error).strip() or 'no message').splitlines()[0]


def _checked_flags(exp: str | None, job_log_dir: str | None, flags: list[str]) -> list[str]:
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
  for flag in flags:
    if flag.lstrip('-').startswith('fdl_config='):
      return flag.split('=', 1)[1]
  raise UserError('which experiment? --fdl_config=NAME, in one word')


def _open_folder(job_log_dir: str, run: str) -> pathlib.Path:
  """Makes the job's folder, and returns the folder for logs, which is local.

  Args:
    job_log_dir: The job's folder.
    run: What marks it: the experiment's name, then its overrides, one a line.

  Raises:
    UserError: the folder holds another run, or cannot be written.
  """
  from etils import epath

  folder = epath.Path(job_log_dir).expanduser()
  mark = folder / paths.JOB_MARK
  if '://' in job_log_dir:
    local = paths.cache_dir() / 'runs' / re.sub(r'\W+', '-', job_log_dir)
  else:
    local = pathlib.Path(folder)
  with _writing_to(job_log_dir):
    folder.mkdir(parents=True, exist_ok=True)
    (local / 'logs').mkdir(parents=True, exist_ok=True)
    # A run that was refused before it saved anything holds no folder.
    owner = mark.read_text().strip() if mark.exists() else run
    if owner != run and (folder / 'checkpoints').exists():
      raise UserError(
        f'{job_log_dir} holds a run of {" ".join(owner.split())}, not of '
        f'{" ".join(run.split())}: name another --job_log_dir, or, to go on from there '
        f'nevertheless, edit {mark}'
      )
  return local


def _mark_folder(job_log_dir: str, run: str) -> None:
  """Marks the job's folder as this run's, unless it is; of several processes the first does.

  Raises:
    UserError: the folder cannot be written.
  """
  import jax
  from etils import epath

  if jax.process_index() > 0:
    return
  mark = epath.Path(job_log_dir).expanduser() / paths.JOB_MARK
  with _writing_to(job_log_dir):
    # Not written again at each resumption, while other processes read it.
    if not mark.exists() or mark.read_text().strip() != run:
      mark.write_text(run + '\n')


def _mark_when_validated(experiment_cls: type, job_log_dir: str, run: str) -> None:
  """Has PAX mark the job's folder when it knows which process this is, so at the validation."""
  validate = experiment_cls.validate

  def validate_marked(self) -> None:
    _mark_folder(job_log_dir, run)
    validate(self)

  experiment_cls.validate = validate_marked


def _notice_lost_processes() -> None:
  """Lets jax.distributed end a job within a minute of losing a process.

  `jax.distributed.initialize`, which paxml calls, has no argument for it.
  """
  from jax._src import distributed

  state = distributed.global_state
  state.initialize = functools.partial(
    state.initialize,
    service_heartbeat_interval_seconds=HEARTBEAT_SECONDS,
    service_max_missing_heartbeats=MISSED_HEARTBEATS,
    client_heartbeat_interval_seconds=HEARTBEAT_SECONDS,
    client_max_missing_heartbeats=MISSED_HEARTBEATS,
  )


@contextlib.contextmanager
def _writing_to(job_log_dir: str) -> Iterator[None]:
  """Tells a failure to write in the terms of --job_log_dir."""
  try:
    yield
  except OSError as e:
    reason = e.strerror or type(e).__name__
    raise UserError(
      f'cannot write to --job_log_dir={job_log_dir} ({reason}): name one that you may write'
    ) from e


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
  job_log_dir: str,
  local: pathlib.Path,
  mark: str,
  flags: list[str],
  data: str | None,
  vocab: str | None,
  profile: str | None,
  console: TextIO,
) -> None:
  """Runs paxml.main in this process on the experiment, watched."""
  fast_import.speed_up()

  import jax
  from absl import app
  from absl import flags as absl_flags
  from fiddle import absl_flags as fiddle_flags
  from paxml import executors, experiment_registry
  from paxml import main as paxml_main

  from laser_pax.cli import profile as profile_lib
  from laser_pax.cli import watch as watch_lib

  module, _, class_name = name.rpartition('.')
  namespace = importlib.import_module(module)
  if not hasattr(namespace, class_name):
    raise UserError(f'{module} has no {class_name}')
  traced = profile_lib.steps(profile) if profile else range(0)
  tracer = profile_lib.Tracer(traced, f'{job_log_dir}/profile')
  watch = watch_lib.Watch(console, local)
  experiment_cls = watch_lib.watched(getattr(namespace, class_name), watch, tracer)
  for attribute, value in {'DATA_DIR': data, 'VOCAB': vocab}.items():
    if value is not None:
      setattr(experiment_cls, attribute, value)
  _mark_when_validated(experiment_cls, job_log_dir, mark)
  # Both of PAX's ways to name an experiment find the watched class.
  experiment_registry.register(experiment_cls, allow_overwrite=True)
  setattr(namespace, class_name, experiment_cls)
  flags = [f for f in flags if not f.lstrip('-').startswith('fdl_config=')]
  argv = ['laser_pax train', f'--job_log_dir={job_log_dir}', '--eval_on_test', *flags]
  argv.append(f'--exp={name}' if by_exp else f'--fdl_config={name}')
  jax.config.config_with_absl()
  try:
    remaining = fiddle_flags.flags_parser(argv)
  except absl_flags.Error as e:
    raise UserError(f'{_first_line(e)}; `python -m paxml.main --helpfull` lists all flags') from e
  _notice_lost_processes()
  executors.exit = lambda _: sys.exit(SAVED_ON_DEMAND)  # Its one exit, after it saved on demand.
  try:
    app.run(paxml_main.main, argv=argv, flags_parser=lambda _: remaining)
  finally:
    watch.close()
