"""The files of configs/sweeps: each point is a distinct, valid experiment."""

import pathlib

import numpy as np
import pytest

from laser_pax.cli import experiments
from laser_pax.experiment.laser import LaserMixin
from laser_pax.sweeps import plans, spaces

FOLDER = pathlib.Path(__file__).parents[2] / 'configs' / 'sweeps'
POINTS = {
  'c4_15': 15,
  'imagenet_50': 50,
  'librispeech_50': 50,
  'tiny_6': 6,
  'replication_search': 6,
  'replication': 3,
}


def read(name):
  sweep = spaces.read(FOLDER / f'{name}.toml')
  return sweep, {name: experiments.load(name) for name in sweep.experiments}


def test_no_file_is_left_out():
  assert {file.stem for file in FOLDER.iterdir()} == POINTS.keys()


@pytest.mark.parametrize('name', POINTS)
def test_points_are_so_many_distinct_valid_experiments(name):
  sweep, classes = read(name)
  assert len(sweep.points) == POINTS[name]
  plans.check(sweep, classes)
  for experiment, cls in classes.items():
    runs = [run for run in plans.every(sweep) if run.experiment == experiment]
    resolved = [plans.resolved(run, cls) for run in runs]
    values = [tuple(sorted((k, str(v)) for k, v in vars(e).items())) for e in resolved]
    assert len({*values}) == len(runs) == POINTS[name] * max(1, len(sweep.seeds))
    assert len({run.name for run in runs}) == len(runs)


@pytest.mark.parametrize('name', ['c4_15', 'imagenet_50', 'librispeech_50', 'tiny_6'])
def test_the_standard_twin_is_tuned_and_laser_follows(name):
  sweep, classes = read(name)
  standard, laser = classes.values()
  assert sweep.tune == spaces.FIRST
  assert laser.__bases__ == (LaserMixin, standard)


def test_a_point_reaches_the_resolved_config():
  sweep, classes = read('c4_15')
  run = plans.planned(sweep, None)[-1]
  learner = plans.resolved(run, classes[run.experiment]).task().train.learner
  assert learner.optimizer.learning_rate == run.overrides['LEARNING_RATE'] == 4e-3
  assert learner.optimizer.decoupled_weight_decay == run.overrides['WEIGHT_DECAY'] == 0.3


def _algoperf_draws():
  """Draws 50 points of AlgoPerf's search, by its rule: a scrambled, shifted Halton sequence.

  A dimension's base is one of the primes just below 997, in the order of the space. The digits of
  i, i = 101, 102, ..., are permuted; zero stays. The inverse of i in the base gets a shift, modulo
  1.
  """
  log, choices = (
    (lambda lo, hi: lambda u: lo * (hi / lo) ** u),
    (lambda x: lambda u: x[int(u * len(x))]),
  )
  space = {
    'LEARNING_RATE': log(1e-4, 1e-2),
    'one minus beta1': log(4e-3, 0.1),
    'beta2': lambda u: 0.999,
    'warm-up': lambda u: 0.05,
    'WEIGHT_DECAY': log(5e-3, 1.0),
    'LABEL_SMOOTHING': choices([0.1, 0.2]),
    'DROPOUT_PROB': choices([0.0, 0.1]),
  }
  columns = {}
  for (name, scale), base in zip(space.items(), (947, 953, 967, 971, 977, 983, 991), strict=True):
    rng = np.random.RandomState(base)
    digits = np.arange(1, base)
    rng.shuffle(digits)
    digits, shift = [0, *digits], rng.random_sample()
    columns[name] = [scale((_inverse(i, base, digits) + shift) % 1) for i in range(101, 151)]
  return columns


def _inverse(number, base, digits):
  value, place = 0.0, 1 / base
  while number:
    number, digit = divmod(number, base)
    value, place = value + digits[digit] * place, place / base
  return value


@pytest.mark.parametrize('name', ['imagenet_50', 'librispeech_50'])
def test_the_50_points_are_those_of_algoperf(name):
  sweep, _ = read(name)
  drawn = _algoperf_draws()
  drawn['ADAM_BETA1'] = 1 - np.array(drawn['one minus beta1'])
  for attribute in sweep.points[0]:
    values = [point[attribute] for point in sweep.points]
    np.testing.assert_allclose(values, drawn[attribute], rtol=1e-7)
  assert sweep.fixed['ADAM_BETA2'] == 0.999
  cls = experiments.load(sweep.experiments[0])
  assert sweep.fixed['WARMUP_STEPS'] == 0.05 * cls.NUM_TRAIN_STEPS


def test_the_replication_has_twins_of_each_size_and_seed():
  """Their tokens are the same, and their weights grow by a factor of about 2.8."""
  sweep, classes = read('replication')
  runs = plans.planned(sweep, None)
  assert len(runs) == 18
  for first, second in zip(runs[::2], runs[1::2], strict=True):
    assert first.overrides == second.overrides and first.experiment != second.experiment
  sizes = []
  for run in runs[::6]:
    experiment = plans.resolved(run, classes[run.experiment])
    assert experiment.units() == 1_228_800
    assert experiment.num_heads() * 32 == experiment.MODEL_DIMS
    sizes.append(experiment.sizes().layer_weights() * experiment.NUM_LAYERS)
  assert sizes == [524_288, 1_474_560, 4_194_304]
