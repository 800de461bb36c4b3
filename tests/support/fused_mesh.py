"""Trains a tiny LASER decoder on four devices, by interpreted kernels and by plain jax.

tests/layers/test_fused_attention.py runs it; it prints both losses of three steps.
"""

import functools
import json

from laser_pax.ops import devices, fused
from tests.support import steps


def losses() -> list[float]:
  trainer = steps.Trainer(steps.experiment('C4LaserTiny'), [1, 2, 2])
  return [float(output.loss) for output in trainer.train(0, 3, padded=True)]


def main() -> None:
  plain, made = losses(), []
  make = fused.splash_attention_kernel.make_splash_mha

  def interpreted(*args, **kwargs):
    made.append(kwargs)
    return make(*args, interpret=True, **kwargs)

  fused.splash_attention_kernel.make_splash_mha = functools.wraps(make)(interpreted)
  devices.platform = lambda mesh=None: 'tpu'
  print(json.dumps({'plain': plain, 'by_kernels': losses(), 'kernels': len(made)}))


if __name__ == '__main__':
  main()
