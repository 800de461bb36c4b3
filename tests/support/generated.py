"""Continues prompts with random weights in several ways, and prints all token ids as JSON.

`python -m tests.support.generated [1,1,1] C4LaserTiny C4StandardTiny` names a mesh and experiments.
With XLA_FLAGS=--xla_force_host_platform_device_count=4 the mesh may be [1,2,2].
"""

import json
import sys

import numpy as np

from laser_pax.evaluation import generation
from tests.support import random_weights

LENGTHS = (1, 5, 17, 30)  # Rows are padded to 32 on the left.
NEW = 64


def prompts(seed: int) -> list[list[int]]:
  """Returns a prompt of each length."""
  rng = np.random.default_rng(seed)
  return [rng.integers(3, 128, length).tolist() for length in LENGTHS]


def generated(name: str, mesh: list[int]) -> dict:
  """Continues prompts with a model on a mesh, and finds the likeliest tokens in one pass."""
  model = random_weights.model(name, ICI_MESH_SHAPE=mesh, DCN_MESH_SHAPE=[1, 1, 1])
  given = prompts(0)
  greedy = generation.generate(model, given, max_tokens=NEW)
  rows = [before + new for before, new in zip(given, greedy, strict=True)]
  results = {'prompts': given, 'greedy': greedy, 'likeliest': random_weights.likeliest(model, rows)}
  # The same program serves these.
  others = [*prompts(1)[:2], given[2], prompts(1)[3]]
  results['beside others'] = generation.generate(model, others, max_tokens=NEW)[2]
  results['fewer'] = generation.generate(model, given, max_tokens=NEW - 20)
  model.set_end_logit(20.0)
  results['ending'] = generation.generate(model, given, max_tokens=NEW)
  return results


def main(mesh: str, *names: str) -> None:
  """Prints the results of each experiment."""
  print(json.dumps({name: generated(name, json.loads(mesh)) for name in names}))


if __name__ == '__main__':
  main(*sys.argv[1:])
