"""The figures of docs/pods.md: their claims hold."""

import json

import pytest

from benchmarks.tpu import pods
from laser_pax import configs
from laser_pax.costs import libtpu


@pytest.fixture(scope='module')
def tpu_compiler():
  """The TPU compiler, which is fetched into the user's cache if it is missing."""
  return libtpu.fetch()


@pytest.mark.parametrize(
  ('kept', 'tables'), [(pods.PODS, pods.pods_tables), (pods.MESHES, pods.meshes_tables)]
)
def test_the_page_shows_the_committed_figures(kept, tables):
  records = [json.loads(line) for line in kept.read_text().splitlines()]
  assert tables(records) in pods.PAGE.read_text()


def test_all_committed_pairs_fit_and_laser_costs_no_more():
  reports = [json.loads(line) for line in pods.PODS.read_text().splitlines()]
  reports_by_plan = {(r['experiment'], r['pod']): r for r in reports}
  for pair, chips in zip(pods.PAIRS, (64, 128, 256, 256, 256, 4, 4, 16), strict=True):
    for kind in ('v5p', 'v5e'):
      standard, laser = (reports_by_plan[name, f'{kind}-{chips}chips'] for name in pair)
      assert laser['fits'] and standard['fits']
      assert laser['sent_bytes'] == standard['sent_bytes']
      for name in ('temporary_bytes', 'peak_bytes'):
        assert laser['train'][name] <= 1.02 * standard['train'][name], (pair, kind, name)


def test_committed_figures_are_of_the_layouts_that_the_rule_gives():
  for line in pods.PODS.read_text().splitlines():
    r = json.loads(line)
    layout = getattr(configs, r['experiment'])().on(r['pod']).layout()
    assert list(layout.ici_mesh_shape) == r['ici_mesh_shape']
    assert layout.checkpoint_policy.name == r['checkpoint_policy']
    assert layout.micro_batches == r['micro_batches']


def test_a_slice_that_is_too_small_is_refused_with_one_that_fits(commands, tpu_compiler):
  flags = ['aot', '--exp=C4Laser7B', '--pod=v5e-4chips']
  command = commands.run('laser_pax', flags)
  assert command.returncode == 1, command.stderr
  assert 'DOES NOT FIT v5e-4chips' in command.stdout and 'v5e-16chips' in command.stdout
  command = commands.run('laser_pax', [*flags, '--json'])
  assert command.returncode == 1 and json.loads(command.stdout)[0]['fits'] is False


def test_the_rules_mesh_beats_the_plain_one_of_each_size():
  reports = [json.loads(line) for line in pods.MESHES.read_text().splitlines()]
  for size in ('300M', '1B', '2B', '7B'):
    own = [r for r in reports if r['experiment'] == f'C4Laser{size}' and r['fits']]
    (rule,) = (r for r in own if r['is_rule'])
    plain = [r for r in own if r['ici_mesh_shape'] == [1, rule['chips'], 1]]
    assert len({tuple(r['ici_mesh_shape']) for r in own}) >= 3 and len(own) >= 5
    assert all(rule['seconds']['in_turn'] < r['seconds']['in_turn'] for r in plain)
    alike = [r for r in own if r['checkpoint_policy'] == rule['checkpoint_policy']]
    assert rule['seconds']['in_turn'] <= 1.01 * min(r['seconds']['in_turn'] for r in alike)
