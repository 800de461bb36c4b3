"""A run that was killed goes on at its last checkpoint with the next batch."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

SMALL = {
  'NUM_LAYERS': 1,
  'MODEL_DIMS': 64,
  'HIDDEN_DIMS': 64,
  'NUM_TRAIN_STEPS': 12,
  'WARMUP_STEPS': 2,
  'CHECKPOINT_EVERY_N_STEPS': 4,
  'EVAL_INTERVAL_STEPS': 6,
}


def _command(folder) -> list[str]:
  flags = [f'--fdl.{name}={value}' for name, value in SMALL.items()]
  exp = '--fdl_config=laser_pax.configs.C4LaserTiny'
  return [sys.executable, '-m', 'laser_pax', 'train', exp, f'--job_log_dir={folder}', *flags]


def _losses(folder, kind='train') -> dict[int, float]:
  if not (folder / 'progress.jsonl').exists():
    return {}
  records = [json.loads(line) for line in (folder / 'progress.jsonl').read_text().splitlines()]
  return {r['step']: r['loss'] for r in records if r['kind'] == kind}


@pytest.mark.slow
def test_killed_and_run_again_gives_the_losses_of_one_run(tmp_path):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  done = subprocess.run(_command(whole), capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stdout + done.stderr
  assert 'step 6: validation loss' in done.stdout
  assert 'step 12: validation loss' in done.stdout
  assert len(done.stdout.splitlines()) < 20, 'the console must stay quiet'

  process = subprocess.Popen(_command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
  deadline = time.time() + 600
  while 6 not in _losses(killed) and time.time() < deadline:
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.wait()
  before = _losses(killed)
  again = subprocess.run(_command(killed), capture_output=True, text=True, timeout=600)
  assert again.returncode == 0, again.stdout + again.stderr

  resumed_at = int(again.stdout.split('resuming at step ')[1].split()[0])
  assert resumed_at in (4, 8)
  assert set(before) | set(_losses(killed)) == set(range(1, 13))
  assert _losses(killed) == _losses(whole)
  assert _losses(killed, 'eval') == _losses(whole, 'eval')
  assert os.path.exists(killed / 'checkpoints')
