"""The registered experiments, read from the source in milliseconds, without paxml."""

import ast
import contextlib
import difflib
import functools
import importlib.util
import io
import json
import pathlib
import types
from typing import TYPE_CHECKING

from laser_pax.errors import UserError

if TYPE_CHECKING:
  from laser_pax.experiment.base import Experiment

PACKAGE = 'laser_pax.configs'
_FOLDER = pathlib.Path(__file__).parent.parent / 'configs'
# The columns of `list`; each is a key of `row`.
COLUMNS = ('experiment', 'parameters', 'trains on', 'batch', 'steps', 'chips')
# The rows that `list` shows. A test compares them with the results of `row`.
_TABLE = pathlib.Path(__file__).parent / 'experiments.json'


def _is_registered(node: ast.AST) -> bool:
  return isinstance(node, ast.ClassDef) and any(
    'experiment_registry.register' in ast.unparse(decorator) for decorator in node.decorator_list
  )


@functools.cache
def registered() -> dict[str, str]:
  """Returns the first line of each experiment's docstring, by name, in the order of the source."""
  return {
    node.name: (ast.get_docstring(node) or '').split('\n')[0]
    for file in sorted(_FOLDER.glob('*.py'))
    for node in ast.parse(file.read_text()).body
    if _is_registered(node)
  }


def full_name(name: str) -> str:
  """Returns the experiment's full dotted name.

  Args:
    name: A name such as `C4LaserTiny` or `laser_pax.configs.C4LaserTiny`. A class of a module of
      your own is named in full: `my.module.MyLaser500M`.

  Raises:
    UserError: No experiment has this name. The message has similar names.
  """
  module, _, short = name.rpartition('.')
  is_ours = f'.{PACKAGE}'.endswith(f'.{module}') if module else '.' not in name
  if short in registered() and is_ours:
    return f'{PACKAGE}.{short}'
  if module and not module.startswith(PACKAGE) and _module_exists(module):
    return name
  similar = difflib.get_close_matches(short, registered(), n=3, cutoff=0.5)
  hint = f' did you mean {" or ".join(similar)}?' if similar else ''
  raise UserError(f'unknown experiment {name!r};{hint} `python -m laser_pax list` lists all')


def _module_exists(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except (ImportError, ValueError):
    return False


def load(name: str) -> type:
  """Imports an experiment's class, without the lines that paxml prints meanwhile.

  jax is set to the CPU, because this must not take a TPU from the job that runs on it.

  Raises:
    UserError: No experiment has this name.
  """
  full_name(name)  # An unknown name is refused before the imports.
  import jax

  jax.config.update('jax_platforms', 'cpu')
  return import_class(name)


def import_class(name: str) -> type:
  """Imports an experiment's class for this machine's devices, as `load` does for the CPU.

  Raises:
    UserError: No experiment has this name.
  """
  module, _, short = full_name(name).rpartition('.')
  from laser_pax import pax_fixes

  pax_fixes.read_lambdas_fast()
  with contextlib.redirect_stderr(io.StringIO()):
    namespace = importlib.import_module(module)
  return find_class(namespace, short)


def find_class(namespace: types.ModuleType, name: str) -> type:
  """Returns an experiment's class.

  Args:
    namespace: The module that defines or imports it.
    name: Its short name.

  Raises:
    UserError: The module has no such class, or the class is no experiment.
  """
  from paxml import base_experiment

  found = getattr(namespace, name, None)
  if not (isinstance(found, type) and issubclass(found, base_experiment.BaseExperiment)):
    raise UserError(f"{namespace.__name__} has no experiment {name!r}, a class of PAX's")
  return found


def table() -> list[dict[str, str]]:
  """Returns the table that ships with the package: a `row` for each registered experiment.

  An experiment that is not in the table yet has its name alone. To count its parameters, paxml
  would take half a minute.
  """
  rows = {row['experiment']: row for row in json.loads(_TABLE.read_text())}
  return [rows.get(name, {'experiment': name}) for name in registered()]


def write_table() -> None:
  """Writes the table again. A test calls this to update the table."""
  rows = [row(load(name)().on()) for name in registered()]
  _TABLE.write_text(json.dumps(rows, indent=1) + '\n')


def row(experiment: 'Experiment') -> dict[str, str]:
  """Returns an experiment's name, parameters, units, batch, steps and chips, as text."""
  from laser_pax.costs.facts import facts

  f = facts(experiment)
  return {
    'experiment': f.name,
    'parameters': f'{f.parameters:,}',
    'trains on': f'{f.units:,} {experiment.UNIT}',
    'batch': experiment.describe()['global batch'],
    'steps': f'{experiment.NUM_TRAIN_STEPS:,}',
    'chips': f'{f.devices:,}',
  }
