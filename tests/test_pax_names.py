"""Each name of laser_pax.pax_names: PAX fails without it, in the line that the docs give.

A process takes each name away again after praxis was imported, and runs the code that asks for it.
"""

import json
import os
import pathlib
import subprocess
import sys
import textwrap
import traceback

import jax
import pytest

from laser_pax import pax_names

_ROOT = pathlib.Path(__file__).parents[1]
# The name, and the first line of paxml or praxis that fails without it.
_BREAKS = {
  'tree_map': 'praxis/flax_utils.py:61',
  'tree_flatten': 'paxml/sgf.py:635',
  'tree_unflatten': 'paxml/sgf.py:642',
  'xla_client': 'praxis/base_input.py:32',
  'AUTO': 'paxml/partitioning.py:1048',
}
_HAS_ALL = jax.__version_info__ < (0, 6)
needs_names = pytest.mark.skipif(_HAS_ALL, reason='the pinned jax has all these names')


def _python(program, *args, **env):
  env = os.environ | {'PYTHONPATH': str(_ROOT)} | env
  return subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(program), *args],
    env=env,
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.fixture(scope='module')
def breaks(tmp_path_factory):
  """The line that fails without each name, as the process below found it."""
  file = tmp_path_factory.mktemp('names') / 'breaks.json'
  program = 'import sys; from tests import test_pax_names as t; t.probe(sys.argv[1])'
  process = _python(program, str(file))
  assert process.returncode == 0, process.stderr[-4000:]
  return json.loads(file.read_text())


@needs_names
@pytest.mark.parametrize(('name', 'line'), _BREAKS.items())
def test_pax_fails_without_the_name(breaks, name, line):
  assert name in breaks['restored'], f'jax has {name}: it is no longer needed, remove it'
  assert breaks[name] == line, f'{name} is no longer needed there'
  page = (_ROOT / 'docs' / 'environment.md').read_text()
  source = pathlib.Path(pax_names.__file__).read_text()
  file, number = line.split(':')
  assert line in page and file in source and number in source


@needs_names
def test_each_name_that_is_restored_is_probed(breaks):
  assert breaks['restored'] == list(_BREAKS)


@pytest.mark.skipif(not _HAS_ALL, reason="today's jax lacks names")
def test_a_jax_that_has_all_names_is_left_alone():
  assert pax_names.restore() == ()


def test_the_names_are_there_before_praxis_and_after_nothing_heavy():
  process = _python("""
    import importlib.util, sys
    from laser_pax import pax_names
    pax_names.restore_before_pax()
    pax_names.restore_before_pax()
    assert importlib.util.find_spec('praxis')  # To ask is not to import.
    assert sum('_BeforePax' in repr(finder) for finder in sys.meta_path) == 1
    assert pax_names.is_waiting() and not {'jax', 'numpy', 'typing'} & sys.modules.keys()
    import jax.lib
    import praxis.flax_utils
    assert not pax_names.is_waiting()
    for module, name in (jax, 'tree_map'), (jax.lib, 'xla_client'), (jax.experimental.pjit, 'AUTO'):
      assert hasattr(module, name), name
    pax_names.restore_before_pax()
    assert not pax_names.is_waiting()
  """)
  assert process.returncode == 0, process.stderr


def test_python_restores_them_when_it_starts(tmp_path, monkeypatch):
  """The .pth file is read as Python reads it, and does no harm where laser_pax is not there."""
  monkeypatch.setattr(pax_names, 'start_file', lambda: str(tmp_path / 'laser_pax_names.pth'))
  pax_names.write_start_file()
  program = """
    import site, sys
    site.addsitedir(sys.argv[1])
    from_laser_pax = sys.modules.get('laser_pax.pax_names')
    print(bool(from_laser_pax and from_laser_pax.is_waiting()))
  """
  process = _python(program, str(tmp_path))
  assert process.stdout == 'True\n' and not process.stderr, process.stderr
  process = subprocess.run(
    [sys.executable, '-I', '-S', '-c', textwrap.dedent(program), str(tmp_path)],
    capture_output=True,
    text=True,
  )
  assert process.stdout == 'False\n' and not process.stderr, process.stderr


def test_who_asks_for_an_automatic_partition_is_told():
  with pytest.raises(NotImplementedError, match='no automatic partition'):
    pax_names._automatic()()


# The code below runs in the subprocess.


def probe(file: str) -> None:
  """Writes the line that fails without each name."""
  for finder in [f for f in sys.meta_path if '_BeforePax' in repr(f)]:
    sys.meta_path.remove(finder)
  restored = pax_names.restore()
  probes = {
    (jax, 'tree_map'): _map,
    (jax, 'tree_flatten'): _private_gradients,
    (jax, 'tree_unflatten'): _private_gradients,
    (jax.lib, 'xla_client'): _import_inputs,
    (jax.experimental.pjit, 'AUTO'): _partition,
  }
  result = {'restored': restored}
  for (module, name), run in probes.items():
    run()  # All is well with the name.
    value = getattr(module, name)
    delattr(module, name)
    result[name] = _failing_line(run)
    setattr(module, name, value)
  pathlib.Path(file).write_text(json.dumps(result))


def _failing_line(run) -> str:
  try:
    run()
  except (AttributeError, ImportError) as e:
    frames = traceback.extract_tb(e.__traceback__)
    packages = ('/paxml/', '/praxis/')
    frame = [f for f in frames if any(p in f.filename for p in packages)][-1]
    path = pathlib.Path(frame.filename)
    return f'{path.parent.name}/{path.name}:{frame.lineno}'
  return 'none'


def _map():
  from praxis import flax_utils

  flax_utils.maybe_repack_summary({'loss': 1.0}, True, 1)


def _private_gradients():
  import jax.numpy as jnp
  from paxml import sgf
  from praxis import pax_fiddle

  gradient = pax_fiddle.Config(sgf.PerLayerDpSgdStochasticGradient).Instantiate()
  gradient._clip_and_mean_gradients({'w': jnp.ones([2, 3])})


def _import_inputs():
  import importlib

  from praxis import base_input

  importlib.reload(base_input)


def _partition():
  import numpy as np
  from paxml import partitioning

  partitioner = object.__new__(partitioning.PjitPartitioner)
  partitioner._global_mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('data',))
  spec = jax.sharding.PartitionSpec()
  partitioner._pjit(lambda state, key, rows, static: state, True, spec, spec)
