"""Trains a tiny LASER decoder on four devices, by interpreted kernels and by plain jax.

tests/layers/test_fused_attention.py runs it; it prints both losses of three steps.
"""

import json

import jax
import numpy as np

from tests.support import interpreted, steps


def losses(state=None):
  """Returns the losses, and the state with which the training began."""
  experiment = steps.experiment('C4LaserTiny', GLOBAL_BATCH_SIZE=4)
  trainer = steps.Trainer(experiment, [1, 2, 2], state=state)
  state = jax.tree.map(np.asarray, trainer.state)
  return [float(output.loss) for output in trainer.train(0, 3, padded=True)], state


def main() -> None:
  plain, state = losses()
  with interpreted.kernels() as make:
    by_kernels, _ = losses(state)
  print(json.dumps({'plain': plain, 'by_kernels': by_kernels, 'kernels': make.call_count}))


if __name__ == '__main__':
  main()
