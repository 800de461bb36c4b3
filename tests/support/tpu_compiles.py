"""Compiles programs of the tests for TPUs, and prints their costs as JSON.

`python -m tests.support.tpu_compiles rematerialised EXPERIMENT LAYERS_PER_BLOCK`, or `layers`.
"""

import dataclasses
import json
import sys

from laser_pax.costs import libtpu


def rematerialised(name: str, layers_per_block: str) -> dict:
  """Returns the costs of an experiment's train step that keeps only the inputs of blocks."""
  from laser_pax import configs
  from laser_pax.costs import reports

  experiment = getattr(configs, name)().on()
  experiment.CHECKPOINT_POLICY = 'save_nothing'
  experiment.LAYERS_PER_BLOCK = int(layers_per_block)
  return reports.report(experiment, evaluation=False).to_json()


def layers() -> list[dict]:
  """Returns the costs of a fused LASER layer, for a short sequence and for the longest."""
  from benchmarks.tpu import fused_layer
  from laser_pax.layers import LaserFusedDotProductAttention

  return [
    dataclasses.asdict(fused_layer.layer_cost(LaserFusedDotProductAttention, chip, tokens))
    for chip, tokens in (('v5e', 1_024), ('v5p', 32_768))
  ]


if __name__ == '__main__':
  libtpu.use()
  command, *arguments = sys.argv[1:]
  print(json.dumps({'rematerialised': rematerialised, 'layers': layers}[command](*arguments)))
