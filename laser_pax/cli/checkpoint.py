"""The model of a checkpoint, as `eval`, `generate` and `export` take it from the command line."""

import contextlib
import importlib
import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from laser_pax.cli import experiments

if TYPE_CHECKING:
  from laser_pax.experiment.base import Experiment
  from laser_pax.experiment.saved_models import Saved


def open_run(
  exp: str | None, checkpoint: str, named_by: str = '--checkpoint'
) -> 'tuple[Experiment, Saved]':
  """Returns an experiment, with the overrides of its run, and the checkpoint that it saved.

  Args:
    exp: Name of the experiment. None stands for the one that the job's mark names.
    checkpoint: Folder of a job or of one checkpoint.
    named_by: The flag that names it, for messages. --exp is that of --checkpoint alone.

  Raises:
    UserError: There is no such checkpoint or experiment, or another experiment saved it.
  """
  from absl import logging

  from laser_pax import pax_fixes
  from laser_pax.errors import UserError

  name = None if exp is None else experiments.full_name(exp)
  pax_fixes.read_lambdas_fast()
  logging.set_verbosity(logging.ERROR)

  from laser_pax.experiment import jobs, saved_models

  saved = saved_models.find(checkpoint, named_by)
  if name is None and saved.run is None:
    mend = 'give --exp=NAME'
    if named_by != '--checkpoint':
      mend = f'write its name, such as laser_pax.configs.C4LaserTiny, into {saved.job}/{jobs.MARK}'
    raise UserError(f'{named_by}={saved.job} does not say which experiment it is of: {mend}')
  changed = saved.run.overrides if saved.run else {}
  kept = saved_models.vocabulary(saved)
  experiment = open_experiment(name or saved.run.experiment, changed, kept)
  saved_models.check_run(saved, experiment)
  return experiment, saved


def open_experiment(
  name: str, changed: Mapping[str, Any], vocabulary: os.PathLike | str | None
) -> 'Experiment':
  """Returns an experiment as a run had it, on this job's devices.

  Args:
    name: Full name of the experiment.
    changed: Values of the attributes that the run overrode.
    vocabulary: The vocabulary that was kept with the run; None if there is none.

  Raises:
    UserError: There is no such experiment, or an override does not fit it.
  """
  module, _, short = name.rpartition('.')
  with contextlib.redirect_stderr(io.StringIO()):  # PAX prints each experiment of a module.
    namespace = importlib.import_module(module)
  experiment = experiments.find_class(namespace, short)()
  for attribute, value in changed.items():
    setattr(experiment, attribute, value)
  experiment.POD = 'cpu'  # It runs wherever this job is.
  if hasattr(experiment, 'VOCAB') and vocabulary:
    experiment.VOCAB = str(vocabulary)
  experiment.check_overrides()
  return experiment


def use_data_of_run(experiment: 'Experiment', saved: 'Saved') -> None:
  """Lets an experiment of `open_run` find the data that its training found.

  A Tiny experiment takes the sample only where nothing is named, and `open_run` names the
  vocabulary that the job keeps. So it is not named, unless the data are.

  Raises:
    UserError: The vocabulary of the data is not that of the checkpoints.
  """
  from laser_pax.data import sources
  from laser_pax.errors import UserError
  from laser_pax.experiment import jobs, saved_models

  kept = saved_models.vocabulary(saved)
  is_named = sources.is_named(getattr(experiment, 'DATA_DIR', None), None)
  if kept is None or is_named or not hasattr(experiment, 'VOCAB'):
    return
  experiment.VOCAB = saved.run.overrides.get('VOCAB') if saved.run else None
  try:
    vocabulary = experiment.vocabulary()
  except UserError:  # Prepared data in the default folder.
    experiment.VOCAB = str(kept)
  else:
    jobs.check_vocabulary(saved.job, vocabulary)
