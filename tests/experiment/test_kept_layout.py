"""A run changes its mesh, or the parts of its batch, only if it is asked to."""

import json
import shlex
import types

import pytest

from laser_pax.errors import UserError
from laser_pax.experiment import checkpoints, kept_layout, layouts, overrides


def experiment(ici=(1, 8, 1), dcn=(1, 1, 1), parts=1, **attributes):
  """Returns an experiment whose rule chooses a layout. Attributes are those that it sets itself."""
  layout = layouts.Layout(
    ici_mesh_shape=ici,
    dcn_mesh_shape=dcn,
    checkpoint_policy=layouts.Policy.SAVE_NOTHING,
    micro_batches=parts,
  )
  names = ('ICI_MESH_SHAPE', 'DCN_MESH_SHAPE', 'MICRO_BATCHES')
  unset = dict.fromkeys(names)
  return types.SimpleNamespace(layout=lambda: layout, **unset | attributes)


@pytest.fixture
def folder(tmp_path):
  """The folder of a run with checkpoint 7, of two slices of eight chips, in two parts."""
  checkpoint = tmp_path / 'checkpoints' / 'checkpoint_00000007'
  for part, text in (('state', '1'), ('metadata', '{}')):
    (checkpoint / part).mkdir(parents=True)
    (checkpoint / part / part).write_text(text)
  kept = {'mesh': [2, 8, 1], 'micro_batches': 2}
  (checkpoint / kept_layout.FILE).write_text(json.dumps(kept))
  assert checkpoints.survey(tmp_path).whole == 7
  return tmp_path


def test_the_same_mesh_over_all_slices_goes_on(folder):
  kept_layout.check(folder, experiment(dcn=(2, 1, 1), parts=2))
  kept_layout.check(folder, experiment(ici=(2, 8, 1), parts=2))


def test_where_none_is_kept_a_run_goes_on_anywhere(folder, tmp_path_factory):
  kept_layout.check(tmp_path_factory.mktemp('empty'), experiment())
  next(folder.glob(f'checkpoints/*/{kept_layout.FILE}')).unlink()
  kept_layout.check(folder, experiment())


@pytest.mark.parametrize(
  'other',
  [
    {'ici': (1, 16, 1), 'parts': 2},
    {'ici': (2, 8, 1), 'parts': 4},
    {'ici': (1, 8, 1), 'dcn': (4, 1, 1), 'parts': 2},
  ],
)
def test_another_that_the_rule_chooses_is_refused_with_what_to_give(folder, other):
  mesh = experiment(**other).layout().mesh()
  with pytest.raises(UserError) as e:
    kept_layout.check(folder, experiment(**other))
  told = str(e.value)
  assert f'{folder}: checkpoint 7 was trained on the mesh [2, 8, 1] with 2 part(s)' in told
  assert f'chooses the mesh {mesh} with {other["parts"]} part(s)' in told
  flags = shlex.split(told.partition('give ')[2].partition(';')[0])
  given = overrides.of_flags(flags)
  expected = {'ICI_MESH_SHAPE': list(other['ici']), 'MICRO_BATCHES': other['parts']}
  assert given == expected | ({'DCN_MESH_SHAPE': list(other['dcn'])} if 'dcn' in other else {})
  kept_layout.check(folder, experiment(**other, **given))


def test_each_part_must_be_asked_for(folder):
  other = {'ici': (1, 16, 1), 'parts': 4}
  for attributes in ({'ICI_MESH_SHAPE': [1, 16, 1]}, {'MICRO_BATCHES': 4}):
    with pytest.raises(UserError, match='to rounding alone'):
      kept_layout.check(folder, experiment(**other, **attributes))


@pytest.mark.parametrize('text', ['', '[]', '{"mesh": 3}', '{"mesh": [1, 1, 1]}', '{"mesh'])
def test_a_damaged_one_is_left_to_the_checksums(folder, text):
  next(folder.glob(f'checkpoints/*/{kept_layout.FILE}')).write_text(text)
  kept_layout.check(folder, experiment())
