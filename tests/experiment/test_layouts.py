"""The rule that lays an experiment out."""

import dataclasses
import itertools
import math

import pytest
from praxis import layers

from laser_pax import configs
from laser_pax.errors import UserError
from laser_pax.experiment import layouts, slices

Policy = layers.AutodiffCheckpointType
SIZES = ('234M', '300M', '1B', '2B', '7B')
PODS = [name for name in slices.names() if name != 'cpu']


def _laser(size):
  return getattr(configs, f'C4Laser{size}')()


@pytest.mark.parametrize(('size', 'pod'), itertools.product(SIZES, PODS))
def test_every_experiment_has_a_layout_on_every_slice(size, pod):
  experiment = _laser(size).on(pod)
  layout = experiment.layout()
  assert math.prod(layout.mesh()) == experiment.pod().chips
  experiment.check()
  experiment.check_pod()
  # Only the 7B does not fit the smallest slices: its state alone is 23 GiB on each chip there.
  fits = layouts.fits(experiment.sizes(), layout, experiment.pod())
  assert fits == (size != '7B' or pod not in ('v5e-4chips', 'v6e-4chips'))


@pytest.mark.parametrize('size', SIZES)
def test_twins_share_a_layout(size):
  for pod in PODS:
    twin = getattr(configs, f'C4Standard{size}')().on(pod)
    assert twin.layout() == _laser(size).on(pod).layout()


@pytest.mark.parametrize('size', SIZES)
def test_fewer_chips_take_the_same_batch_in_more_parts(size):
  chips = (4, 64, 128, 256)
  experiments = [_laser(size).on(f'v5e-{n}chips') for n in chips]
  parts = [e.micro_batches() for e in experiments]
  assert all(e.GLOBAL_BATCH_SIZE == 1024 for e in experiments)
  assert parts[0] > parts[-1] == 1


def test_the_rule_takes_the_fastest_that_fits():
  experiment = _laser('2B').on('v5p-256chips')
  sizes, pod, chosen = experiment.sizes(), experiment.pod(), experiment.layout()
  layouts_to_compare = [
    dataclasses.replace(chosen, ici_mesh_shape=mesh, checkpoint_policy=policy)
    for mesh in [(256, 1, 1), (64, 4, 1), (4, 64, 1), (1, 256, 1)]
    for policy in layouts.POLICIES
  ]
  fitting = [layout for layout in layouts_to_compare if layouts.fits(sizes, layout, pod)]
  fastest = min(layouts.step_seconds(sizes, layout, pod) for layout in fitting)
  assert layouts.step_seconds(sizes, chosen, pod) == fastest


def test_an_evaluation_holds_no_more_at_once_than_a_train_step():
  experiment = configs.C4LaserTiny()
  for parts, rows in ((1, 8), (4, 2)):
    experiment.MICRO_BATCHES = parts
    assert experiment.eval_batch_size() == rows
    train, validation = experiment.datasets()
    assert (train.batch_size, validation.batch_size) == (8, rows)


def test_attributes_that_the_experiment_sets_are_kept():
  experiment = _laser('300M').on('v5p-64chips')
  experiment.ICI_MESH_SHAPE = [16, 4, 1]
  experiment.CHECKPOINT_POLICY = Policy.SAVE_NOTHING
  experiment.MICRO_BATCHES = 8
  layout = experiment.layout()
  assert layout.ici_mesh_shape == (16, 4, 1)
  assert (layout.checkpoint_policy, layout.micro_batches) == (Policy.SAVE_NOTHING, 8)
  task = experiment.task()
  assert task.model.ici_mesh_shape == [16, 4, 1]
  assert task.model.lm_tpl.stacked_transformer_tpl.checkpoint_policy == Policy.SAVE_NOTHING


def test_a_policys_name_may_be_in_either_case():
  experiment = _laser('300M').on('v5p-64chips')
  for name in ('save_nothing', 'SAVE_NOTHING', Policy.SAVE_NOTHING):
    experiment.CHECKPOINT_POLICY = name
    assert experiment.layout().checkpoint_policy is Policy.SAVE_NOTHING
  experiment.CHECKPOINT_POLICY = 'save_nothin'
  with pytest.raises(UserError, match='save_nothing'):
    experiment.layout()


@pytest.mark.parametrize(
  ('name', 'value'),
  [('MICRO_BATCHES', 0), ('ICI_MESH_SHAPE', [0, 64, 1]), ('ICI_MESH_SHAPE', [64, 1])],
)
def test_an_invalid_layout_is_refused(name, value):
  experiment = _laser('300M').on('v5p-64chips')
  setattr(experiment, name, value)
  with pytest.raises(UserError, match=name):
    experiment.check()


def test_several_slices_are_replicas():
  experiment = _laser('300M').on('v5p-2x64chips')
  assert experiment.layout().dcn_mesh_shape == (2, 1, 1)
  assert math.prod(experiment.mesh()) == 128
  assert experiment.task().model.dcn_mesh_shape == [2, 1, 1]


@pytest.mark.parametrize(
  ('mesh', 'words'),
  [
    ([16, 16, 1], ['4x8x8', '[16, 16, 1]']),
    ([1, 64, 1], ['64 devices', '256']),
  ],
)
def test_a_mesh_that_the_slice_cannot_have_is_refused(mesh, words):
  experiment = _laser('2B').on('v5p-256chips')
  experiment.ICI_MESH_SHAPE = mesh
  with pytest.raises(UserError) as e:
    experiment.check_pod()
  assert all(word in str(e.value) for word in words)


def test_a_machine_whose_accelerators_jax_did_not_find_is_refused():
  experiment = _laser('2B')
  with pytest.raises(UserError, match='planned for v5p-256chips; this job has 1 CPU'):
    experiment.check_pod()
  experiment.POD = 'cpu'
  experiment.check_pod()


def test_each_saving_lowers_memory_and_does_not_lower_time():
  experiment = _laser('7B').on('v5p-256chips')
  sizes, pod = experiment.sizes(), experiment.pod()
  base = layouts.Layout(
    ici_mesh_shape=(256, 1, 1),
    dcn_mesh_shape=(1, 1, 1),
    checkpoint_policy=Policy.SAVE_DOT_WITH_NO_BATCH_DIM,
    micro_batches=1,
  )
  savings = [
    {'ici_mesh_shape': (1, 256, 1)},
    {'checkpoint_policy': Policy.SAVE_QKV_OUT_PROJ},
    {'checkpoint_policy': Policy.SAVE_NOTHING},
    {'micro_batches': 4},
  ]
  for saving in savings:
    lean = dataclasses.replace(base, **saving)
    assert layouts.peak_bytes(sizes, lean) < layouts.peak_bytes(sizes, base), saving
    assert layouts.step_seconds(sizes, lean, pod) >= layouts.step_seconds(sizes, base, pod), saving


def test_unknown_chips_take_the_plain_layout():
  experiment = configs.C4LaserTiny()
  pod = slices.from_devices(platform='gpu', device_kind='H100', chips=8, slices=1, topology=None)
  layout = layouts.choose(experiment.sizes(), pod)
  assert (layout.ici_mesh_shape, layout.micro_batches) == ((1, 8, 1), 1)
