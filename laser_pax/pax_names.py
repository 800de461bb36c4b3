"""Names that jax removed after 0.5.3 and that paxml and praxis 1.4.0 still use.

paxml and praxis are taken as they are. `restore` gives jax each name of `NAMES` that it lacks.
Where jax has them all, as 0.5.3 has, it changes nothing.

The names must be there before praxis is imported, in every process. So `scripts/setup.sh current`
writes a .pth file into the environment (`python -m laser_pax.pax_names`), and Python calls
`restore_before_pax` when it starts. That imports nothing heavy: jax is imported with praxis.

Each function states its reason, and the first line of paxml or praxis that fails without it. If jax
has a name again, a test in tests/test_pax_names.py fails and says what to remove.

Names that no path of ours or of `paxml.main` needs are left out. docs/environment.md lists them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import sys
import warnings

_PAX = 'praxis'  # paxml is a folder without a module of its own, whose modules import praxis.
# What Python runs when it starts. It passes where laser_pax is not there any more.
_START = (
  'import contextlib; exec("with contextlib.suppress(ImportError): '
  'from laser_pax import pax_names; pax_names.restore_before_pax()")\n'
)


def tree_functions() -> tuple[str, ...]:
  """Restores `jax.tree_map` and its two companions, which jax 0.6 removed.

  paxml and praxis call `tree_map` in some 200 places. The first that `train` meets is
  praxis/flax_utils.py:61. paxml's private gradients flatten and unflatten: paxml/sgf.py:635, 642.
  """
  from jax import tree_util

  names = ('tree_map', 'tree_flatten', 'tree_unflatten')
  return tuple(name for name in names if _give('jax', name, lambda n=name: getattr(tree_util, n)))


def xla_client() -> tuple[str, ...]:
  """Restores `jax.lib.xla_client`, which now is in jaxlib alone.

  Without it praxis cannot be imported: praxis/base_input.py:32.
  """
  given = _give('jax.lib', 'xla_client', lambda: importlib.import_module('jaxlib.xla_client'))
  return ('xla_client',) if given else ()


def automatic_sharding() -> tuple[str, ...]:
  """Gives `jax.experimental.pjit` a class `AUTO`, of which nothing is an instance.

  paxml asks of each partition of a step whether it is automatic: paxml/partitioning.py:1048. jax
  has no automatic partition any more. Who asks for one, which our experiments never do, is told.
  """
  return ('AUTO',) if _give('jax.experimental.pjit', 'AUTO', _automatic) else ()


def _automatic() -> type:
  class AUTO:
    """Takes the place of jax's automatic partition."""

    def __init__(self, *args, **kwargs):
      raise NotImplementedError('jax has no automatic partition any more (pjit.AUTO)')

  return AUTO


NAMES = (tree_functions, xla_client, automatic_sharding)


@functools.cache
def restore() -> tuple[str, ...]:
  """Gives jax each name that it lacks. Calls after the first do nothing.

  Returns:
    The names that were given, in the order of `NAMES`.
  """
  return tuple(name for names in NAMES for name in names())


def _give(module_name: str, name: str, make) -> bool:
  """Makes a name of a module if it has none, and returns whether it did."""
  module = importlib.import_module(module_name)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', DeprecationWarning)  # jax warns of what it will remove.
    if hasattr(module, name):
      return False
  setattr(module, name, make())
  return True


class _BeforePax:
  """Finds praxis as Python does, and has the names restored before it runs.

  To ask whether it is there, as `importlib.util.find_spec` does, restores nothing.
  """

  def find_spec(self, name, path=None, target=None):
    if name != _PAX:
      return None
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    if spec is not None:
      run = spec.loader.exec_module
      spec.loader.exec_module = lambda module: (self._restore(), run(module))
    return spec

  def _restore(self):
    if self in sys.meta_path:
      sys.meta_path.remove(self)
    restore()


def restore_before_pax() -> None:
  """Has the names restored when praxis is imported, at once if it is."""
  if _PAX in sys.modules:
    restore()
  elif not is_waiting():
    sys.meta_path.insert(0, _BeforePax())


def is_waiting() -> bool:
  """Returns whether an import of praxis in this process would restore the names."""
  return any(isinstance(finder, _BeforePax) for finder in sys.meta_path)


def start_file() -> str:
  """Returns the path of this environment's .pth file, which only some environments have."""
  import sysconfig

  return f'{sysconfig.get_path("purelib")}/laser_pax_names.pth'


def write_start_file() -> None:
  """Has this environment's Python call `restore_before_pax` whenever it starts."""
  with open(start_file(), 'w') as file:
    file.write(_START)


if __name__ == '__main__':
  write_start_file()
  print(f'wrote {start_file()}')
