"""--profile traces the steps that it names, and no others; skipped steps are counted."""

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


@pytest.fixture(scope='module')
def run(commands, tmp_path_factory):
  """The job's folder of a run of which two steps are profiled, and whose gradients overflow."""
  folder = tmp_path_factory.mktemp('run')
  flags = ['--fdl.NUM_TRAIN_STEPS=6', '--fdl.WARMUP_STEPS=1', '--fdl.NUM_LAYERS=1']
  flags += ['--fdl.MODEL_DIMS=64', '--fdl.HIDDEN_DIMS=64', '--fdl.SEQ_LEN=64', '--noeval_on_test']
  flags += ['--fdl.LEARNING_RATE=1e38', '--profile=2:4']
  args = ['train', '--fdl_config=C4LaserTiny', *flags, f'--job_log_dir={folder}']
  command = commands.run('laser_pax', args, env={'XLA_FLAGS': QUICK_COMPILE})
  assert command.returncode == 0, command.stdout + command.stderr
  return folder


@pytest.mark.slow
def test_a_run_traces_the_named_steps(run):
  assert _traced_steps(run / 'profile') == {2, 3}


@pytest.mark.slow
def test_steps_without_a_finite_gradient_are_counted(run):
  records = [json.loads(line) for line in (run / 'progress.jsonl').read_text().splitlines()]
  assert records[0]['skipped_steps'] == 0
  assert records[-1]['skipped_steps'] >= 1
