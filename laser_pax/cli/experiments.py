"""Which experiments there are, known in milliseconds: from the source, without importing paxml."""

import ast
import contextlib
import difflib
import functools
import hashlib
import importlib.util
import io
import json
import pathlib

from laser_pax.cli import fast_import
from laser_pax.errors import UserError

PACKAGE = 'laser_pax.configs'
_FOLDER = pathlib.Path(__file__).parent.parent / 'configs'
# What `table` computes, kept beside the hash of the source that it was computed from.
_TABLE = pathlib.Path(__file__).parent / 'experiments.json'


def _is_registered(node: ast.AST) -> bool:
  return isinstance(node, ast.ClassDef) and any(
    'experiment_registry.register' in ast.unparse(decorator) for decorator in node.decorator_list
  )


@functools.cache
def registered() -> dict[str, str]:
  """Returns the docstring's first line of each experiment of this package, by name, in order."""
  return {
    node.name: (ast.get_docstring(node) or '').split('\n')[0]
    for file in sorted(_FOLDER.glob('*.py'))
    for node in ast.parse(file.read_text()).body
    if _is_registered(node)
  }


def full_name(name: str) -> str:
  """Returns the experiment's full dotted name.

  Args:
    name: `C4LaserTiny`, `laser_pax.configs.C4LaserTiny`, or a class of a module of your own,
      `my.module.MyLaser500M`.

  Raises:
    UserError: there is no such experiment; the message has near names.
  """
  module, _, short = name.rpartition('.')
  if short in registered() and f'.{PACKAGE}'.endswith(f'.{module}' if module else ''):
    return f'{PACKAGE}.{short}'
  if module and not module.startswith(PACKAGE) and _module_exists(module):
    return name
  near = difflib.get_close_matches(short, registered(), n=3, cutoff=0.5)
  hint = f' did you mean {" or ".join(near)}?' if near else ''
  raise UserError(f'unknown experiment {name!r};{hint} `python -m laser_pax list` lists all')


def _module_exists(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:
    return False


def load(name: str) -> type:
  """Imports an experiment's class to look at it, without the lines that paxml prints meanwhile.

  jax is set to the CPU: looking must not take a TPU from the job that runs on it.

  Raises:
    UserError: there is no such experiment.
  """
  module, _, short = full_name(name).rpartition('.')
  fast_import.speed_up()
  import jax

  jax.config.update('jax_platforms', 'cpu')
  with contextlib.redirect_stderr(io.StringIO()):
    namespace = importlib.import_module(module)
  if not hasattr(namespace, short):
    raise UserError(f'{module} has no {short}')
  return getattr(namespace, short)


def table() -> list[dict]:
  """Returns name, parameters, tokens and sizes of each registered experiment of this package.

  Computing them takes paxml and half a minute. The answer ships with the package; it is computed
  anew when the configs have been edited since, and then kept.
  """
  source = b''.join(file.read_bytes() for file in sorted(_FOLDER.glob('*.py')))
  digest = hashlib.sha256(source).hexdigest()
  if _TABLE.exists():
    kept = json.loads(_TABLE.read_text())
    if kept['configs_sha256'] == digest:
      return kept['experiments']
  rows = [_row(load(name)().on()) for name in registered()]
  with contextlib.suppress(OSError):
    _TABLE.write_text(json.dumps({'configs_sha256': digest, 'experiments': rows}, indent=1) + '\n')
  return rows


def _row(experiment) -> dict:
  from laser_pax.pods.facts import facts

  f = facts(experiment)
  return {
    'name': f.name,
    'parameters': f.parameters,
    'tokens': f.tokens,
    'devices': f.devices,
    'global_batch_size': experiment.GLOBAL_BATCH_SIZE,
    'seq_len': experiment.SEQ_LEN,
    'num_train_steps': experiment.NUM_TRAIN_STEPS,
  }
