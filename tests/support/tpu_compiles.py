"""Compiles for TPUs what a test asks for, and prints it as JSON.

`python -m tests.support.tpu_compiles rematerialised EXPERIMENT LAYERS_PER_BLOCK`, or `layers`.
"""

import dataclasses
import json
import sys

from laser_pax.costs import libtpu


def rematerialised(name: str, layers_per_block: str) -> dict:
  """The train step of an experiment that keeps nothing but each block's input."""
  from laser_pax import configs
  from laser_pax.costs import reports

  experiment = getattr(configs, name)().on()
  experiment.CHECKPOINT_POLICY = 'save_nothing'
  experiment.LAYERS_PER_BLOCK = int(layers_per_block)
  return reports.report(experiment, evaluation=False).to_json()


def layers() -> list[dict]:
  """A layer with fused LASER on a chip: a short sequence, and the longest."""
  from benchmarks.tpu import fused_layer
  from laser_pax.layers import LaserFusedDotProductAttention

  return [
    dataclasses.asdict(fused_layer.layer_cost(LaserFusedDotProductAttention, chip, tokens))
    for chip, tokens in (('v5e', 1_024), ('v5p', 32_768))
  ]


if __name__ == '__main__':
  libtpu.use()
  what, *arguments = sys.argv[1:]
  print(json.dumps({'rematerialised': rematerialised, 'layers': layers}[what](*arguments)))
