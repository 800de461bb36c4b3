"""The ablations of laser_pax/configs/c4_ablations.py at a tiny size, and what PAX's own step does.

tests/experiment/test_ablations.py runs it as a script, on four devices. It prints the losses of
Differential Transformer by LAMB on one device and on four, and what an overflow changes.
"""

import json

import jax
import numpy as np

from laser_pax.configs import c4_ablations
from tests.support import steps

NAMES = [name for name in vars(c4_ablations) if name.startswith('C4')]
# These make the size, and are not what an ablation is about.
_SIZES = {'DIMS_PER_HEAD'}
_IS_VALID = 'learning/is_valid_step_aggregate_scalar'


def _changes(name: str) -> dict:
  """Returns the attributes in which an ablation differs from the pair of c4.py that it changes."""
  own = [cls for cls in getattr(c4_ablations, name).__mro__ if cls.__name__ in NAMES]
  attributes = {k: v for cls in reversed(own) for k, v in vars(cls).items() if k.isupper()}
  return {k: v for k, v in attributes.items() if k not in _SIZES}


def experiment(name: str, **attributes):
  """Returns an ablation at a tiny size, with further attributes."""
  twin = 'C4LaserTiny' if 'Laser' in name else 'C4StandardTiny'
  small = dict(NUM_LAYERS=1, GLOBAL_BATCH_SIZE=4, WARMUP_STEPS=1, SEQ_LEN=16)
  small |= dict(ATTENTION_SUMMARY_QUERIES=None)
  return steps.experiment(twin, **(small | _changes(name) | attributes))


def _losses(trainer: steps.Trainer) -> list[float]:
  return [float(output.loss) for output in trainer.train(0, 4, padded=True)]


def _sharding(trainer: steps.Trainer) -> list:
  """Returns how the mesh divides LAMB's first moment of the projection of queries, keys, values."""
  (moment,) = (
    x
    for path, x in jax.tree_util.tree_leaves_with_path(trainer.state.opt_states)
    if "['m']" in (name := jax.tree_util.keystr(path)) and 'combined_qkv' in name
  )
  return [axis[0] if isinstance(axis, tuple) else axis for axis in moment.sharding.spec]


def _overflow() -> dict:
  """Takes a step from weights whose values exceed exp's range; returns what it changed."""
  trainer = steps.Trainer(experiment('C4Laser300MUnshifted'), [1, 1, 1])

  def wide(path, x):
    return 1e4 * x if 'combined_qkv' in jax.tree_util.keystr(path) else x

  weights = jax.tree_util.tree_map_with_path(wide, trainer.state.mdl_vars)
  trainer.state = trainer.state.replace(mdl_vars=weights)
  before = jax.tree.map(np.asarray, trainer.state.mdl_vars)
  outputs = trainer.train(1, 3)
  same = jax.tree.map(np.array_equal, before, jax.tree.map(np.asarray, trainer.state.mdl_vars))
  return {
    'losses': [float(output.loss) for output in outputs],
    'valid': [float(np.ravel(output.summary_tensors[_IS_VALID])[0]) for output in outputs],
    'is_kept': all(jax.tree.leaves(same)),
  }


def main() -> None:
  """Trains on one device and on four, from one state; and overflows."""
  attributes = dict(NUM_LAYERS=2, OPTIMIZER='lamb', LEARNING_RATE=1e-2)
  make = lambda: experiment('C4Laser2BDifferential', **attributes)  # noqa: E731
  one = steps.Trainer(make(), [1, 1, 1])
  state = jax.tree.map(np.asarray, one.state)
  found = {'one': _losses(one)}
  four = steps.Trainer(make(), [1, 2, 2], state=state)
  found |= {'four': _losses(four), 'sharding': _sharding(four), 'overflow': _overflow()}
  print(json.dumps(found))


if __name__ == '__main__':
  main()
