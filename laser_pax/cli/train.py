"""`python -m laser_pax train`: paxml.main with a console that a person can read."""

import contextlib
import functools
import importlib
import os
import pathlib
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from laser_pax import folders
from laser_pax.cli import cluster, consoles, experiments, on_demand, training_job
from laser_pax.cli.training_job import Job
from laser_pax.errors import UserError
from laser_pax.experiment import checkpoints, jobs, modes

if TYPE_CHECKING:
  from laser_pax.layers.attention_paths import Path

# A job ends half a minute after one of its processes is gone. jax's defaults are 10 and 10.
HEARTBEAT_SECONDS = 5
MISSED_HEARTBEATS = 6

# jax keeps at most this many bytes of compiled programs, the last used ones.
COMPILED_BYTES = 4 * 2**30


def train(
  ctx: typer.Context,
  exp: Annotated[
    str | None, typer.Option(help='Experiment: C4LaserTiny, laser_pax.configs.C4Laser2B, ...')
  ] = None,
  job_log_dir: Annotated[
    str | None, typer.Option('--job_log_dir', help='Folder of checkpoints, summaries and logs.')
  ] = None,
  data: Annotated[str | None, typer.Option(help='Prepared data; replaces DATA_DIR.')] = None,
  vocab: Annotated[str | None, typer.Option(help='SentencePiece model; replaces VOCAB.')] = None,
  init_from: Annotated[
    str | None, typer.Option('--init_from', help='Run to start from; replaces INIT_FROM.')
  ] = None,
  profile: Annotated[
    str | None, typer.Option(help='Steps to trace, START:STOP, into JOB_LOG_DIR/profile.')
  ] = None,
) -> None:
  """Trains an experiment: paxml.main with a quiet console. It takes every flag of paxml too.

  The console has one progress line, and a line for each evaluation. --noeval_on_test omits the
  evaluations. Full logs are in JOB_LOG_DIR/logs, and each step's loss is in
  JOB_LOG_DIR/progress.jsonl. TensorBoard's summaries are where PAX writes them. The same command
  resumes a run. If JOB_LOG_DIR is a bucket, logs and progress.jsonl stay on this host, in
  ~/.cache/laser_pax/runs.

  SIGTERM saves a checkpoint and ends with exit code 75, before the first step at once, and during
  an evaluation too. Several processes do so with --exit_after_ondemand_checkpoint and
  --jax_fully_async_checkpoint. They must run on hosts of a TPU slice or under Slurm.
  """
  flags = list(ctx.args)
  _check_flags(exp, job_log_dir, flags)
  job = Job(
    experiment=experiments.full_name(exp or _fdl_config(flags)),
    selector='exp' if exp else 'fdl_config',
    folder=folders.resolve(job_log_dir),
    flags=tuple(flags),
    attributes={
      name: folders.resolve(path)
      for name, path in {'DATA_DIR': data, 'VOCAB': vocab, 'INIT_FROM': init_from}.items()
      if path is not None
    },
    profile=profile,
  )
  run(job, 'train')


def run(job: Job, kind: str, program: Callable[..., Any] | None = None) -> None:
  """Runs a job in this process, with a quiet console.

  Args:
    job: The job.
    kind: The begin of its log's name.
    program: Makes the train program, of the arguments of `watch.WatchedTrainProgram`, the default.

  Raises:
    UserError: Something failed; the message is one line, and the log has the traceback.
  """
  cluster.join(training_job.values(job.flags))
  demand = on_demand.OnDemand()
  if job.is_alone:
    demand.listen()
  elif job.saves_together:
    demand.agree()
  _open_folder(job)
  process = f'{socket.gethostname()}-{os.getpid()}'
  logs = job.local_folder / 'logs'
  log = logs / f'{kind}-{time.strftime("%Y%m%d-%H%M%S")}-{process}.log'
  with consoles.output_to(log) as console:
    console.write(f'{job.experiment}: logs in {log}\n')
    demand.say = lambda line: console.write(f'{line}\n')
    try:
      _run(job, console, log, demand, program)
    except SystemExit as e:
      if e.code == jobs.SAVED_ON_DEMAND:
        saved = 'a checkpoint was saved on demand; ' if demand.has_trained else ''
        console.write(f'{saved}run again to go on from there\n')
      elif e.code:
        console.write(f'stopped with code {e.code}; the reason is at the end of {log}\n')
      raise


