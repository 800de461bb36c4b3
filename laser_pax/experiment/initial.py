"""Runs that start from another run's checkpoint, by PAX's own `init_from_checkpoint_rules`.

All of it happens where a run begins. A run that has a checkpoint of its own goes on from that, and
never looks at the other run again.
"""

import importlib
import inspect
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from paxml import executors, tasks_lib, train_states, trainer_lib
from praxis import base_hyperparams, base_layer, py_utils

from laser_pax.data import sources
from laser_pax.errors import UserError
from laser_pax.experiment import checkpoints, checks, modes, saved_models
from laser_pax.experiment.laser import LaserMixin

Takes = Literal['weights', 'all']

# PAX's collections of variables: what is trained, and what is not, such as moving averages.
_COLLECTIONS = (base_layer.PARAMS, base_layer.NON_TRAINABLE)


class StartsFromARun:
  """The part of an experiment that starts it from another run. base.py has the rest.

  The other run has the same family and the same weights. Its attention may differ: LASER and its
  standard twin have the same weights.

  Attributes:
    INIT_FROM: Another run's job folder, which stands for its newest whole checkpoint. Or one of its
      checkpoints. None starts from random weights.
    INIT_FROM_TAKES: 'weights', with moving averages: optimiser, step and data begin anew. Or 'all':
      also the optimiser's state and the step, which the learning rate and the data follow.
  """

  INIT_FROM: str | None = None
  INIT_FROM_TAKES: Takes = 'weights'

  def init_from(self) -> sources.Named | None:
    """Returns the job or checkpoint to start from, and what names it; None without one."""
    return sources.first_named(sources.Named(self.INIT_FROM, 'INIT_FROM'))

  def initial(self) -> saved_models.Saved | None:
    """Returns the checkpoint to start from; None if none is named.

    Raises:
      UserError: None is there that is finished and whole.
    """
    named = self.init_from()
    return None if named is None else saved_models.find(named.path, named.named_by)

  def check_start(self) -> None:
    """Checks, where the run begins, what it is to start from; else its own checkpoint.

    Raises:
      UserError: It does not fit; the message has the fix.
    """
    if modes.starts_anew():
      self.check_initial()
    elif folder := modes.job_folder():
      self.check_own(folder)

  def check_own(self, folder: str) -> None:
    """Checks that a run's checkpoint has this model's variables: its class may have been edited.

    Args:
      folder: Folder of the job.

    Raises:
      UserError: It has others; the message has the first differences.
    """
    step = checkpoints.survey(folder).whole
    if step is None:
      return
    saved, state = saved_models.Saved(folder, step, None), _shapes_of_state(self)
    for collection in _COLLECTIONS:
      expected = _shapes(state.mdl_vars.get(collection, {}))
      saved_models.check_shapes(saved, expected, type(self).__name__, collection)

  def check_initial(self) -> None:
    """Checks that the checkpoint to start from is whole, and has this family, model and vocabulary.

    Raises:
      UserError: It does not; the message has the fix.
    """
    checks.check_choice(self, 'INIT_FROM_TAKES', get_args(Takes))
    saved = self.initial()
    if saved is None:
      if self.INIT_FROM_TAKES != 'weights':
        raise UserError(
          f'INIT_FROM_TAKES = {self.INIT_FROM_TAKES!r}, and nothing to start from: give '
          '--init_from=DIR, the --job_log_dir of another run'
        )
      return
    _check_family(saved, type(self))
    self.check_initial_vocabulary(saved)
    state, name = _shapes_of_state(self), type(self).__name__
    for collection in _COLLECTIONS:
      expected = _shapes(state.mdl_vars.get(collection, {}))
      saved_models.check_shapes(saved, expected, name, collection)
    if self.INIT_FROM_TAKES == 'all':
      _check_step(saved, self.NUM_TRAIN_STEPS)
      _check_optimiser(saved, state, name)

  def check_initial_vocabulary(self, saved: saved_models.Saved) -> None:
    """Checks that a run to start from had the vocabulary of this one, if both have any.

    Raises:
      UserError: It had another.
    """
    kept, own = saved_models.vocabulary(saved), self.vocabulary()
    if kept is not None and own is not None and not sources.same_contents(kept, own):
      raise UserError(
        f'{own} is not the vocabulary of {saved.job}, which is {kept}: give --vocab={kept}'
      )

  def executor(self) -> executors.DefaultExecutor | None:
    """Returns PAX's executor of a training; where the run begins, one that starts it."""
    if modes.starts_anew() and self.init_from() is not None:
      return _Executor(self)
    return super().executor()

  def tell(self, line: str) -> None:
    """Tells a person what the run started from. `laser_pax train` shows it on its console too."""
    logging.info('%s', line)


class _Executor(executors.DefaultExecutor):
  """PAX's executor. PAX makes the state in `setup`, by the rules that the task then has."""

  def __init__(self, experiment: Any):
    super().__init__()
    self._experiment = experiment

  def setup(self, jax_task: tasks_lib.SingleTask, *args, **kwargs) -> None:
    """Sets the training up, with the state of the other run's checkpoint."""
    saved = _agreed(self._experiment.initial())
    lines = _lines(saved, type(self._experiment), self._experiment.INIT_FROM_TAKES)
    jax_task.train.init_from_checkpoint_rules = loading_rules(self._experiment, saved)
    super().setup(jax_task, *args, **kwargs)
    for line in lines:  # Only now it is true.
      self._experiment.tell(line)


