"""Continues prompts with random weights in several ways, and prints all token ids as JSON."""

import json
import sys

import jax
import numpy as np

from laser_pax.evaluation import generation
from tests.support import random_weights

LENGTHS = (1, 5, 17, 30)  # Rows are padded to 32 on the left.
NEW = 64


def prompts(seed: int) -> list[list[int]]:
  """Returns a prompt of each length."""
  rng = np.random.default_rng(seed)
  return [rng.integers(3, 128, length).tolist() for length in LENGTHS]


def main(name: str, mesh: str):
  """Continues prompts with a model on a mesh, and finds the likeliest tokens in one pass."""
  model = random_weights.model(name, ICI_MESH_SHAPE=json.loads(mesh), DCN_MESH_SHAPE=[1, 1, 1])
  given = prompts(0)
  greedy = generation.generate(model, given, max_tokens=NEW)
  rows = [before + new for before, new in zip(given, greedy, strict=True)]
  results = {'prompts': given, 'greedy': greedy, 'likeliest': random_weights.likeliest(model, rows)}
  if jax.device_count() == 1:
    # The same programs serve these.
    others = [*prompts(1)[:2], given[2], prompts(1)[3]]
    results['beside others'] = generation.generate(model, others, max_tokens=NEW)[2]
    results['fewer'] = generation.generate(model, given, max_tokens=NEW - 20)
    model.set_end_logit(20.0)
    results['ending'] = generation.generate(model, given, max_tokens=NEW)
  print(json.dumps(results))


if __name__ == '__main__':
  main(*sys.argv[1:])
