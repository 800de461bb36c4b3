"""The rules of the house: imports between rooms, sizes of modules, and private names."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'laser_pax'
FILES = sorted(PACKAGE.rglob('*.py'))

# The other rooms that the modules of a room may import. '' is the package's own folder, with
# errors, folders, pax_fixes and pax_names.
ROOMS = {
  '': set(),
  'ops': set(),
  'layers': {'', 'ops'},
  'data': {''},
  'experiment': {'', 'ops', 'layers', 'data'},
  'configs': {'', 'ops', 'layers', 'data', 'experiment'},
  'costs': {'', 'ops', 'layers', 'data', 'experiment', 'configs'},
  'evaluation': {'', 'ops', 'layers', 'data', 'experiment', 'configs'},
  'sweeps': {'', 'ops', 'layers', 'data', 'experiment', 'configs'},
  'analysis': {'', 'ops', 'layers', 'data', 'experiment', 'configs'},
  'cli': {
    '',
    'ops',
    'layers',
    'data',
    'experiment',
    'configs',
    'costs',
    'evaluation',
    'sweeps',
    'analysis',
  },
}
# The usual short names of these modules.
ALIASES = {
  'flax.linen': 'nn',
  'jax.numpy': 'jnp',
  'numpy': 'np',
  'tensorflow': 'tf',
  'tensorflow_datasets': 'tfds',
  'matplotlib.pyplot': 'plt',
}
LIBRARIES = ('jax', 'jaxlib', 'paxml', 'praxis')
MAX_MODULE_LINES, MAX_FUNCTION_LINES = 400, 50


def _name(file: pathlib.Path) -> str:
  parts = file.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {_name(file): file for file in FILES}


def _imports(file: pathlib.Path) -> list[tuple[str, str | None]]:
  """Returns all imports, at any depth: the module, and the name that it gets."""
  imports = []
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      imports += [(alias.name, alias.asname) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{file} has a relative import'
      for alias in node.names:
        full_name = f'{node.module}.{alias.name}'
        is_module = full_name in MODULES or not node.module.startswith('laser_pax')
        imports.append((full_name if is_module else node.module, alias.asname))
  return imports


def _room(module: str) -> str:
  parts = module.split('.')
  return parts[1] if len(parts) > 1 and parts[1] in ROOMS else ''


def _own_imports(file: pathlib.Path) -> set[str]:
  modules = (module for module, _ in _imports(file) if module.split('.')[0] == 'laser_pax')
  return {module for module in modules if module in MODULES}


@pytest.mark.parametrize('file', FILES, ids=_name)
def test_imports_run_one_way(file):
  if file.name == '__main__.py':  # `python -m laser_pax` is the command line.
    return
  room = _room(_name(file))
  for module in _own_imports(file):
    assert _room(module) in ROOMS[room] | {room}, f'{_name(file)} imports {module}'


def test_no_import_at_any_depth_closes_a_circle():
  graph = {name: _own_imports(file) - {name} for name, file in MODULES.items()}
  while leaves := [name for name, needs in graph.items() if not needs & graph.keys()]:
    for name in leaves:
      del graph[name]
  assert not graph, f'these import each other: {sorted(graph)}'


def test_the_mathematics_needs_jax_and_numpy_alone():
  standard = {'ast', 'collections', 'dataclasses', 'functools', 'math', 'string', 'typing'}
  standard |= {'warnings'}
  for file in (PACKAGE / 'ops').glob('*.py'):
    libraries = {module.split('.')[0] for module, _ in _imports(file)}
    assert libraries <= standard | {'jax', 'numpy', 'laser_pax'}, file


@pytest.mark.parametrize('file', FILES, ids=_name)
def test_private_names_of_libraries_stand_in_pax_fixes_alone(file):
  """A method that overrides a library's method extends the library, so it is allowed."""
  if file.name == 'pax_fixes.py':
    return
  for module, _ in _imports(file):
    parts = module.split('.')
    assert parts[0] not in LIBRARIES or not any(p.startswith('_') for p in parts), module
  tree = ast.parse(file.read_text())
  own_names = {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and ast.unparse(node) == 'os._exit':  # It is public.
      continue
    if isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in own_names:
      assert _is_own(node.value), f'{_name(file)}:{node.lineno} uses {node.attr}'


def _is_private(name: str) -> bool:
  return name.startswith('_') and not name.startswith('__') and name not in ('_asdict', '_replace')


def _is_own(value: ast.expr) -> bool:
  """Returns whether the value is self, cls or super()."""
  if isinstance(value, ast.Call):
    value = value.func
  return isinstance(value, ast.Name) and value.id in ('self', 'cls', 'super')


@pytest.mark.parametrize('file', FILES, ids=_name)
def test_a_module_keeps_its_name(file):
  for module, name in _imports(file):
    is_class = module.split('.')[-1][0].isupper()
    assert name is None or is_class or ALIASES.get(module) == name, f'{module} as {name}'


@pytest.mark.parametrize('file', FILES, ids=_name)
def test_modules_and_functions_fit_a_reader(file):
  text = file.read_text()
  assert len(text.splitlines()) <= MAX_MODULE_LINES
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.FunctionDef):
      has_docstring = ast.get_docstring(node) is not None
      first = node.body[min(int(has_docstring), len(node.body) - 1)]
      lines = node.end_lineno - first.lineno + 1
      assert lines <= MAX_FUNCTION_LINES, f'{node.name} has {lines} lines'


def test_the_formula_stands_on_one_page():
  assert len((PACKAGE / 'ops' / 'laser.py').read_text().splitlines()) <= 150
