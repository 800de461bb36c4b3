"""--profile traces the steps that it names, and no others."""

import gzip
import json
import pathlib

import pytest

from laser_pax.cli import profiling
from laser_pax.errors import UserError
from tests.support.commands import QUICK_COMPILE


@pytest.mark.parametrize('text', ['3', '3:', '3:3', '4:3', '-1:3', '1:2:3', ''])
def test_other_forms_are_refused(text):
  with pytest.raises(UserError, match='--profile takes START:STOP, START less than STOP'):
    profiling.steps(text)


def _traced_steps(folder: pathlib.Path) -> set[int]:
  """Returns the steps that PAX marked in the trace."""
  (file,) = folder.rglob('*.trace.json.gz')
  events = json.loads(gzip.decompress(file.read_bytes()))['traceEvents']
  return {int(e['args']['step_num']) for e in events if e.get('args', {}).get('step_num')}


@pytest.mark.slow
def test_a_run_traces_the_named_steps(commands, tmp_path):
  flags = ['--fdl.NUM_TRAIN_STEPS=6', '--fdl.WARMUP_STEPS=1', '--fdl.NUM_LAYERS=1']
  flags += ['--fdl.MODEL_DIMS=64', '--fdl.HIDDEN_DIMS=64', '--noeval_on_test', '--profile=2:4']
  args = ['train', '--fdl_config=C4LaserTiny', *flags, f'--job_log_dir={tmp_path}']
  command = commands.run('laser_pax', args, env={'XLA_FLAGS': QUICK_COMPILE})
  assert command.returncode == 0, command.stdout + command.stderr
  assert _traced_steps(tmp_path / 'profile') == {2, 3}
