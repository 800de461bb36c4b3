"""`python -m laser_pax sweep` as a command: killed and given again, its end, and its dry run."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import time

import pytest
from rich.console import Console

from laser_pax import cli, configs
from laser_pax.cli import sweep as sweep_command
from laser_pax.experiment import jobs
from laser_pax.sweeps import plans, pod_lines, spaces
from tests.support import stand_in_training
from tests.support.commands import QUICK_COMPILE

FILE = """
experiments = ["C4StandardTiny", "C4LaserTiny"]

[fixed]
NUM_TRAIN_STEPS = 4
WARMUP_STEPS = 1

[grid]
LEARNING_RATE = [0.001, 0.004, 0.02]
"""
FIRST = 'point-01-C4StandardTiny'


@pytest.fixture
def start(commands, tmp_path):
  """Returns a function that starts the sweep in a process, with stand-ins for its trainings."""
  (tmp_path / 'rates.toml').write_text(FILE)
  env = {'STAND_IN_FOLDER': str(tmp_path), 'COLUMNS': '200'}

  def start():
    return commands.start('tests.support.stand_in_sweep', ['rates.toml'], cwd=tmp_path, env=env)

  return start


def _wait_until(condition, command):
  deadline = time.time() + 300
  while not condition():
    assert command.poll() is None and time.time() < deadline, command.stdout + command.stderr
    time.sleep(0.01)


def _starts(folder, run=FIRST):
  lines = (folder / run / 'starts.jsonl').read_text().splitlines()
  return [json.loads(line)['step'] for line in lines]


def test_a_killed_sweep_waits_for_its_training_and_goes_on(start, tmp_path):
  folder = tmp_path / 'runs' / 'rates'
  folder.mkdir(parents=True)
  (folder / 'hold').write_text('')
  killed = start()
  saved = folder / FIRST / 'checkpoints' / 'checkpoint_00000002'
  _wait_until(saved.exists, killed)
  second = start()
  assert second.wait() == 2
  assert 'error: another sweep runs in' in second.stderr
  killed.send_signal(signal.SIGKILL)
  killed.wait()

  again = start()  # The training that was started first still holds its folder.
  _wait_until(lambda: 'is still trained' in again.stdout, again)
  (folder / 'hold').unlink()
  assert again.wait() == 0, again.stdout + again.stderr
  assert _starts(folder) == [0]
  results = [json.loads(line) for line in (folder / 'results.jsonl').read_text().splitlines()]
  assert [line['figure'] for line in results][:3] == [
    stand_in_training.figure(rate, 0) for rate in (0.001, 0.004, 0.02)
  ]
  for words in ('LEARNING_RATE', 'C4LaserTiny', 'loss: lower is better', '1.0000'):
    assert words in again.stdout
  assert (folder / 'rates.png').read_bytes().startswith(b'\x89PNG')
  train = '-m laser_pax train --exp=tuned_point_02.TunedC4LaserTiny --job_log_dir='
  assert f'PYTHONPATH={folder}:$PYTHONPATH python {train}{folder}/TunedC4LaserTiny' in again.stdout
  assert (folder / 'tuned_point_02.py').exists()


def _result_lines(sweep, figures):
  table = sweep_command.result_table(sweep, figures, configs.C4StandardTiny.METRIC)
  console = Console(width=200)
  with console.capture() as capture:
    console.print(table)
  return [line.split() for line in capture.get().splitlines()]


def test_the_table_has_the_best_point_first_and_lacks_no_point():
  sweep = spaces.parse('x', {'experiments': ['A', 'b.B'], 'grid': {'X': [5, 6, 7]}})
  figures = {'A': {1: (3.0,), 2: (2.0, 4.0, 1.5)}, 'b.B': {2: (1.0,)}}
  head, *rows, caption = _result_lines(sweep, figures)
  assert head == ['point', 'X', 'A', 'B']
  assert rows == [
    ['2', '6', '2.5000', '±', '1.3229', '1.0000'],
    ['1', '5', '3.0000', '-'],
    ['3', '7', '-', '-'],
  ]
  assert caption == ['loss:', 'lower', 'is', 'better']
  compared = dataclasses.replace(sweep, tune=spaces.NOTHING)
  assert [row[0] for row in _result_lines(compared, figures)[1:-1]] == ['1', '2', '3']


def _dry_run(capsys, *words):
  with pytest.raises(SystemExit) as end:
    cli.main(['sweep', *words, '--dry-run'])
  assert not end.value.code
  return capsys.readouterr().out


def test_a_dry_run_prints_a_command_for_each_point(capsys, tmp_path):
  (tmp_path / 'rates.toml').write_text(FILE)
  out = f'--out={tmp_path / "out"}'
  lines = _dry_run(capsys, str(tmp_path / 'rates.toml'), out, '--data=D').splitlines()
  commands = [line for line in lines if ' train ' in line]
  assert len(commands) == 3
  assert commands[1].endswith(
    '-m laser_pax train --fdl_config=C4StandardTiny --fdl.NUM_TRAIN_STEPS=4 --fdl.WARMUP_STEPS=1 '
    f'--fdl.LEARNING_RATE=0.004 --job_log_dir={tmp_path}/out/point-02-C4StandardTiny '
    f'--data={pathlib.Path("D").absolute()}'
  )
  assert lines[-1] == 'then, at the best point: C4LaserTiny'
  assert not (tmp_path / 'out').exists()


def test_the_lines_for_a_pod_train_each_point_with_its_flags(capsys, tmp_path):
  """bash runs them, with a stand-in for tpu_pod.sh that shows the settings it was given."""
  root = pathlib.Path(__file__).parents[2]
  shown = _dry_run(capsys, str(root / 'configs/sweeps/c4_15.toml'))
  script = shown[shown.index('scripts/tpu_pod.sh') : shown.index('then, at the best')]
  (tmp_path / 'tpu_pod.conf').write_text('NAME=mine\nJOB_LOG_DIR=gs://b\nTRAIN_FLAGS=(--a=1)\n')
  (tmp_path / 'scripts').mkdir()
  stand_in = tmp_path / 'scripts' / 'tpu_pod.sh'
  stand_in.write_text(
    '#!/bin/bash\n[[ $2 ]] && source "${2#--conf=}"\n'
    'echo "$1" "$NAME" "$EXPERIMENT" "$JOB_LOG_DIR" "${TRAIN_FLAGS[@]}"\n'
  )
  stand_in.chmod(0o755)
  done = subprocess.run(['bash', '-e'], input=script, cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  none = script.replace('create &&', 'create && false &&', 1)
  refused = subprocess.run(['bash'], input=none, cwd=tmp_path, capture_output=True, text=True)
  assert refused.stdout.split() == ['create']  # Without a slice nothing is trained.
  first, second, *trained, last = [line.split() for line in done.stdout.splitlines()]
  assert (first, second, last) == (['create'], ['setup'], ['delete'])
  assert len(trained) == 15
  assert trained[4] == [
    *('train', 'mine', 'C4Standard234M', 'gs://b/point-05-C4Standard234M', '--a=1'),
    *('--fdl.LEARNING_RATE=0.0005', '--fdl.WEIGHT_DECAY=0.1'),
  ]


def test_a_slice_has_its_data_from_its_own_settings(capsys):
  file = pathlib.Path(__file__).parents[2] / 'configs/sweeps/c4_15.toml'
  with pytest.raises(SystemExit) as end:
    cli.main(['sweep', str(file), '--dry-run', '--data=/d'])
  told = capsys.readouterr()
  assert end.value.code == 2 and '--data=/d: a slice has its data from tpu_pod.conf' in told.err


def test_settings_of_a_point_are_ones_that_the_script_reads():
  sweep = spaces.parse('x', {'experiments': ['A'], 'points': [{'X': "it's"}]})
  lines = pod_lines.lines(plans.planned(sweep, None))
  example = pathlib.Path(__file__).parents[2] / 'scripts' / 'tpu_pod.conf.example'
  known = {line.partition('=')[0] for line in example.read_text().splitlines()}
  names = {line.partition('=')[0].rstrip('+') for line in lines if '=' in line and ' ' not in line}
  assert names == {'EXPERIMENT', 'JOB_LOG_DIR', 'TRAIN_FLAGS'} <= known


REAL = """
experiments = ["C4StandardTiny", "C4LaserTiny"]
points = [
  {LEARNING_RATE = 0.03},
  {LEARNING_RATE = 0.01, INIT_SEED = 7},
]
[fixed]
NUM_TRAIN_STEPS = 4
WARMUP_STEPS = 1
NUM_LAYERS = 1
MODEL_DIMS = 32
HIDDEN_DIMS = 32
SEQ_LEN = 32
CHECKPOINT_EVERY_N_STEPS = 2
"""


@pytest.mark.slow
def test_a_real_sweep_that_is_killed_twice_ends_as_one_that_is_not(commands, source, tmp_path):
  """Its trainings are real. Sweep and training are killed; then the same command goes on."""
  (tmp_path / 'real.toml').write_text(REAL)
  folder = tmp_path / 'runs' / 'real'
  env = {'XLA_FLAGS': QUICK_COMPILE, 'COLUMNS': '200'}
  flags = [f'--data={source.data_dir}', f'--vocab={source.vocab}']

  def start():
    return commands.start('laser_pax', ['sweep', 'real.toml', *flags], cwd=tmp_path, env=env)

  def started(run):
    command = start()
    _wait_until((folder / run / 'checkpoints' / 'checkpoint_00000002').exists, command)
    return command

  stopped = started('point-01-C4StandardTiny')
  stopped.send_signal(signal.SIGTERM)
  # 75: its training saved. It may also just have ended.
  assert stopped.wait() in (jobs.SAVED_ON_DEMAND, 128 + signal.SIGTERM), stopped.stderr
  killed = started('point-02-C4StandardTiny')
  killed.send_signal(signal.SIGKILL)
  (log,) = (folder / 'point-02-C4StandardTiny' / 'logs').glob('train-*.log')
  with contextlib.suppress(ProcessLookupError):
    os.kill(int(log.stem.rpartition('-')[2]), signal.SIGKILL)
  command = start()
  assert command.wait(timeout=900) == 0, command.stdout + command.stderr
  lines = [json.loads(line) for line in (folder / 'results.jsonl').read_text().splitlines()]
  assert [line['point'] for line in lines[:2]] == [1, 2]
  assert {line['status'] for line in lines} == {'complete'} and len(lines) == 3
  assert len({line['figure'] for line in lines}) == 3
  best = min(lines[:2], key=lambda line: line['figure'])
  assert (lines[2]['experiment'], lines[2]['point']) == ('C4LaserTiny', best['point'])
  name = 'point-02-C4StandardTiny'
  words = [*_words_of(folder / name), f'--job_log_dir={tmp_path / name}', *flags]
  whole = commands.run('laser_pax', words, cwd=tmp_path, env=env)
  assert whole.returncode == 0, whole.stdout + whole.stderr
  assert _last_figure(tmp_path / name) == _last_figure(folder / name)
  initial = {
    line['point']: _initial_weights(folder / f'point-0{line["point"]}-{line["experiment"]}')
    for line in lines[:2]
  }
  laser = _initial_weights(folder / f'point-0{best["point"]}-C4LaserTiny')
  assert laser == initial[best['point']] and len(laser) > 5
  assert initial[1] != initial[2]


def _initial_weights(folder):
  """Returns the files of a run's weights at step 0, by their names."""
  state = folder / 'checkpoints' / 'checkpoint_00000000' / 'state'
  files = (file for file in state.glob('mdl_vars*/**/*') if file.is_file())
  return {str(file.relative_to(state)): file.read_bytes() for file in files}


def _words_of(folder):
  """Returns the words of the command that trained a job folder, by its mark."""
  experiment, *changed = (folder / 'experiment.txt').read_text().split()
  return ['train', f'--fdl_config={experiment}', *(f'--{override}' for override in changed)]


def _last_figure(folder):
  records = [json.loads(line) for line in (folder / 'progress.jsonl').read_text().splitlines()]
  return [record['loss'] for record in records if record['kind'] == 'eval'][-1]
