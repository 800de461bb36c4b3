"""Reports: a pair's on this machine's CPU, and refusals with advice."""

import json
import pathlib

import pytest

from laser_pax import configs
from laser_pax.costs import reports
from tests.support.commands import QUICK_COMPILE

ROOT = pathlib.Path(__file__).parents[2]


def test_a_slice_that_is_too_small_is_refused_with_slices_that_fit():
  experiment = configs.C4Laser7B().on('v5e-4chips')
  with pytest.raises(reports.DoesNotFit) as e:
    reports.report(experiment)
  assert 'DOES NOT FIT v5e-4chips' in str(e.value)
  assert 'v5e-16chips' in str(e.value) and 'v5p-4chips' in str(e.value)


def test_reports_of_a_pair_on_this_machine(commands):
  small = {'NUM_LAYERS': 1, 'MICRO_BATCHES': 2, 'VOCAB_SIZE': 512, 'SEQ_LEN': 32}
  flags = [f'--fdl.{name}={value}' for name, value in small.items()]
  flags += ['--exp=C4LaserTiny', '--compare=C4StandardTiny', '--pod=cpu', '--json']
  command = commands.run('laser_pax', ['aot', *flags], env={'XLA_FLAGS': QUICK_COMPILE})
  assert command.returncode == 0, command.stderr
  pair = json.loads(command.stdout)
  assert [report['experiment'] for report in pair] == ['C4LaserTiny', 'C4StandardTiny']
  for report in pair:
    train, evaluation = report['train'], report['eval']
    assert report['fits'] and report['seconds'] is None and report['collectives'] == []
    assert 0 < evaluation['peak_bytes'] < train['peak_bytes']
    # The state is weights and two moments in float32, and the batch.
    assert train['state_bytes'] == pytest.approx(12 * report['parameters'], rel=0.05)


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
