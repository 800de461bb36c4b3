"""No file that a user names is unpickled: pickle runs what it reads."""

import ast

import pytest

from tests.support.commands import ROOT

CODE = sorted(p for folder in ('laser_pax', 'benchmarks') for p in (ROOT / folder).rglob('*.py'))
# Modules and functions that unpickle, or may.
_MODULES = {'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal'}
_CALLS = {'torch.load', 'pandas.read_pickle', 'pd.read_pickle', 'yaml.load', 'yaml.unsafe_load'}


def faults(source: str) -> list[str]:
  """Returns what in a program unpickles."""
  found = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found += [a.name for a in node.names if a.name.split('.')[0] in _MODULES]
    elif isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] in _MODULES:
      found.append(node.module)
    elif isinstance(node, ast.Call):
      if ast.unparse(node.func) in _CALLS:
        found.append(ast.unparse(node.func))
      found += [k.arg for k in node.keywords if k.arg == 'allow_pickle']
  return found


@pytest.mark.parametrize('bad', ['import pickle', 'from joblib import load', 'torch.load(x)',
                                 'np.load(x, allow_pickle=True)', 'yaml.load(x)'])  # fmt: skip
def test_the_search_finds(bad):
  assert faults(bad)


def test_nothing_unpickles():
  assert CODE
  found = {str(p.relative_to(ROOT)): what for p in CODE if (what := faults(p.read_text()))}
  assert not found
