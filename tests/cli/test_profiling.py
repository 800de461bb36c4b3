"""--profile traces the steps that it names, and no others."""

import gzip
import json
import os
import pathlib
import subprocess
import sys

import pytest

from laser_pax.cli import profiling
from laser_pax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.mark.parametrize('text', ['3', '3:', '3:3', '4:3', '-1:3', '1:2:3', ''])
def test_other_forms_are_refused(text):
  with pytest.raises(UserError, match='--profile takes START:STOP, START less than STOP'):
    profiling.steps(text)


def _traced_steps(folder: pathlib.Path) -> set[int]:
  """The steps that PAX marked in the trace."""
  (file,) = folder.rglob('*.trace.json.gz')
  events = json.loads(gzip.decompress(file.read_bytes()))['traceEvents']
  return {int(e['args']['step_num']) for e in events if e.get('args', {}).get('step_num')}


@pytest.mark.slow
def test_a_run_traces_the_named_steps(tmp_path):
  flags = ['--fdl.NUM_TRAIN_STEPS=6', '--fdl.WARMUP_STEPS=1', '--fdl.NUM_LAYERS=1']
  flags += ['--fdl.MODEL_DIMS=64', '--fdl.HIDDEN_DIMS=64', '--noeval_on_test', '--profile=2:4']
  command = [sys.executable, '-m', 'laser_pax', 'train', '--fdl_config=C4LaserTiny', *flags]
  env = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  with open(tmp_path / 'output.txt', 'w') as output:
    run = [*command, f'--job_log_dir={tmp_path / "job"}']
    code = subprocess.run(run, env=env, stdout=output, stderr=output, timeout=600).returncode
  assert code == 0, (tmp_path / 'output.txt').read_text()
  assert _traced_steps(tmp_path / 'job' / 'profile') == {2, 3}
