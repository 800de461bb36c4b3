"""Sweeps by a stand-in for `train`: what is trained, recorded, resumed and refused."""

import errno
import json
import os
import signal
import sys
import threading
import time

import pytest

from laser_pax import configs
from laser_pax.errors import UserError
from laser_pax.sweeps import outcomes, running, spaces, trainings
from tests.support import stand_in_sweep, stand_in_training

PAIR = ('C4StandardTiny', 'C4LaserTiny')
CLASSES = {name: getattr(configs, name) for name in PAIR}
RATES = (0.001, 0.004, 0.02)


@pytest.fixture(autouse=True)
def stand_in(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, 'executable', stand_in_sweep.python(tmp_path))


def sweep_of(*rates, **fields):
  fixed = {'NUM_TRAIN_STEPS': 4, 'WARMUP_STEPS': 1}
  points = tuple({'LEARNING_RATE': rate} for rate in rates)
  return spaces.Sweep(
    **{'name': 'x', 'experiments': PAIR, 'points': points, 'fixed': fixed} | fields
  )


def run(sweep, folder, results=None, parallel=1):
  """Runs a sweep, and returns its lines."""
  place = running.Place(folder=folder, results=results or folder / 'results.jsonl')
  with running.claimed(sweep, folder) as sweep:
    return running.run_all(sweep, CLASSES, place, trainings.Trainings(parallel))


def starts(folder):
  """Returns the steps at which trainings began, by the run's name."""
  return {
    file.parent.name: [json.loads(line)['step'] for line in file.read_text().splitlines()]
    for file in sorted(folder.glob('*/starts.jsonl'))
  }


def test_a_sweep_trains_each_point_and_then_laser_at_the_best(tmp_path):
  sweep, folder = sweep_of(*RATES), tmp_path / 'sweep'
  lines = run(sweep, folder)
  assert [(line.point, line.experiment) for line in lines] == [
    *((n, 'C4StandardTiny') for n in (1, 2, 3)),
    (2, 'C4LaserTiny'),
  ]
  for line in lines:
    rate = line.overrides['LEARNING_RATE']
    assert line.overrides == sweep.fixed | {'LEARNING_RATE': rate}
    assert line.figure == stand_in_training.figure(rate, 0)
    assert line.status == outcomes.COMPLETE
  assert run(sweep, folder) == lines
  assert set(map(tuple, starts(folder).values())) == {(0,)}


def test_seeds_are_averaged(tmp_path):
  lines = run(sweep_of(*RATES, seeds=(3, 1)), tmp_path / 'sweep')
  assert [line.seed for line in lines] == [3, 1] * 4
  assert lines[0].figure == stand_in_training.figure(RATES[0], 3)
  assert [line.point for line in lines[-2:]] == [2, 2]


def test_failed_and_diverged_points_are_recorded_and_the_sweep_goes_on(tmp_path):
  sweep, folder = sweep_of(1.0, 0.5, 0.02), tmp_path / 'sweep'
  lines = run(sweep, folder)
  assert [line.status for line in lines] == ['diverged', 'failed', 'complete', 'complete']
  assert (lines[1].reason, lines[1].steps) == ('out of memory', 1)
  assert lines[3].experiment == 'C4LaserTiny' and lines[3].point == 3
  again = run(sweep, folder)
  assert again[:4] == lines and [line.point for line in again[4:]] == [2]
  assert len(starts(folder)['point-02-C4StandardTiny']) == 2


def test_a_fault_that_is_mended_costs_nothing_but_the_command(tmp_path):
  sweep, folder = sweep_of(*RATES), tmp_path / 'sweep'
  folder.mkdir()
  (folder / 'deny').write_text('')
  lines = run(sweep, folder)
  assert {(line.status, line.reason, line.figure) for line in lines} == {('failed', 'denied', None)}
  assert len(lines) == 3, 'without a best point LASER has none to train'
  (folder / 'deny').unlink()
  assert [line.status for line in run(sweep, folder)[3:]] == ['complete'] * 4


def test_results_that_came_along_are_not_trained_again(tmp_path):
  sweep, results = sweep_of(*RATES), tmp_path / 'results.jsonl'
  whole = run(sweep, tmp_path / 'first', results)
  kept = results.read_text().splitlines(keepends=True)[:2]
  results.write_text(''.join(kept))
  assert run(sweep, tmp_path / 'second', results) == whole
  assert sorted(starts(tmp_path / 'second')) == ['point-02-C4LaserTiny', 'point-03-C4StandardTiny']