def loading_rules(
  experiment: Any, saved: saved_models.Saved
) -> dict[str, tasks_lib.CheckpointLoadingRules]:
  """Returns PAX's `init_from_checkpoint_rules`, by which an experiment starts from a checkpoint.

  Args:
    experiment: The experiment. Its task has the tree of the checkpoint: `check_initial` compares.
    saved: The checkpoint.
  """
  takes_all = experiment.INIT_FROM_TAKES == 'all'
  rules = tasks_lib.CheckpointLoadingRules(
    task_p=experiment.task(),
    load_rules=[tasks_lib.LOAD_ALL],
    safe_load=True,
    step=saved.step,
    load_step=takes_all,
    load_opt_states=takes_all,
    input_specs_provider_p=experiment.get_input_specs_provider_params(),
  )
  return {str(saved.folder.parent): rules}


def _agreed(saved: saved_models.Saved) -> saved_models.Saved:
  """Returns the first process's checkpoint: the other run may have saved one in between."""
  if jax.process_count() == 1:
    return saved
  return saved._replace(step=int(multihost_utils.broadcast_one_to_all(np.int32(saved.step))))


def _lines(saved: saved_models.Saved, cls: type, takes: Takes) -> list[str]:
  """Returns what was taken, and what was left, in a line each."""
  shapes = [s for c in _COLLECTIONS for s in saved_models.shapes(saved, c).values()]
  count = f'{len(shapes)} arrays, {sum(map(math.prod, shapes)):,} numbers'
  writer = _writer(saved)
  origin = '' if saved.run is None else f'; a run of {saved.run.experiment}'
  if writer is not None and issubclass(writer, LaserMixin) != issubclass(cls, LaserMixin):
    origin += f' ({_attention(writer)} attention there, {_attention(cls)} here)'
  if takes == 'all':
    return [
      f'starts from all of {saved.job}, step {saved.step:,}: weights ({count}), optimiser and step'
      f'{origin}',
      "left there: the place in its data; this run's begin at the batch of that step",
    ]
  return [
    f'starts from the weights of {saved.job}, step {saved.step:,}: {count}{origin}',
    'left there: optimiser, step and place in the data; they begin anew',
  ]


def _attention(cls: type) -> str:
  return 'LASER' if issubclass(cls, LaserMixin) else 'standard'


def _writer(saved: saved_models.Saved) -> type | None:
  """Returns the class of the experiment that wrote a checkpoint, where it can be imported."""
  if saved.run is None:
    return None
  module, _, name = saved.run.experiment.rpartition('.')
  try:
    return getattr(importlib.import_module(module), name, None)
  except Exception:  # Whatever another folder's mark names. It only says less then.
    return None


def _family(cls: type) -> type:
  """Returns the most general class of an experiment's that is complete, such as DecoderLM."""
  bases = cls.__mro__[: cls.__mro__.index(StartsFromARun)]
  is_experiment = lambda base: issubclass(base, StartsFromARun)  # noqa: E731
  return [base for base in filter(is_experiment, bases) if not inspect.isabstract(base)][-1]


def _check_family(saved: saved_models.Saved, cls: type) -> None:
  """Checks that a checkpoint was written by an experiment of this one's family.

  Raises:
    UserError: It was written by one of another family.
  """
  writer = _writer(saved)
  if writer is None or not issubclass(writer, StartsFromARun):
    return
  there, here = _family(writer).__name__, _family(cls).__name__
  if there != here:
    raise UserError(
      f'{saved.job} holds a run of {saved.run.experiment}, of the family {there}, and '
      f'{cls.__name__} is of {here}: name a run of that family'
    )


def _shapes_of_state(experiment: Any) -> train_states.TrainState:
  """Returns the shapes of the state that an experiment trains."""
  task = base_hyperparams.instantiate(experiment.task())
  specs = experiment.input_specs(experiment.GLOBAL_BATCH_SIZE)
  return trainer_lib.create_train_state_metadata(task, specs).unpadded_global_shapes


def _shapes(variables: Mapping[str, Any]) -> saved_models.Shapes:
  named = py_utils.NestedMap.FromNestedDict(variables).FlattenItems()
  return {name: tuple(x.shape) for name, x in named}


def _check_step(saved: saved_models.Saved, steps: int) -> None:
  """Checks that a training goes on after the step that it starts at.

  Raises:
    UserError: It has ended by then.
  """
  if saved.step >= steps:
    raise UserError(
      f'{saved.job} is at step {saved.step}, and NUM_TRAIN_STEPS = {steps}: with INIT_FROM_TAKES = '
      "'all' the step is taken too, so set NUM_TRAIN_STEPS above it; or take 'weights' alone"
    )


def _check_optimiser(
  saved: saved_models.Saved, state: train_states.TrainState, experiment: str
) -> None:
  """Checks that a checkpoint has the arrays of an experiment's optimiser.

  PAX's metadata do not list them. Each is a folder, unless the run saved in tensorstore's OCDBT.
  AdamW and LAMB have the same arrays, so each can go on from the other's.

  Raises:
    UserError: It has others.
  """
  names = py_utils.extract_prefixed_keys_from_nested_map(
    state.opt_states,
    'opt_states',
    key_separator='.',
    left_separator='_',
    right_separator='',
    is_leaf=py_utils.is_optax_masked_node,
  )
  expected = {name for name in jax.tree.leaves(names) if isinstance(name, str)}
  there = {path.name for path in (saved.folder / 'state').iterdir()}
  actual = {name for name in there if name.startswith('opt_states')}
  if actual and actual != expected:
    raise UserError(
      f"{saved.folder} has another optimiser's state than {experiment}: {min(actual ^ expected)} "
      "is in one of them alone; set that run's optimiser, or INIT_FROM_TAKES = 'weights'"
    )
