"""Words of the command line become values of an attribute's type, or are refused."""

import jax.numpy as jnp
import pytest
from praxis import layers

from laser_pax.configs import C4LaserTiny
from laser_pax.errors import UserError
from laser_pax.experiment import overrides


def changed(word):
  """Returns an experiment with an override, and the override's name."""
  experiment, (name, _, text) = C4LaserTiny(), word.partition('=')
  setattr(experiment, name, overrides.read(text))
  return experiment, name


@pytest.mark.parametrize(
  ('word', 'expected'),
  [
    ('NUMERICS=paper', 'paper'),
    ('NUMERICS="paper"', 'paper'),
    ('BETA=0.5', 0.5),
    ('BETA=0', 0.0),
    ('BETA=learned', 'learned'),
    ('BETA=None', None),
    ('POD=cpu', 'cpu'),
    ('NUM_LAYERS=2.0', 2),
    ('LEARNING_RATE=1', 1.0),
    ('LEARNING_RATE=1e-3', 0.001),
    ('USE_REPEATED_LAYER=False', False),
    ('MICRO_BATCHES=None', None),
    ('CHECKPOINT_MAX_TO_KEEP=None', None),
    ('ICI_MESH_SHAPE=(1,2.0,1)', [1, 2, 1]),
    ('CHECKPOINT_POLICY=save_nothing', layers.AutodiffCheckpointType.SAVE_NOTHING),
    ('FPROP_DTYPE=bfloat16', jnp.bfloat16.dtype.type),
    ('DATA_DIR=a b/c', 'a b/c'),
  ],
)
def test_a_word_that_fits(word, expected):
  name, _, text = word.partition('=')
  fitting = overrides.fit(C4LaserTiny, name, overrides.read(text))
  assert fitting == expected and type(fitting) is type(expected)
  experiment = C4LaserTiny()
  setattr(experiment, name, overrides.read(text))
  experiment.check_overrides()
  assert getattr(experiment, name) == expected


@pytest.mark.parametrize(
  'word',
  [
    'NUMERICS=papper',
    'NUMERICS=3',
    'BETA=nan',
    'BETA=learnt',
    'BETA=True',
    'POD=3',
    'NUM_LAYERS=2.5',
    'NUM_LAYERS=True',
    'NUM_LAYERS=None',
    'NUM_HEADS=x',
    'LEARNING_RATE=fast',
    'LEARNING_RATE=nan',
    'LEARNING_RATE=1e999',
    'USE_REPEATED_LAYER=7',
    'ICI_MESH_SHAPE=[1,"x",1]',
    'CHECKPOINT_POLICY=nope',
    'FPROP_DTYPE=int8',
    'FPROP_DTYPE=float99',
    'DATASET=c4',
    'MODEL_CLASS=Model',
    'METRIC=loss',
    'NUM_LAYERS=' + '(' * 500,
  ],
)
def test_a_word_that_does_not_fit(word):
  name, _, text = word.partition('=')
  with pytest.raises(UserError, match=f'C4LaserTiny.{name} = .*without the override it is'):
    overrides.fit(C4LaserTiny, name, overrides.read(text))


@pytest.mark.parametrize(
  'word',
  [
    'NUM_TRAIN_STEPS=0',
    'SUMMARY_INTERVAL_STEPS=0',
    'CHECKPOINT_EVERY_N_STEPS=-1',
    'MICRO_BATCHES=0',
  ],
)
def test_numbers_out_of_range(word):
  experiment, name = changed(word)
  with pytest.raises(UserError, match=f'{name} must be at least 1'):
    experiment.check_numbers()


@pytest.mark.parametrize(
  'word',
  ['SEQ_LEN=0', 'NUM_LAYERS=-1', 'WEIGHT_DECAY=-0.1', 'LEARNING_RATE=0.0', 'ADAM_BETA1=1.0'],
)
def test_numbers_of_a_decoder_out_of_range(word):
  experiment, name = changed(word)
  with pytest.raises(UserError, match=f'{name} must be'):
    experiment.check()
