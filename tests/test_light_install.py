"""The light install: what it brings, how fast it is imported, and what it says of PAX."""

import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
ONLY_JAX = {'jax', 'jaxlib', 'ml_dtypes', 'numpy', 'opt_einsum', 'scipy'}
LINE = (
  'expected PAX in this environment, found the light install (jax and numpy alone); '
  'run scripts/setup.sh in a clone of the repository, and use the .venv that it makes'
)


def requirements(packages) -> set[str]:
  """Returns packages and all that they need, extras left out."""
  found, names = set(), list(packages)
  while names:
    name = re.match(r'[\w.-]+', names.pop())[0].replace('-', '_').lower()
    if name not in found:
      found.add(name)
      needed = importlib.metadata.requires(name) or []
      names += [r for r in needed if 'extra ==' not in r]
  return found


@pytest.fixture(scope='module')
def light(tmp_path_factory):
  """Returns a function that runs Python where the light install's packages are, and no others."""
  site = tmp_path_factory.mktemp('site')
  for name in ONLY_JAX:
    for file in importlib.metadata.files(name):
      top = file.parts[0]
      if top not in ('..', '__pycache__') and not (site / top).exists():
        (site / top).symlink_to(importlib.metadata.distribution(name).locate_file(top))
  (site / 'laser_pax').symlink_to(ROOT / 'laser_pax')

  def run(*args, folder='.'):
    env = {**os.environ, 'PYTHONPATH': str(site), 'JAX_PLATFORMS': 'cpu'}
    return subprocess.run(
      [sys.executable, '-S', *args], cwd=site, env=env, capture_output=True, text=True, check=False
    )

  return run


def test_it_brings_jax_and_numpy_alone():
  assert requirements(PROJECT['dependencies']) == ONLY_JAX


def test_it_has_no_upper_bound():
  assert PROJECT['requires-python'] == '>=3.11'
  assert all('<' not in requirement for requirement in PROJECT['dependencies'])


def test_its_names_are_there_and_imported_fast(light):
  program = """
import json, sys, time
import laser_pax
before = time.process_time()
assert 'jax' not in sys.modules
import jax, jax.numpy
with_jax = time.process_time()
import warnings
warnings.filterwarnings('error', category=DeprecationWarning)
from laser_pax import fused_attention, laser, laser_oracle, log_weighted_sum_exp
done = time.process_time()
x = jax.numpy.ones((1, 2, 1, 4))
output = laser(jax.nn.dot_product_attention)(x, x, x)
print(json.dumps({'jax': with_jax - before, 'laser': done - with_jax, 'output': output.tolist()}))
"""
  completed = light('-c', program)
  assert completed.returncode == 0, completed.stderr
  found = json.loads(completed.stdout)
  assert found['output'] == [[[[1.0] * 4]] * 2]
  assert found['laser'] < 1, found


@pytest.mark.parametrize(
  'args',
  [[], ['--help'], ['list'], ['show', 'C4Laser2B'], ['train', '--exp=C4LaserTiny'], ['doctor']],
)
def test_a_command_says_what_brings_the_rest(light, args):
  completed = light('-m', 'laser_pax', *args)
  assert (completed.returncode, completed.stderr, completed.stdout) == (2, f'error: {LINE}\n', '')


@pytest.mark.parametrize(
  'statement',
  ['import laser_pax.configs', 'from laser_pax import use_laser', 'import laser_pax.layers'],
)
def test_an_import_says_what_brings_the_rest(light, statement):
  completed = light('-c', f'try:\n  {statement}\nexcept ImportError as e:\n  print(e)')
  assert completed.stdout == LINE + '\n', completed.stderr
