"""Trains a tiny decoder whose beta is learned: on one device, and on four by interpreted kernels.

tests/layers/test_beta.py runs it; it prints the losses of three steps, and what became of beta.
"""

import json

import jax
import numpy as np

from tests.support import interpreted, steps


def main() -> None:
  def trainer(mesh, state=None):
    experiment = steps.experiment('C4LaserTiny', GLOBAL_BATCH_SIZE=4, BETA='learned')
    return steps.Trainer(experiment, mesh, state=state)

  def losses(trainer):
    return [float(output.loss) for output in trainer.train(0, 3, padded=True)]

  one = trainer([1, 1, 1])
  state = jax.tree.map(np.asarray, one.state)
  found = {'one': losses(one)}
  four = trainer([1, 2, 2], state)
  with interpreted.kernels() as make:
    found['four'] = losses(four)
  found['kernels'] = make.call_count
  (beta,) = (
    x
    for path, x in jax.tree_util.tree_leaves_with_path(four.state.mdl_vars)
    if 'beta' in jax.tree_util.keystr(path)
  )
  spec = [*beta.sharding.spec]
  found['sharding'] = [axis[0] if isinstance(axis, tuple) else axis for axis in spec]
  found['shape'], found['moved'] = list(beta.shape), float(abs(np.asarray(beta) - 1).max())
  print(json.dumps(found))


if __name__ == '__main__':
  main()
