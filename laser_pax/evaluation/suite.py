"""The suite of tasks for decoders, and how tasks are loaded.

The paper names neither its 16 nor its 11 tasks. This suite has the tasks of the language models
that it compares with [ours]. The metric of each is that of its own paper, in lm_eval's form [ours].
"""

import contextlib
import difflib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import datasets
import lm_eval.tasks
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from laser_pax.errors import UserError


class Member(NamedTuple):
  """A task of the suite.

  Attributes:
    folder: Where lm_eval defines it, below its folder of tasks; '' for this package's own.
    needs: Folder of a data set that cannot be fetched; the task is left out without it.
  """

  folder: str
  needs: str = ''


PAPER = {
  'arc_easy': Member('arc'),
  'arc_challenge': Member('arc'),
  'boolq': Member('super_glue/boolq'),
  'cb': Member('super_glue/cb'),
  'copa': Member('super_glue/copa'),
  'hellaswag': Member('hellaswag'),
  'multirc': Member('super_glue/multirc'),
  'openbookqa': Member('openbookqa'),
  'piqa': Member('piqa'),
  'race': Member('race'),
  'race_middle': Member(''),
  'record': Member(''),
  'sglue_rte': Member('super_glue/rte'),
  'storycloze_2016': Member('storycloze', needs='LSDSem/story_cloze'),
  'wic': Member('super_glue/wic'),
  'winogrande': Member('winogrande'),
  'wsc273': Member('wsc273'),
  'lambada_openai': Member('lambada'),
  'triviaqa': Member('triviaqa'),
  'nq_open': Member('nq_open'),
  'webqs': Member('webqs'),
}

_OWN = Path(__file__).parent / 'tasks'
_LM_EVAL = Path(lm_eval.tasks.__file__).parent


def members(include: Path | None) -> tuple[list[str], list[str]]:
  """Returns the names of the suite's tasks: those to run, and those left out.

  A task whose data set has to be asked for, by hand, runs if the data set is in `include`.

  Args:
    include: Folder of data sets, or None.
  """
  left_out = [
    name
    for name, member in PAPER.items()
    if member.needs and not (include and (include / member.needs).is_dir())
  ]
  return [name for name in PAPER if name not in left_out], left_out


def load(names: Sequence[str], include: Path | None) -> dict[str, Task]:
  """Returns lm_eval's tasks by name, with their data.

  Args:
    names: Names of tasks, groups or tags of lm_eval, of this package, or of `include`.
    include: Folder of task files (*.yaml), which come before those of lm_eval. Their relative paths
      begin there. A data set OWNER/NAME of the Hugging Face hub is read from its folder OWNER/NAME,
      where that exists.

  Raises:
    UserError: A name is unknown, or a data set is missing or has another form.
  """
  for library in ('lm_eval', 'datasets', 'huggingface_hub', 'transformers'):
    logging.getLogger(library).setLevel(logging.CRITICAL)
  datasets.disable_progress_bars()
  manager = _manager(names, include)
  tasks: dict[str, Task] = {}
  with contextlib.chdir(include or os.curdir):
    for name in names:
      for member in _with_tag(manager, name):
        tasks |= _load(manager, member)
  for task in tasks.values():
    _prepare_examples(task)
  return tasks


def _manager(names: Sequence[str], include: Path | None) -> TaskManager:
  """Returns an index of tasks. lm_eval's own has thousands of files and takes long to read.

  So the few folders of the suite are read first, for names of tasks alone. Groups and tags may have
  members in any folder.
  """
  extra = [_OWN] + ([include] if include else [])
  quick = sorted({_LM_EVAL / member.folder for member in PAPER.values() if member.folder})
  manager = TaskManager(include_path=[*quick, *extra], include_defaults=False)
  if set(names) <= set(manager.all_subtasks):
    return manager
  manager = TaskManager(include_path=[_LM_EVAL, *extra], include_defaults=False)
  for name in names:
    if name not in manager.all_tasks:
      near = difflib.get_close_matches(name, manager.all_tasks, n=3)
      hint = f'; did you mean {" or ".join(near)}?' if near else ''
      raise UserError(f'lm_eval has no task {name!r}{hint} (`lm-eval ls tasks` lists all)')
  return manager


def _with_tag(manager: TaskManager, name: str) -> list[str]:
  """Returns the names of the tasks with a tag; of a task or group, its own name."""
  return sorted(manager.task_index[name].tags) if name in manager.all_tags else [name]


def _load(manager: TaskManager, name: str) -> Mapping[str, Task]:
  try:
    return manager.load([name])['tasks']
  except UserError:
    raise
  except OSError as e:  # datasets' own errors are of this kind, and those of the network.
    data = _dataset(manager, name)
    if '/' not in data:  # One of datasets' readers of files, such as json.
      raise UserError(
        f'task {name}: its data files are missing: {_first_line(e)}; relative paths in its task '
        'file begin at the folder of --include'
      ) from e
    raise UserError(
      f'task {name}: its data set {data} is neither here nor can it be fetched: copy its '
      f'repository of the Hugging Face hub to DIR/{data} and give --include=DIR, or leave the task '
      f'out with --tasks ({_first_line(e)})'
    ) from e
  except Exception as e:
    raise UserError(
      f'task {name} cannot be made of its data set {_dataset(manager, name)}: '
      f'{type(e).__name__}: {_first_line(e)}'
    ) from e


def _dataset(manager: TaskManager, name: str) -> str:
  return (manager.task_index[name].cfg or {}).get('dataset_path') or 'of its own'


def _first_line(error: Exception) -> str:
  return (str(error).strip() or 'no message').splitlines()[0]


def _prepare_examples(task: Task) -> None:
  """Mends how lm_eval takes solved examples for a prompt.

  - They come from the train split, else from validation, else from test. In the last case an
    example could be its own solved example: lm_eval leaves it out only if the task names the split.
  - Of several right choices it can write none, so the first is given to it.
  """
  settings = getattr(task, 'fewshot_cfg', None)
  if settings is None:  # A task of another class.
    return
  if settings.split is None and not (task.has_training_docs() or task.has_validation_docs()):
    settings.split = task.config.test_split
  target = settings.doc_to_target
  if task.multiple_target and task.config.doc_to_choice is not None and callable(target):
    settings.doc_to_target = lambda doc: target(doc)[0]
