"""The slices of configs/pods, and slices that a user adds."""

import itertools
import math

import pytest

from laser_pax.errors import UserError
from laser_pax.experiment import slices

# Google Cloud's names count cores of v5p, two on each chip, but chips of v5litepod.
_CORES = {'v5p': 2, 'v5litepod': 1, 'v6e': 1}


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
  """A folder of slices with one kind of chip."""
  (tmp_path / 'chips').mkdir()
  (tmp_path / 'chips' / 'new.toml').write_text(
    'name = "new"\nplatform = "tpu"\ndevice_kinds = ["TPU new"]\nchips_per_host = 4\nsource = "-"\n'
  )
  monkeypatch.setenv('LASER_PAX_PODS', str(tmp_path))
  return tmp_path


def _write(folder, **changes):
  fields = {'chip': 'new', 'chips': 8, 'slices': 1, 'hosts': 2, 'topology': '2x4'} | changes
  lines = [f'{k} = {v!r}'.replace("'", '"') for k, v in fields.items() if v is not None]
  (folder / 'new-8chips.toml').write_text('\n'.join(lines))


@pytest.mark.parametrize('name', slices.names())
def test_each_slice_agrees_with_its_names(name):
  pod = slices.find(name)
  if pod.topology is None:
    assert pod.chip.platform == 'cpu'
    return
  assert name.startswith(pod.chip.name)
  assert math.prod(int(n) for n in name.split('-')[1].removesuffix('chips').split('x')) == pod.chips
  kind, cores = pod.accelerator_type.rsplit('-', 1)
  assert int(cores) == _CORES[kind] * pod.chips_per_slice
  rates = (pod.chip.peak_bf16_tflops, pod.chip.hbm_gbps, pod.chip.ici_gbps)
  assert all(rate > 0 for rate in rates)
  assert pod.chip.usable_hbm_bytes <= 1.01 * pod.chip.hbm_gib * 2**30


def test_the_slices_that_the_experiments_need_are_there():
  wanted = {f'{kind}-{chips}chips' for kind in ('v5p', 'v5e', 'v6e') for chips in (4, 64, 128, 256)}
  assert wanted | {'v5p-2x64chips', 'cpu'} <= set(slices.names())


def test_a_file_adds_a_slice(own_folder):
  _write(own_folder)
  assert slices.names() == ['new-8chips']
  assert slices.find('new-8chips').chip.device_kinds == ('TPU new',)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'hosts': 3}, ['3 hosts of 4 chips']),
    ({'topology': '2x2'}, ['2x2', '4 chips']),
    ({'topology': 'square'}, ['like 4x8x8']),
    ({'chip': 'old'}, ["chip = 'old'"]),
    ({'chipz': 8}, ['chipz', 'chips']),
    ({'hosts': None}, ['lacks hosts']),
    ({'slices': 3}, ['3 equal slices']),
  ],
)
def test_a_wrong_file_is_refused_by_name(own_folder, changes, words):
  _write(own_folder, **changes)
  with pytest.raises(UserError) as e:
    slices.find('new-8chips')
  assert 'new-8chips.toml' in str(e.value)
  assert all(word in str(e.value) for word in words)


@pytest.mark.parametrize(
  ('wrong', 'right'),
  [('v5p-512', 'v5p-256chips'), ('v5p-256', 'v5p-128chips'), ('v5e-64', 'v5e-64chips')],
)
def test_a_wrong_name_suggests_near_ones(wrong, right):
  with pytest.raises(UserError, match=right):
    slices.find(wrong)


def test_a_running_job_finds_its_slice():
  job = dict(platform='tpu', device_kind='TPU v5 lite', slices=1)
  assert slices.from_devices(chips=64, topology='8x8x1', **job).name == 'v5e-64chips'
  unnamed = slices.from_devices(chips=32, topology='4x8x1', **job)
  assert (unnamed.chip.name, unnamed.chips, unnamed.hosts) == ('v5e', 32, 8)
  gpu = slices.from_devices(platform='gpu', device_kind='H100', chips=16, slices=1, topology=None)
  assert gpu.chip.usable_hbm_bytes is None


def test_meshes_take_whole_axes_of_the_topology():
  pod = slices.find('v5p-256chips')  # 4x8x8
  assert all(pod.can_lay_out(m) for m in [(256, 1, 1), (4, 64, 1), (1, 64, 4), (8, 4, 8)])
  # Neither 16 nor 2 is a product of whole axes. The last mesh has 128 chips, not 256.
  assert not any(pod.can_lay_out(m) for m in [(16, 16, 1), (1, 128, 2), (1, 64, 2)])


def test_without_a_topology_any_mesh_of_the_size_fits():
  pod = slices.from_devices(platform='cpu', device_kind='cpu', chips=8, slices=1, topology=None)
  meshes = [m for m in itertools.product(range(1, 9), repeat=3) if math.prod(m) == 8]
  assert all(pod.can_lay_out(m) for m in meshes)
  assert not pod.can_lay_out((1, 4, 1))
