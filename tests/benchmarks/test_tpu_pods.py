"""The figures of docs/pods.md: what they promise, and that the TPU compiler still gives them."""

import json

import pytest

from benchmarks.tpu import pods
from laser_pax import configs
from laser_pax.costs import libtpu


@pytest.fixture(scope='module')
def tpu_compiler():
  """The TPU compiler, fetched into this user's cache where it is not there yet."""
  return libtpu.fetch()


@pytest.mark.slow
def test_a_pair_compiles_for_a_v5p_slice_to_the_committed_figures(commands, tpu_compiler):
  committed = {}
  for line in pods.PODS.read_text().splitlines():
    r = json.loads(line)
    committed[r['experiment'], r['pod']] = r
  flags = ['--exp=C4Laser300M', '--compare=C4Standard300M', '--pod=v5p-64chips', '--json']
  done = commands.run('laser_pax', ['aot', *flags], timeout=600)
  assert done.returncode == 0, done.stderr
  laser, standard = json.loads(done.stdout)
  for found in (laser, standard):
    known = committed[found['experiment'], 'v5p-64chips']
    assert found['fits'] and known['fits']
    for step in ('train', 'eval'):
      for name in ('state_bytes', 'temporary_bytes', 'peak_bytes'):
        assert found[step][name] == pytest.approx(known[step][name], rel=0.02), (step, name)
    assert found['sent_bytes'] == pytest.approx(known['sent_bytes'], rel=0.02)
    assert found['flops'] == pytest.approx(known['flops'], rel=0.02)
    assert found['mfu_bound'] == pytest.approx(known['mfu_bound'], rel=0.02)
  assert laser['sent_bytes'] == standard['sent_bytes']
  for name in ('temporary_bytes', 'peak_bytes'):
    assert laser['train'][name] <= 1.02 * standard['train'][name]


@pytest.mark.slow
@pytest.mark.parametrize(
  ('experiment', 'layers_per_block', 'gib'),
  [('C4Laser300M', 1, 2.4), ('C4Laser2B', 2, 1.5)],
)
def test_full_rematerialisation_takes_little(
  experiment, layers_per_block, gib, commands, tpu_compiler
):
  arguments = ['rematerialised', experiment, layers_per_block]
  done = commands.run('tests.support.tpu_compiles', arguments, timeout=600)
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout.splitlines()[-1])
  assert report['checkpoint_policy'] == 'SAVE_NOTHING'
  assert report['train']['temporary_bytes'] <= gib * 2**30


@pytest.mark.parametrize(
  ('kept', 'tables'), [(pods.PODS, pods.pods_tables), (pods.MESHES, pods.meshes_tables)]
)
def test_the_page_shows_what_was_kept(kept, tables):
  found = [json.loads(line) for line in kept.read_text().splitlines()]
  assert tables(found) in pods.PAGE.read_text()


def test_all_committed_pairs_fit_and_laser_costs_no_more():
  reports = [json.loads(line) for line in pods.PODS.read_text().splitlines()]
  by_name = {(r['experiment'], r['pod']): r for r in reports}
  wanted = {('300M', 64), ('1B', 128), ('2B', 256), ('7B', 256)}
  for size, chips in wanted:
    for kind in ('v5p', 'v5e'):
      laser, standard = (
        by_name[f'C4{n}{size}', f'{kind}-{chips}chips'] for n in ('Laser', 'Standard')
      )
      assert laser['fits'] and standard['fits']
      assert laser['sent_bytes'] == standard['sent_bytes']
      for name in ('temporary_bytes', 'peak_bytes'):
        assert laser['train'][name] <= 1.02 * standard['train'][name], (size, kind, name)


def test_committed_figures_are_of_the_layouts_that_the_rule_gives():
  for line in pods.PODS.read_text().splitlines():
    r = json.loads(line)
    found = getattr(configs, r['experiment'])().on(r['pod']).layout()
    assert list(found.ici_mesh_shape) == r['ici_mesh_shape']
    assert found.checkpoint_policy.name == r['checkpoint_policy']
    assert found.micro_batches == r['micro_batches']


def test_a_slice_that_is_too_small_is_refused_with_what_would_fit(commands, tpu_compiler):
  flags = ['aot', '--exp=C4Laser7B', '--pod=v5e-4chips']
  done = commands.run('laser_pax', flags)
  assert done.returncode == 1, done.stderr
  assert 'DOES NOT FIT v5e-4chips' in done.stdout and 'v5e-64chips' in done.stdout
  done = commands.run('laser_pax', [*flags, '--json'])
  assert done.returncode == 1 and json.loads(done.stdout)[0]['fits'] is False


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
