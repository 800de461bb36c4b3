"""What ops ask of jax: a mesh of any kind, and names that are public and last."""

import ast
import importlib
import json
import os
import pathlib
import subprocess
import sys
import warnings

import jax
import pytest

from laser_pax import ops
from laser_pax.ops import devices

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted(pathlib.Path(ops.__file__).parent.glob('*.py'))
# Deprecated names that remain, and why.
DEPRECATED = {
  'jax.interpreters.pxla.thread_resources': 'nothing else tells of `with mesh:`, which PAX uses',
  'jax.experimental.shard_map.shard_map': 'jax 0.5.3 has no other; later ones get jax.shard_map',
  'jax.experimental.pallas.triton.TritonCompilerParams': 'jax 0.5.3 has no CompilerParams',
}
# Names that jax 0.5.3 lacks; devices.py looks first whether they are there.
LATER = {'jax.shard_map', 'jax.sharding.auto_axes', 'jax.sharding.reshard'}


def jax_names(file):
  """Returns the dotted names of jax that a file uses."""
  tree, roots, names = ast.parse(file.read_text()), {}, set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        name = alias.name if alias.asname else alias.name.split('.')[0]
        roots[alias.asname or name] = name
        names.add(alias.name)
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        roots[alias.asname or alias.name] = f'{node.module}.{alias.name}'
        names.add(f'{node.module}.{alias.name}')
  for node in ast.walk(tree):
    parts = []
    while isinstance(node, ast.Attribute):
      parts, node = [node.attr, *parts], node.value
    if parts and isinstance(node, ast.Name) and node.id in roots:
      names.add('.'.join([roots[node.id], *parts]))
  return {name for name in names if name.split('.')[0] in ('jax', 'jaxlib')}


NAMES = set().union(*map(jax_names, FILES))


def resolve(name):
  """Imports what a dotted name means."""
  module, *attributes = name.split('.')
  value = importlib.import_module(module)
  for attribute in attributes:
    module = f'{module}.{attribute}'
    try:
      value = getattr(value, attribute)
    except AttributeError:
      try:
        value = importlib.import_module(module)
      except ModuleNotFoundError:
        raise AttributeError(name) from None
  return value


def test_no_name_of_jax_is_private():
  private = {name for name in NAMES if any(part.startswith('_') for part in name.split('.'))}
  assert 'jax.nn.dot_product_attention' in NAMES and not private


def test_names_of_jax_last():
  deprecated, missing = set(), set()
  for name in NAMES:
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always')
      try:
        resolve(name)
      except AttributeError:
        missing.add(name)
    if any(issubclass(w.category, DeprecationWarning) for w in caught):
      deprecated.add(name)
  assert deprecated <= DEPRECATED.keys() and DEPRECATED.keys() & NAMES
  assert missing <= LATER | DEPRECATED.keys(), missing


def test_the_differences_of_versions_stand_in_one_file():
  for file in FILES:
    if file.name != 'devices.py':
      assert not jax_names(file) & (DEPRECATED.keys() | LATER), file


def test_without_a_mesh():
  assert devices.current_mesh() is None
  assert devices.platform() == jax.default_backend()


@pytest.fixture(scope='module')
def on_four_devices():
  env = {'XLA_FLAGS': '--xla_force_host_platform_device_count=4', 'JAX_PLATFORMS': 'cpu'}
  completed = subprocess.run(
    [sys.executable, '-m', 'tests.support.any_mesh'],
    env={**os.environ, **env, 'PYTHONPATH': str(ROOT)},
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert completed.returncode == 0, completed.stderr
  return json.loads(completed.stdout)


def test_each_kind_of_mesh_is_seen(on_four_devices):
  kinds = ['use_mesh'] if hasattr(jax.sharding, 'use_mesh') else []
  kinds = ['set_mesh Auto', 'set_mesh Explicit'] if hasattr(jax, 'set_mesh') else kinds
  assert list(on_four_devices) == ['with mesh', *kinds]
  for found in on_four_devices.values():
    assert found['platform'] == 'cpu' and found['axes'] == ['data', 'heads']


def test_under_each_kind_of_mesh_it_is_laser(on_four_devices):
  ways = ['plain', 'einsum', 'fused', 'over_mesh', 'over_mesh_in_context']
  ways += ['plain, beta', 'einsum, beta', 'over_mesh, beta']
  for kind, found in on_four_devices.items():
    for way in ways:
      assert found[way] < 1e-5, (kind, way, found[way])
