"""Settings for all tests, made before any test imports jax or TensorFlow."""

import gc
import importlib.util
import os
import pathlib
import shutil
import tempfile

import pytest

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

from laser_pax import pax_fixes

if importlib.util.find_spec('fiddle'):  # The tests of ops need jax alone.
  pax_fixes.read_lambdas_fast()


@pytest.fixture
def interpreted_kernels():
  """Fused attention as on a TPU; see tests/support/interpreted.py."""
  from tests.support import interpreted

  with interpreted.kernels():
    yield


@pytest.fixture(scope='session')
def commands(request, tmp_path_factory):
  """Starts commands in separate processes; see tests/support/commands.py."""
  from tests.support.commands import Commands, Server

  if folder := getattr(request.config, 'workerinput', {}).get('commands'):
    yield Commands(pathlib.Path(folder))
    return
  server = Server(tmp_path_factory.mktemp('commands'))
  yield Commands(server.folder)
  server.close()


_SERVER = pytest.StashKey()


@pytest.hookimpl(optionalhook=True)  # It is xdist's.
def pytest_configure_node(node):
  """Gives all of pytest's processes one server of commands."""
  from tests.support.commands import Server

  if _SERVER not in node.config.stash:
    node.config.stash[_SERVER] = Server(pathlib.Path(tempfile.mkdtemp()))
  node.workerinput['commands'] = str(node.config.stash[_SERVER].folder)


def pytest_unconfigure(config):
  if server := config.stash.get(_SERVER, None):
    server.close()
    shutil.rmtree(server.folder)


@pytest.fixture(scope='session')
def texts():
  """The texts of the data set of the fixture `source`, by split."""
  from tests.support import small_texts

  return small_texts.texts()


@pytest.fixture(scope='session')
def source(tmp_path_factory):
  """A data set of four train shards and one validation shard, and the sample's vocabulary."""
  from tests.support import small_texts

  return small_texts.prepare(tmp_path_factory.mktemp('source'))


def pytest_collection_modifyitems(items):
  """Puts files that start processes first: they are long, and no worker gets one at the end."""
  starting = {'commands', 'cloud', 'probe_report'}
  long = {item.path for item in items if starting & set(item.fixturenames)}
  items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish():
  """Spares the garbage collector what the imports made: tracing makes it run often."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 50, 100)
