"""Reports: one on this machine's CPU, and refusals with advice."""

import json
import pathlib

import jax
import pytest

from laser_pax import configs
from laser_pax.costs import reports

ROOT = pathlib.Path(__file__).parents[2]


def test_a_slice_that_is_too_small_is_refused_with_slices_that_fit():
  experiment = configs.C4Laser7B().on('v5e-4chips')
  with pytest.raises(reports.DoesNotFit) as e:
    reports.report(experiment)
  assert 'DOES NOT FIT v5e-4chips' in str(e.value)
  assert 'v5e-64chips' in str(e.value) and 'v5p-4chips' in str(e.value)


@pytest.fixture
def quick_compile():
  """XLA compiles without its slow optimisations."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def test_a_report_of_this_machine(quick_compile):
  experiment = configs.C4LaserTiny().on('cpu')
  experiment.NUM_LAYERS, experiment.MICRO_BATCHES = 1, 2
  experiment.VOCAB_SIZE, experiment.SEQ_LEN = 512, 32  # So that it compiles soon.
  report = reports.report(experiment)
  assert report.fits and report.times is None and report.collectives == []
  assert 0 < report.evaluation.peak_bytes < report.train.peak_bytes
  # The state is weights and two moments in float32, and the batch.
  assert report.train.state_bytes == pytest.approx(12 * report.parameters, rel=0.05)
  assert json.loads(json.dumps(report.to_json()))['parameters'] == report.parameters


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (['--exp=C4Laser2', '--pod=v5p-4chips'], ['C4Laser2B']),
    (['--exp=C4Laser2B', '--pod=v5p-512'], ['v5p-256chips']),
    (['--exp=C4Laser2B', '--pod=v5p-4chips'], ['laser_pax aot --fetch']),
    (['--exp=C4Laser2B', '--fdl.CHIPS'], ['--fdl.NAME=VALUE']),
    (['--pod=v5p-4chips'], ['--exp=NAME']),
  ],
)
def test_wrong_use_is_refused_at_once(commands, flags, words, tmp_path):
  process = commands.run('laser_pax', ['aot', *flags], env={'XDG_CACHE_HOME': str(tmp_path)})
  assert process.returncode == 2
  assert process.stderr.startswith('error: ') and process.stderr.count('\n') == 1, process.stderr
  assert all(word in process.stderr for word in words), process.stderr


def test_an_unknown_attribute_is_refused(commands):
  flags = ['--exp=C4LaserTiny', '--pod=cpu', '--fdl.NUM_LAYER=2']
  process = commands.run('laser_pax', ['aot', *flags])
  assert process.returncode == 2 and 'NUM_LAYERS' in process.stderr
