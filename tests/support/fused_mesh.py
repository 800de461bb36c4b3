"""Trains a tiny LASER decoder on four devices, by interpreted kernels and by plain jax.

tests/layers/test_fused_attention.py runs it; it prints both losses of three steps.
"""

import functools
import json

import jax
import numpy as np

from laser_pax.ops import devices, fused
from tests.support import steps


def losses(state=None):
  """Returns the losses, and the state with which the training began."""
  experiment = steps.experiment('C4LaserTiny', GLOBAL_BATCH_SIZE=4)
  trainer = steps.Trainer(experiment, [1, 2, 2], state=state)
  state = jax.tree.map(np.asarray, trainer.state)
  return [float(output.loss) for output in trainer.train(0, 3, padded=True)], state


def main() -> None:
  made = []
  plain, state = losses()
  make = fused.splash_attention_kernel.make_splash_mha

  def interpreted(*args, **kwargs):
    made.append(kwargs)
    return make(*args, interpret=True, **kwargs)

  fused.splash_attention_kernel.make_splash_mha = functools.wraps(make)(interpreted)
  devices.platform = lambda mesh=None: 'tpu'
  print(json.dumps({'plain': plain, 'by_kernels': losses(state)[0], 'kernels': len(made)}))


if __name__ == '__main__':
  main()
