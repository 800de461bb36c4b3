"""A run continues at its newest whole checkpoint with the next batch, whatever ended it."""

import json
import shutil
import signal
import time

import pytest

from tests.support.commands import QUICK_COMPILE

EXPERIMENT = """
import os
from paxml import experiment_registry
from laser_pax.configs import C4LaserTiny

@experiment_registry.register
class Small(C4LaserTiny):
  NUM_LAYERS = 1
  MODEL_DIMS = 64
  HIDDEN_DIMS = 64
  SEQ_LEN = 64
  NUM_TRAIN_STEPS = int(os.environ.get('STEPS', 12))
  WARMUP_STEPS = 2
  SUMMARY_INTERVAL_STEPS = 1
  CHECKPOINT_EVERY_N_STEPS = 4
  EVAL_INTERVAL_STEPS = 6
"""


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  folder = tmp_path_factory.mktemp('jobs')
  (folder / 'small_experiment.py').write_text(EXPERIMENT)
  return folder


@pytest.fixture(scope='module')
def start(commands, source, root):
  """Returns a function that starts a Python module on the experiment, in a job's folder."""

  def start(job_log_dir, module, *args, cwd=root, **env):
    flags = ['--exp=small_experiment.Small', f'--job_log_dir={job_log_dir}']
    env |= {'PYTHONPATH': str(root), 'XLA_FLAGS': QUICK_COMPILE}
    env |= {'LASER_PAX_DATA_DIR': source.data_dir, 'LASER_PAX_VOCAB': source.vocab}
    return commands.start(module, [*args, *flags], cwd=cwd, env=env)

  return start


@pytest.fixture(scope='module')
def whole(start, root):
  """The folder of a run that nothing interrupted, and what its console showed."""
  return root / 'whole', _finish(start(root / 'whole', 'laser_pax', 'train'))


def _finish(command) -> str:
  assert command.wait() == 0, command.stdout + command.stderr
  return command.stdout


def _recorded(folder) -> dict[int, float]:
  records = [json.loads(line) for line in (folder / 'progress.jsonl').read_text().splitlines()]
  return {r['step']: r['loss'] for r in records if r['kind'] == 'train'}


def _summaries(folder, writer, tag) -> dict[int, float]:
  """Returns TensorBoard's values by step. If a step has several values, the last one counts."""
  import tensorflow as tf

  values = {}
  for file in sorted((folder / 'summaries' / writer).iterdir(), key=lambda f: f.stat().st_mtime):
    for event in tf.compat.v1.train.summary_iterator(str(file)):
      for value in event.summary.value:
        if value.tag == tag:
          values[event.step] = float(tf.make_ndarray(value.tensor))
  return values


def _wait_for(pattern, folder, command):
  """Waits until a checkpoint's folder is there."""
  deadline = time.time() + 300
  while not list((folder / 'checkpoints').glob(pattern)) and time.time() < deadline:
    assert command.poll() is None, command.stdout + command.stderr
    time.sleep(0.01)


@pytest.mark.slow
def test_killed_and_run_again_gives_the_losses_of_one_run(start, root, whole):
  (whole, shown), killed = whole, root / 'killed'
  assert 'step 6: validation loss' in shown
  assert 'step 12: validation loss' in shown
  assert len(shown.splitlines()) < 20, 'the console must stay quiet'
  path = 'plain jax by blocks of queries: there is no kernel for the platform cpu'
  assert shown.splitlines()[1] == f'attention: {path}'
  (log,) = (root / 'whole' / 'logs').glob('train-*.log')
  assert log.read_text().count(f'] LaserFusedDotProductAttention: {path}') == 1

  command = start(killed, 'paxml.main', '--eval_on_test')
  _wait_for('checkpoint_00000004', killed, command)
  command.send_signal(signal.SIGKILL)
  command.wait()
  assert not (killed / 'checkpoints' / 'checkpoint_00000012').exists()
  _finish(start(killed, 'paxml.main', '--eval_on_test'))

  # paxml counts a step's summary as the next one's, as the record does.
  assert _summaries(killed, 'train', 'loss') == pytest.approx(_recorded(whole), abs=0, rel=1e-7)
  evaluations = _summaries(killed, 'eval_test_validation', 'Metrics/log_pplx')
  assert evaluations == _summaries(whole, 'eval_test_validation', 'Metrics/log_pplx')
  assert set(evaluations) >= {6, 12}

  again = _finish(start(killed, 'laser_pax', 'train'))
  assert 'resuming at step 12 of 12' in again


@pytest.mark.slow
def test_a_folder_is_the_same_however_it_is_named(start, root, tmp_path):
  """By home, relative, and by a link, each from another working folder and by another program."""
  home, first, second = (tmp_path / name for name in ('home', 'first', 'second'))
  for place in (home, first, second):
    place.mkdir()
  (second / 'link').symlink_to(home)
  env = {'HOME': str(home), 'XDG_CACHE_HOME': str(root), 'STEPS': '6'}
  train = ('laser_pax', 'train', '--noeval_on_test')
  _finish(start('~/x', *train, cwd=first, **env | {'STEPS': '4'}))
  shown = _finish(start('link/x', *train, cwd=second, **env))
  assert 'resuming at step 4 of 6' in shown
  evaluated = _finish(start('../home/x', 'laser_pax', 'train', '--mode=eval', cwd=first, **env))
  assert 'step 6: validation loss' in evaluated
  _finish(start('~/x', 'paxml.main', '--mode=decode_once', cwd=second, **env))
  made = {p.name for p in (home / 'x').iterdir()}
  assert {'checkpoints', 'experiment.txt', 'logs', 'progress.jsonl'} <= made
  assert len([p for p in tmp_path.rglob('checkpoint_00000006') if 'link' not in p.parts]) == 1
  assert len(list(tmp_path.rglob('experiment.txt'))) == 1
  assert sorted(_recorded(home / 'x')) == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_shard_that_vanishes_in_a_run_ends_it_in_one_line(source, start, root, tmp_path):
  """Once the file is back, the same command goes on. tests/data/test_damage.py has the rows."""
  shutil.copytree(source.data_dir, tmp_path / 'data')
  shard = next((tmp_path / 'data').rglob('c4-train.tfrecord-00002-of-00004'))
  words = ('laser_pax', 'train', f'--data={tmp_path / "data"}', '--noeval_on_test')
  command = start(root / 'vanished', *words, STEPS='100')
  _wait_for('checkpoint_00000004', root / 'vanished', command)
  shard.rename(tmp_path / 'away')
  assert command.wait() == 2, command.stdout + command.stderr
  (line,) = (x for x in command.stderr.splitlines() if x.startswith('error'))
  assert line.startswith(f'error: {shard}: missing, though the data set lists it')
  assert line.endswith('give the same command again')
  (tmp_path / 'away').rename(shard)
  last = max(int(p.name[-8:]) for p in (root / 'vanished/checkpoints').glob('checkpoint_*'))
  again = start(root / 'vanished', *words, STEPS='100')
  while max(_recorded(root / 'vanished')) <= last:
    assert again.poll() is None, again.stdout + again.stderr
    time.sleep(0.1)
  again.send_signal(signal.SIGKILL)
  again.wait()
  assert f'resuming at step {last:,} of 100' in again.stdout
