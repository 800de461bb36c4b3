"""A run changes its mesh, or the parts of its batch, only if it is asked to."""

import re
import types

import pytest

from laser_pax.errors import UserError
from laser_pax.experiment import kept_layout, layouts


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
  """The folder of a run on two slices of eight chips, in two parts."""
  kept_layout.write(tmp_path, experiment(dcn=(2, 1, 1), parts=2))
  return tmp_path


def test_the_same_mesh_over_all_slices_goes_on(folder):
  kept_layout.check(folder, experiment(dcn=(2, 1, 1), parts=2))
  kept_layout.check(folder, experiment(ici=(2, 8, 1), parts=2))


def test_a_folder_that_keeps_none_goes_on_anywhere(tmp_path):
  kept_layout.check(tmp_path, experiment())


@pytest.mark.parametrize('other', [{'ici': (1, 16, 1), 'parts': 2}, {'ici': (2, 8, 1), 'parts': 4}])
def test_another_that_the_rule_chooses_is_refused_with_the_values_to_set(folder, other):
  with pytest.raises(UserError) as e:
    kept_layout.check(folder, experiment(**other))
  told = str(e.value)
  assert f'{folder} are of the mesh [2, 8, 1] with 2 part(s)' in told
  assert f'chooses the mesh {list(other["ici"])} with {other["parts"]} part(s)' in told
  ici, parts = re.search(
    r'set ICI_MESH_SHAPE = (\[.*?\]) and MICRO_BATCHES = (\d+);', told
  ).groups()
  changed = experiment(**other, ICI_MESH_SHAPE=ici, MICRO_BATCHES=parts)
  kept_layout.check(folder, changed)
  kept_layout.write(folder, changed)
  kept_layout.check(folder, experiment(**other))  # Now it is the run's.


def test_each_part_must_be_asked_for(folder):
  other = {'ici': (1, 16, 1), 'parts': 4}
  for attributes in ({'ICI_MESH_SHAPE': [1, 16, 1]}, {'MICRO_BATCHES': 4}):
    with pytest.raises(UserError, match='to rounding alone'):
      kept_layout.check(folder, experiment(**other, **attributes))


def test_several_slices_are_named(folder):
  with pytest.raises(
    UserError, match=r'ICI_MESH_SHAPE = \[1, 8, 1\], DCN_MESH_SHAPE = \[4, 1, 1\]'
  ):
    kept_layout.check(folder, experiment(dcn=(4, 1, 1), parts=2))


@pytest.mark.parametrize('text', ['', '[]', '{"mesh": 3}', '{"mesh": [1, 1, 1]}', '{"mesh'])
def test_a_damaged_file_is_named(folder, text):
  (folder / kept_layout.FILE).write_text(text)
  with pytest.raises(UserError, match=f'{kept_layout.FILE} is damaged'):
    kept_layout.check(folder, experiment())
