"""Every registered experiment, and each pair."""

import dataclasses
import difflib
import functools
import math
import pathlib
import re

import fiddle
import numpy as np
import pytest
from fiddle import daglish
from paxml import experiment_registry
from praxis import base_hyperparams

from laser_pax import configs
from laser_pax.cli import experiments
from laser_pax.configs import bert, c4, c4_ablations, imagenet, librispeech, superglue
from laser_pax.costs import facts
from laser_pax.experiment.bert import BertMLM
from laser_pax.experiment.conformer import LibriSpeechConformer
from laser_pax.experiment.decoder import DecoderLM
from laser_pax.experiment.vit import ImageNetViT
from tests.support import goldens

NAMES = list(experiments.registered())
PAIRS = [(name, name.replace('Standard', 'Laser')) for name in NAMES if 'Standard' in name]
# The golden of one experiment a family is a full text. Other goldens are differences from it.
FULL = {
  DecoderLM: 'C4Standard300M',
  BertMLM: 'WikipediaStandardBert2B',
  ImageNetViT: 'ImageNetStandardViTS16',
  LibriSpeechConformer: 'LibriSpeechStandardConformer',
}


_compute_facts = facts.facts  # A test puts another in its place.


@functools.cache
def _facts(name: str) -> facts.Facts:
  return _compute_facts(getattr(configs, name)().on())


@functools.cache
def _resolved(name: str) -> str:
  """Returns the set fields of the resolved config, and the parameters, a line each."""
  experiment = getattr(configs, name)().on()
  fields = base_hyperparams.nested_struct_to_text(experiment.task()).splitlines()
  lines = [line for line in fields if not line.endswith(' : NoneType')]
  lines += [
    f'parameter {v.name} {list(v.shape)} {list(v.sharding)}' for v in _facts(name).variables
  ]
  return '\n'.join(lines) + '\n'


def _golden(name: str) -> tuple[pathlib.Path, str]:
  """Returns the golden's file, and its expected text."""
  family = next(cls for cls in FULL if issubclass(getattr(configs, name), cls))
  if FULL[family] == name:
    return goldens.FOLDER / f'{name}.txt', _resolved(name)
  full, own = (text.splitlines() for text in (_resolved(FULL[family]), _resolved(name)))
  lines = difflib.unified_diff(full, own, n=0, lineterm='')
  changed = [line for line in lines if not line.startswith(('---', '+++', '@@'))]
  return goldens.FOLDER / f'{name}.diff', '\n'.join(changed) + '\n'


@pytest.mark.parametrize('name', NAMES)
def test_resolves_to_its_golden(name):
  file, text = _golden(name)
  if goldens.are_rewritten():
    file.write_text(text)
  difference = difflib.unified_diff(file.read_text().split('\n'), text.split('\n'), lineterm='')
  assert not list(difference), f'{name} has changed; if so meant, rewrite with {goldens.REWRITE}=1'


def test_no_golden_is_left_over():
  files = (file for file in goldens.FOLDER.iterdir() if file.suffix in ('.txt', '.diff'))
  assert {file.stem for file in files} == set(NAMES)


@pytest.mark.parametrize(
  'name',
  ['C4Laser300M', 'WikipediaLaserBert2B', 'ImageNetLaserViTS16', 'LibriSpeechLaserConformer'],
)
def test_a_pairs_difference_is_three_lines(name):
  file, text = _golden(name)
  assert [line[0] for line in text.splitlines()] == ['-', '+', '+'], file


@pytest.mark.parametrize('name', NAMES)
def test_is_registered_under_the_name_of_the_package(name):
  assert experiment_registry.get(f'laser_pax.configs.{name}') is getattr(configs, name)


