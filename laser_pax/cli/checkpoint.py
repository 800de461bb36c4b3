"""The model of a checkpoint, as `eval`, `generate` and `export` take it from the command line."""

import importlib
from typing import TYPE_CHECKING

from laser_pax.cli import experiments

if TYPE_CHECKING:
  from laser_pax.experiment.base import Experiment
  from laser_pax.experiment.saved_models import Saved


def open_run(exp: str | None, checkpoint: str) -> 'tuple[Experiment, Saved]':
  """Returns an experiment, with the overrides of its run, and the checkpoint that it saved.

  Args:
    exp: Name of the experiment. None stands for the one that the job's mark names.
    checkpoint: Folder of a job or of one checkpoint.

  Raises:
    UserError: There is no such checkpoint or experiment, or another experiment saved it.
  """
  from laser_pax import pax_fixes
  from laser_pax.errors import UserError

  name = None if exp is None else experiments.full_name(exp)
  pax_fixes.read_lambdas_fast()

  from laser_pax.experiment import saved_models

  saved = saved_models.find(checkpoint)
  if name is None and saved.run is None:
    raise UserError(f'{saved.job} does not say which experiment it is of: give --exp=NAME')
  module, _, short = (name or saved.run.experiment).rpartition('.')
  experiment = experiments.find_class(importlib.import_module(module), short)()
  for attribute, value in (saved.run.overrides if saved.run else {}).items():
    setattr(experiment, attribute, value)
  experiment.POD = 'cpu'  # It runs wherever this job is.
  if hasattr(experiment, 'VOCAB') and (kept := saved_models.vocabulary(saved)):
    experiment.VOCAB = str(kept)
  experiment.check_overrides()
  saved_models.check_run(saved, experiment)
  return experiment, saved
