"""The best point as a module: its classes resolve to the configs that the sweep trained."""

import importlib.util

import jax.numpy as jnp
import pytest
from paxml import experiment_registry
from praxis import base_hyperparams, layers

from laser_pax import configs
from laser_pax.experiment.laser import LaserMixin
from laser_pax.sweeps import plans, spaces, tuned

PAIR = ('C4StandardTiny', 'C4LaserTiny')
VALUES = {'LEARNING_RATE': 0.003, 'NUM_LAYERS': 2, 'FPROP_DTYPE': 'bfloat16'}
VALUES |= {'CHECKPOINT_POLICY': 'save_nothing', 'ICI_MESH_SHAPE': [1, 1, 1], 'VOCAB': "it's"}


def written(folder, points, experiments=PAIR, tune=spaces.FIRST):
  """Returns the sweep and the module of the best points."""
  sweep = spaces.Sweep(
    name='x',
    experiments=experiments,
    points=({'WARMUP_STEPS': 3}, {'WARMUP_STEPS': 5}),
    fixed=VALUES,
    tune=tune,
  )
  classes = {name: getattr(configs, name) for name in experiments}
  file, names = tuned.write(sweep, points, classes, folder)
  spec = importlib.util.spec_from_file_location(f'{file.stem}_{folder.name}', file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return sweep, [getattr(module, name) for name in names]


def text(experiment):
  task = base_hyperparams.nested_struct_to_text(experiment.on().task())
  return task.replace('ml_dtypes/bfloat16', 'jax.numpy/bfloat16')  # Two names of one type.


@pytest.mark.parametrize(
  'points, tune',
  [
    ({'C4StandardTiny': 2, 'C4LaserTiny': 2}, spaces.FIRST),
    ({'C4StandardTiny': 2, 'C4LaserTiny': 1}, spaces.EACH),
  ],
)
def test_classes_are_the_points_that_were_trained(tmp_path, points, tune):
  sweep, classes = written(tmp_path, points, tune=tune)
  for cls, (experiment, number) in zip(classes, points.items(), strict=True):
    (run,) = plans.runs_of(sweep, experiment, [number])
    assert text(cls()) == text(plans.resolved(run, getattr(configs, experiment)))
    assert jnp.dtype(cls.FPROP_DTYPE) == jnp.bfloat16
    assert cls.CHECKPOINT_POLICY is layers.AutodiffCheckpointType.SAVE_NOTHING
    cls().on().check_overrides()
    assert experiment_registry.get(f'{cls.__module__}.{cls.__name__}') is cls


def test_the_twin_is_the_mixin_in_front_of_the_tuned_standard(tmp_path):
  _, (standard, laser) = written(tmp_path, dict.fromkeys(PAIR, 1))
  assert laser.__bases__ == (LaserMixin, standard)
  assert (standard.__name__, laser.__name__) == ('TunedC4StandardTiny', 'TunedC4LaserTiny')


def test_a_standard_experiment_alone_gets_a_twin(tmp_path):
  _, (standard, laser) = written(tmp_path, {'C4StandardTiny': 1}, PAIR[:1])
  assert laser.__bases__ == (LaserMixin, standard)
  assert laser.__name__ == 'TunedC4LaserTiny'


def test_without_a_point_of_the_first_no_twin_is_derived_from_it(tmp_path):
  pair = ('C4StandardTiny', 'C4Standard300M')
  _, classes = written(tmp_path, {'C4Standard300M': 2}, pair, spaces.EACH)
  assert [cls.__name__ for cls in classes] == ['TunedC4Standard300M']


def test_a_file_of_that_name_stays(tmp_path):
  (tmp_path / 'tuned_point_02.py').write_text('TunedC4StandardTiny = TunedC4LaserTiny = 1\n')
  _, classes = written(tmp_path, dict.fromkeys(PAIR, 2))
  assert classes == [1, 1]