@pytest.mark.parametrize('module', [bert, c4, c4_ablations, imagenet, librispeech, superglue])
def test_the_commands_stand_once_and_name_experiments(module):
  named = re.findall(r'--exp=(?:laser_pax\.configs\.)?(\w+)', module.__doc__)
  assert len(named) == 2 and set(named) <= set(NAMES)
  assert not any('--exp=' in getattr(configs, name).__doc__ for name in NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_docstring_gives_the_facts(name):
  doc, f = getattr(configs, name).__doc__, _facts(name)
  assert any(mark in doc.split('\n')[0] for mark in ('[ours]', '[paper]', '[digest]'))
  scale = {'M': 1e6, 'B': 1e9}
  number, unit = re.search(r'([\d.]+)([MB]) parameters', doc).groups()
  assert float(number) * scale[unit] == pytest.approx(f.parameters, rel=0.01)
  number, unit = re.search(rf'([\d.]+)([MB]) {getattr(configs, name).UNIT}', doc).groups()
  assert float(number) * scale[unit] == pytest.approx(f.units, rel=0.01)
  assert f'{f.devices} chips' in doc or (f.devices == 1 and 'one device' in doc)


@pytest.mark.parametrize('name', NAMES)
def test_a_random_batch_has_the_shapes_of_a_training_batch(name):
  experiment = getattr(configs, name)().on()
  batch = experiment.random_batch(np.random.default_rng(0), 2)
  specs = experiment.input_specs(2)
  assert {k: (x.shape, x.dtype) for k, x in batch.items()} == {
    k: (x.shape, x.dtype) for k, x in specs.items()
  }
  again = experiment.random_batch(np.random.default_rng(0), 2)
  assert all(np.array_equal(batch[k], again[k]) for k in batch)


def _has_factory(config: fiddle.Buildable, name: str) -> bool:
  """Returns whether a field's default is made anew each time: fiddle does not give its value."""
  fields = getattr(fiddle.get_callable(config), '__dataclass_fields__', {})
  return name in fields and fields[name].default_factory is not dataclasses.MISSING


def _differences(a, b, path='') -> list[str]:
  """Returns the paths of the classes or values that two configs do not share."""
  if isinstance(a, fiddle.Buildable) and isinstance(b, fiddle.Buildable):
    paths = [] if fiddle.get_callable(a) is fiddle.get_callable(b) else [f'{path}:class']
    names, other_names = (set(fiddle.ordered_arguments(x, include_defaults=True)) for x in (a, b))
    paths += [f'{path}.{name}' for name in names ^ other_names]
    for name in names & other_names:
      if name in {**a.__arguments__, **b.__arguments__} or not _has_factory(a, name):
        paths += _differences(getattr(a, name), getattr(b, name), f'{path}.{name}')
    return paths
  if daglish.is_traversable_type(type(a)) and type(a) is type(b):
    left, right = (daglish.find_node_traverser(type(x)).flatten(x) for x in (a, b))
    if len(left[0]) == len(right[0]):
      return [d for x, y in zip(left[0], right[0], strict=True) for d in _differences(x, y, path)]
  return [] if a is b or a == b else [path]


@pytest.mark.parametrize(('standard', 'laser'), PAIRS)
def test_a_pair_differs_in_its_attention_alone(standard, laser):
  standard, laser = getattr(configs, standard)(), getattr(configs, laser)()
  differences = _differences(standard.task(), laser.task())
  assert differences, 'LASER must change the attention'
  for path in differences:
    own = ('_atten_tpl:class', '_atten_tpl.numerics', '_atten_tpl.beta_tpl')
    assert path.endswith(own), path
  capitals = [n for n in dir(standard) if n.isupper()]
  assert sorted([*capitals, 'BETA', 'NUMERICS']) == [n for n in dir(laser) if n.isupper()]
  for name in capitals:
    assert getattr(standard, name) == getattr(laser, name), name


@pytest.mark.parametrize(
  ('size', 'parameters'),
  [
    ('234M', 234.1e6),
    ('300M', 301.2e6),
    ('1B', 1.139e9),
    ('2B', 2.213e9),
    ('7B', 7.714e9),
  ],
)
@pytest.mark.parametrize('kind', ['Standard', 'Laser'])
def test_parameters_within_half_a_percent_of_the_names_count(kind, size, parameters):
  f = _facts(f'C4{kind}{size}')
  assert f.parameters == pytest.approx(parameters, rel=5e-3)


@pytest.mark.parametrize('kind', ['Standard', 'Laser'])
def test_bert_has_the_papers_size(kind):
  assert _facts(f'Wikipedia{kind}Bert2B').parameters == 2_202_163_898


def test_tokens_are_the_papers():
  assert configs.C4Laser300M().units() == pytest.approx(167.8e9, rel=1e-3)
  assert configs.C4Laser7B().units() == pytest.approx(44e9, rel=1e-3)


def test_state_memory_is_parameters_and_two_moments_over_the_mesh():
  f = _facts('C4Laser7B')
  axes = dict(zip(('replica', 'data', 'mdl'), f.mesh, strict=True))
  split = [math.prod(axes.get(axis, 1) for axis in v.sharding) for v in f.variables]
  share = sum(math.prod(v.shape) / parts for v, parts in zip(f.variables, split, strict=True))
  assert max(split) == math.prod(f.mesh[1:])  # Each replica has the whole state.
  # The rest is float32 weights and two moments. The learner has a few int32 counters a layer.
  counters = f.state_bytes_per_device - 3 * 4 * share
  assert 0 < counters < 4 * 5 * (configs.C4Laser7B.NUM_LAYERS + 1)


@pytest.mark.parametrize('name', NAMES)
def test_the_table_that_ships_is_up_to_date(name, monkeypatch):
  """The test of the first experiment writes the table again if the variable is set."""
  monkeypatch.setattr(facts, 'facts', lambda experiment: _facts(type(experiment).__name__))
  if goldens.are_rewritten() and name == NAMES[0]:
    experiments.write_table()
  row = next(row for row in experiments.table() if row['experiment'] == name)
  assert row == experiments.row(getattr(configs, name)().on())


def test_a_subclass_scales_a_model():
  class Wide(configs.C4Laser300M):
    NUM_LAYERS = 2
    MODEL_DIMS = 512
    ICI_MESH_SHAPE = [1, 4, 2]

  f = facts.facts(Wide())
  assert f.devices == 8
  matrices = 2 * (4 * 512**2 + 2 * 512 * 2048) + 32_000 * 512
  assert f.parameters == pytest.approx(matrices, rel=5e-3)