def _explain(error: Exception, job: Job, step: int, log: pathlib.Path) -> str:
  """Returns why a run failed after a step, in one line."""
  reason = folders.storage_failure(error)
  if reason is None:
    return f'{type(error).__name__}: {_first_line(error)}; the whole of it is in {log}'
  return (
    f'{job.folder}: {reason}, after step {step}; {checkpoints.newest_whole(job.folder)}. Mend '
    f'that, for example make room, and give the same command again; more is in {log}'
  )


def _first_line(error: BaseException) -> str:
  return (str(error).strip() or 'no message').splitlines()[0]


def _check_flags(exp: str | None, job_log_dir: str | None, flags: list[str]) -> None:
  """Refuses flags that paxml would ignore, or refuse only after minutes.

  Raises:
    UserError: There is such a flag, a flag is missing, or the experiment is unknown.
  """
  if stray := [f for f in flags if not f.startswith('-')]:
    raise UserError(f'unexpected argument {stray[0]!r}: flags are written --name=value')
  names = list(training_job.values(flags))
  changed = [f for f in flags if training_job.is_override(f)]
  for name in ('flagfile', 'job_log_dir'):
    if name in names:
      raise UserError(f'--{name} cannot be given here: write --job_log_dir and all flags out, once')
  overridden = [f.partition('=')[0] for f in changed]
  if twice := [f for f in overridden if overridden.count(f) > 1]:
    raise UserError(f'{twice[0]} is given more than once: give it once')
  if exp and ('fdl_config' in names or 'fdl' in names):
    raise UserError('give the experiment once: --exp=NAME, or --fdl_config=NAME with overrides')
  if exp and changed:
    full = experiments.full_name(exp)
    raise UserError(
      f'paxml ignores {changed[0]} beside --exp; write: --fdl_config={full} {" ".join(changed)}'
    )
  if unset := [f for f in changed if not f.partition('=')[2]]:
    raise UserError(f'{unset[0]} has no value: attributes are changed by --fdl.NAME=VALUE')
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


def _fdl_config(flags: list[str]) -> str:
  """Returns the experiment that --fdl_config names."""
  for flag in flags:
    if flag.lstrip('-').startswith('fdl_config='):
      return flag.split('=', 1)[1]
  raise UserError('which experiment? --fdl_config=NAME, in one word')


def _open_folder(job: Job) -> None:
  """Makes the job's folder and the folder of its logs.

  Raises:
    UserError: The folder holds another run, or cannot be written.
  """
  from etils import epath

  with _writing_to(job.folder):
    epath.Path(job.folder).mkdir(parents=True, exist_ok=True)
    (job.local_folder / 'logs').mkdir(parents=True, exist_ok=True)
    check = jobs.check_run if training_job.mode(job.flags) == modes.TRAIN else jobs.check_experiment
    check(job.folder, job.mark)


@contextlib.contextmanager
def _writing_to(job_log_dir: str) -> Iterator[None]:
  """Raises a UserError that names --job_log_dir if writing fails."""
  try:
    yield
  except UserError:
    raise
  except Exception as e:  # Each kind of storage has its own.
    reason = getattr(e, 'strerror', None) or type(e).__name__
    raise UserError(
      f'cannot write to --job_log_dir={job_log_dir} ({reason}): name one that you may write'
    ) from e


