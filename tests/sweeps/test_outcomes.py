"""What came out of a run: by its folder, in the lines of the results, and which point is best."""

import dataclasses
import json

import pytest

from laser_pax import configs
from laser_pax.errors import UserError
from laser_pax.sweeps import outcomes, plans, spaces
from laser_pax.sweeps.outcomes import COMPLETE, DIVERGED, FAILED
from tests.support import stand_in_training

SWEEP = spaces.Sweep(
  name='x',
  experiments=('C4StandardTiny',),
  points=({'LEARNING_RATE': 0.01}, {'LEARNING_RATE': 0.004}, {'LEARNING_RATE': 0.001}),
  fixed={'NUM_TRAIN_STEPS': 30, 'WARMUP_STEPS': 1},
)


def trained(folder, rate=0.01, steps=30):
  """Returns the outcome of a run of the stand-in, which `train` records as its own."""
  run = plans.planned(dataclasses.replace(SWEEP, points=({'LEARNING_RATE': rate},)), None)[0]
  folder.mkdir(exist_ok=True)
  flags = [*run.flags(), f'--fdl.NUM_TRAIN_STEPS={steps}', f'--job_log_dir={folder}']
  stand_in_training.main(flags)
  experiment = plans.resolved(run, configs.C4StandardTiny)
  return outcomes.outcome(run, experiment, folder, None), experiment


def test_a_whole_run(tmp_path):
  one, experiment = trained(tmp_path)
  last = stand_in_training.figure(0.01, 0)
  assert (one.status, one.figure, one.reason) == (COMPLETE, last, None)
  assert one.train_loss == pytest.approx(last + sum(range(20)) / 20)
  assert (one.steps, one.units, one.unit) == (30, 30 * 8 * 128, 'tokens')
  assert one.seconds == 29.0
  assert {'python', 'jax', 'paxml', 'praxis', 'laser_pax'} <= one.versions.keys()
  assert outcomes.is_trained(experiment, tmp_path)


def test_a_run_that_diverged_or_stopped_early(tmp_path):
  one, experiment = trained(tmp_path / 'diverged', rate=1.0)
  assert (one.status, one.figure, one.train_loss) == (DIVERGED, None, None)
  assert outcomes.is_trained(experiment, tmp_path / 'diverged')
  one, experiment = trained(tmp_path / 'early', steps=20)
  assert one.status == FAILED and 'no loss of the evaluation at the last step' in one.reason
  assert not outcomes.is_trained(experiment, tmp_path / 'early')


def test_without_its_last_checkpoint_a_run_is_not_trained(tmp_path):
  _, experiment = trained(tmp_path)
  (tmp_path / 'checkpoints/checkpoint_00000030/state/metadata').unlink()
  assert not outcomes.is_trained(experiment, tmp_path)


def line(point, figure=1.0, status=COMPLETE, seed=None, experiment='C4StandardTiny', sweep=SWEEP):
  run = next(
    run
    for run in plans.every(sweep)
    if (run.point, run.seed, run.experiment) == (point, seed, experiment)
  )
  return outcomes.Outcome(
    **dataclasses.asdict(run), status=status, metric='loss', figure=figure, train_loss=1.0,
    steps=1, units=1, unit='tokens', seconds=1.0, versions={},
  )  # fmt: skip


def test_lines_come_back_and_are_appended(tmp_path):
  file, lines = tmp_path / 'below' / 'results.jsonl', [line(1), line(2, None, DIVERGED)]
  assert outcomes.read(file) == []
  for one in lines:
    outcomes.append(file, one)
  assert outcomes.read(file) == lines


@pytest.mark.parametrize('torn', ['{"point": 1, "exp', '', None])
def test_a_torn_line_is_left_out_and_a_line_without_its_end_is_kept(tmp_path, torn):
  """A machine may have lost power, or an editor may have taken the last newline away."""
  file = tmp_path / 'results.jsonl'
  outcomes.append(file, line(1))
  file.write_text(file.read_text().rstrip('\n') if torn is None else file.read_text() + torn)
  outcomes.append(file, line(2))
  assert outcomes.read(file) == [line(1), line(2)]


def test_a_line_of_another_kind_is_refused(tmp_path):
  file = tmp_path / 'results.jsonl'
  file.write_text(json.dumps({'kind': 'train'}) + '\n')
  with pytest.raises(UserError, match='line 1 is no result of a sweep'):
    outcomes.read(file)


def test_the_newest_line_of_a_run_counts_whatever_its_number():
  lines = [line(1, 5.0), dataclasses.replace(line(2, 4.0), point=9), line(1, 3.0)]
  assert outcomes.figures(SWEEP, 'C4StandardTiny', lines) == {1: (3.0,), 2: (4.0,)}
  other = dataclasses.replace(SWEEP, fixed={})
  assert outcomes.figures(other, 'C4StandardTiny', lines) == {}


@pytest.mark.parametrize('better, number', [('lower', 2), ('higher', 1)])
def test_the_best_is_of_those_whose_seeds_are_all_complete(better, number):
  sweep = dataclasses.replace(SWEEP, seeds=(0, 1))
  figures = {1: (3.0, 5.0), 2: (2.0, 5.0)}
  lines = [line(p, f, seed=s, sweep=sweep) for p, fs in figures.items() for s, f in enumerate(fs)]
  extreme = 0.0 if better == 'lower' else 9.0
  lines += [line(3, extreme, seed=0, sweep=sweep), line(3, None, DIVERGED, seed=1, sweep=sweep)]
  assert outcomes.best(sweep, 'C4StandardTiny', lines, better) == number
  assert outcomes.best(sweep, 'C4StandardTiny', [], better) is None


@pytest.mark.parametrize(
  'tune, best',
  [
    (spaces.FIRST, {'C4StandardTiny': 1, 'C4LaserTiny': 1}),
    (spaces.EACH, {'C4StandardTiny': 1, 'C4LaserTiny': 2}),
    (spaces.NOTHING, {}),
  ],
)
def test_whose_best_point_an_experiment_has(tune, best):
  sweep = dataclasses.replace(SWEEP, experiments=('C4StandardTiny', 'C4LaserTiny'), tune=tune)
  lines = [line(1, 1.0, sweep=sweep), line(2, 2.0, sweep=sweep)]
  lines += [line(n, 3.0 - n, experiment='C4LaserTiny', sweep=sweep) for n in (1, 2)]
  assert outcomes.best_points(sweep, lines, 'lower') == best