def test_a_run_that_ended_unrecorded_is_recorded_without_training(tmp_path):
  """As where a sweep is killed between the end of a training and its line."""
  sweep, folder = sweep_of(*RATES), tmp_path / 'sweep'
  lines = run(sweep, folder)
  (folder / 'results.jsonl').unlink()
  assert run(sweep, folder) == lines
  assert set(map(tuple, starts(folder).values())) == {(0,)}


def test_points_may_be_added_and_nothing_else_changed(tmp_path):
  folder = tmp_path / 'sweep'
  run(sweep_of(*RATES), folder)
  lines = run(sweep_of(0.005, *RATES), folder)
  assert [(line.point, line.experiment) for line in lines[4:]] == [(4, 'C4StandardTiny')]
  state = (folder / running.STATE).read_text()
  with pytest.raises(UserError, match='tune was first, and is each.*name another folder'):
    run(sweep_of(0.005, *RATES, tune=spaces.EACH), folder)
  with pytest.raises(UserError, match=r'point 1 was LEARNING_RATE=0.001, and no point is so now'):
    run(sweep_of(*RATES[1:]), folder)
  with pytest.raises(UserError, match=r"flags was \[\], and is \['--data=/d'\]"):
    running.known(sweep_of(0.005, *RATES), folder, ['--data=/d'])
  assert (folder / running.STATE).read_text() == state


def test_a_new_best_point_is_trained_too(tmp_path):
  folder = tmp_path / 'sweep'
  run(sweep_of(*RATES[::2]), folder)
  lines = run(sweep_of(*RATES[::2], 0.004), folder)
  assert [line.point for line in lines if line.experiment == 'C4LaserTiny'] == [1, 3]


def test_a_second_sweep_is_refused(tmp_path):
  sweep = sweep_of(*RATES)
  with (
    running.claimed(sweep, tmp_path / 'sweep'),
    pytest.raises(UserError, match='another sweep runs in .*sweep: wait for its end'),
    running.claimed(sweep, tmp_path / 'sweep'),
  ):
    pass
  with running.claimed(sweep, tmp_path / 'sweep'):
    pass


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason='needs two cores')
def test_two_at_once_share_the_cores(tmp_path):
  mine, folder = os.sched_getaffinity(0), tmp_path / 'sweep'
  folder.mkdir()
  (folder / 'meet').write_text('')  # The first waits until a second has begun.
  lines = run(sweep_of(*RATES), folder, parallel=2)
  assert sorted(line.point for line in lines) == [1, 2, 2, 3]
  first, second = (
    json.loads((folder / f'point-0{n}-C4StandardTiny/starts.jsonl').read_text()) for n in (1, 2)
  )
  assert not {*first['cores']} & {*second['cores']}
  assert {*first['cores']} | {*second['cores']} == mine == os.sched_getaffinity(0)


def test_a_signal_that_nohup_ignores_stays_ignored():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    heard = []
    trainings.Trainings(1).each(lambda _: heard.append(signal.getsignal(signal.SIGHUP)), [0])
    assert heard == [signal.SIG_IGN] and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
  finally:
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize('number', [0, 10_000])
def test_there_are_no_more_at_once_than_cores(number):
  with pytest.raises(UserError, match=f'--parallel={number}: expected 1 to'):
    trainings.Trainings(number)


@pytest.mark.parametrize(
  'number, raised', [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_ends_training_and_sweep_and_records_nothing(tmp_path, number, raised):
  sweep, folder = sweep_of(*RATES), tmp_path / 'sweep'
  folder.mkdir()
  (folder / 'hold').write_text('')

  def send():
    while not (folder / 'point-01-C4StandardTiny/checkpoints/checkpoint_00000002').exists():
      time.sleep(0.01)
    os.kill(os.getpid(), number)

  sender = threading.Thread(target=send)
  sender.start()
  with pytest.raises(raised) as end:
    run(sweep, folder)
  sender.join()
  if raised is SystemExit:
    assert end.value.code == 75
  assert not (folder / 'results.jsonl').exists()
  (folder / 'hold').unlink()
  assert len(run(sweep, folder)) == 4
  assert starts(folder)['point-01-C4StandardTiny'] == [0, 2]


def test_a_full_disk_stops_the_sweep_and_keeps_the_training(tmp_path, monkeypatch):
  def refuse(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  sweep, folder = sweep_of(*RATES), tmp_path / 'sweep'
  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', refuse)
    with pytest.raises(UserError, match=r'jsonl cannot be written .No space left on device'):
      run(sweep, folder)
  (folder / 'results.jsonl').unlink()
  assert starts(folder) == {'point-01-C4StandardTiny': [0]}
  assert len(run(sweep, folder)) == 4
  assert starts(folder)['point-01-C4StandardTiny'] == [0]