def _run(
  job: Job,
  console: TextIO,
  log: pathlib.Path,
  demand: on_demand.OnDemand,
  program: Callable[..., Any] | None,
) -> None:
  """Runs paxml.main on the watched experiment, in this process.

  Raises:
    UserError: Something failed; the message is one line, and the log has the traceback.
  """
  from laser_pax import pax_fixes

  pax_fixes.read_lambdas_fast()

  import jax
  from absl import app, flags
  from fiddle import absl_flags
  from paxml import main

  from laser_pax.cli import profiling, watch
  from laser_pax.layers import attention_paths

  module, _, class_name = job.experiment.rpartition('.')
  experiment_cls = experiments.find_class(importlib.import_module(module), class_name)
  _check_overrides(experiment_cls, job)
  tracer = profiling.tracer(job.profile, f'{job.folder}/profile')
  watcher = watch.Watch(console, job.local_folder, watch.unit_of(experiment_cls))
  watched = watch.watched(experiment_cls, watcher, tracer, demand, program)
  _register(job, watched, watcher.say, demand)
  argv = job.argv()
  jax.config.config_with_absl()
  try:  # Fiddle's parser would print the usage of every flag, and exit.
    flags.FLAGS([f for f in argv if not f.startswith('--fdl')])
  except flags.Error as e:
    raise UserError(f'{_first_line(e)}; `python -m paxml.main --helpfull` lists all flags') from e
  flags.FLAGS.unparse_flags()
  remaining = absl_flags.flags_parser(argv)
  pax_fixes.set_heartbeats(HEARTBEAT_SECONDS, MISSED_HEARTBEATS)
  pax_fixes.exit_after_saving_on_demand_with(jobs.SAVED_ON_DEMAND)
  if demand.ends_training():
    demand.answer_pax()
  try:
    telling = attention_paths.telling(_attention_teller(watcher.say))
    with consoles.telling_of_interrupts(console), telling:
      app.run(main.main, argv=argv, flags_parser=lambda _: remaining)
  except UserError:
    raise
  except Exception as e:
    with contextlib.suppress(OSError):
      traceback.print_exc()
    watcher.drain()  # It may lag behind by some steps.
    raise UserError(_explain(e, job, watcher.last_step, log)) from e
  finally:
    watcher.close()
    modes.close_programs()  # What they say belongs into the log.


def _attention_teller(say: Callable[[str], None]) -> 'Callable[[Path], None]':
  """Returns a function that says each attention path once."""
  from laser_pax.layers import attention_paths

  @functools.cache
  def say_once(line: str) -> None:
    say(line)

  return lambda path: say_once(f'attention: {path.text(attention_paths.EXPERIMENT_SETTINGS)}')


def _keep_compiled_programs() -> None:
  """Makes jax keep its compiled programs, so that a run that starts again need not compile.

  If the user has named a folder in jax's own way, that folder stays. On CPUs this is for one
  device, because jax 0.5.3 hangs if several processes run a program that an earlier run compiled.
  """
  import jax

  is_safe = jax.default_backend() != 'cpu' or jax.device_count() == 1
  if is_safe and jax.config.jax_compilation_cache_dir is None:
    with contextlib.suppress(UserError):  # Without a cache folder the run only starts later.
      jax.config.update('jax_compilation_cache_dir', str(folders.compiled_dir()))
      jax.config.update('jax_compilation_cache_max_size', COMPILED_BYTES)


def _check_overrides(experiment_cls: type, job: Job) -> None:
  """Checks the overrides before paxml reads them."""
  from laser_pax.experiment.base import Experiment

  if issubclass(experiment_cls, Experiment):
    experiment = experiment_cls()
    for name, value in job.overrides().items():
      setattr(experiment, name, value)
    experiment.check_overrides()
    experiment.check_numbers()
  elif 'INIT_FROM' in job.attributes:
    raise UserError(f'{job.experiment} has no INIT_FROM, it starts anew: leave --init_from out')


def _register(
  job: Job,
  experiment_cls: type,
  say: Callable[[str], None],
  demand: on_demand.OnDemand,
) -> None:
  """Registers this class, so that both of PAX's ways to name an experiment find it.

  Args:
    job: The job.
    experiment_cls: The experiment's class.
    say: Function that prints a line.
    demand: What answers SIGTERM. If it listens alone, it stops where jax shows other processes.
  """
  import jax
  from paxml import experiment_registry

  from laser_pax.cli import watch
  from laser_pax.experiment.base import Experiment

  class Claimed(experiment_cls):
    """Marks the job's folder when PAX validates. Only then are process and devices known."""

    def validate(self) -> None:
      if jax.process_count() > 1:
        demand.close()
      if modes.mode() == modes.TRAIN:
        jobs.hold(job.folder)
        jobs.write_mark(job.folder, job.mark)
      if modes.mode() == modes.TRAIN and not isinstance(self, Experiment):  # PAX's own.
        checkpoints.list_files_of_each()
        for line in checkpoints.set_aside(job.folder):
          say(line)
      _keep_compiled_programs()
      super().validate()

    def job_mark(self) -> str:
      return job.mark

    def tell(self, line: str) -> None:
      say(line)
      super().tell(line)

  watch.take_name(Claimed, experiment_cls)
  for attribute, value in job.attributes.items():
    setattr(Claimed, attribute, value)
  module, _, class_name = job.experiment.rpartition('.')
  experiment_registry.register(Claimed, allow_overwrite=True)
  setattr(importlib.import_module(module), class_name, Claimed)
