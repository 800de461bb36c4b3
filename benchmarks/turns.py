"""The model's sizes, and how a worker takes turns; imports the standard library alone.

A worker prints one line of JSON when it is ready. Then, for each line `run K` that it reads, it
takes K train steps and prints their seconds. It ends when there is nothing more to read.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable

LAYERS, DIMS, HEADS, HIDDEN, VOCAB = 4, 256, 4, 1_024, 8_192
LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY = 1e-3, (0.9, 0.99), 1e-8, 0.1
WARM_UP = 2


def arguments(*variants: str) -> argparse.Namespace:
  """Reads a worker's command line: which variant, and the shape of its batches."""
  parser = argparse.ArgumentParser()
  parser.add_argument('variant', choices=variants)
  parser.add_argument('--batch', type=int, required=True, help='Sequences of a step.')
  parser.add_argument('--length', type=int, required=True, help='Tokens of a sequence.')
  return parser.parse_args()


def peak_mib() -> float:
  """Returns the most memory that this process has held so far."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def serve(prepare: Callable[[], tuple[Callable[[], float], dict]]) -> None:
  """Prepares, warms up, and takes steps whenever it is asked to.

  Args:
    prepare: Returns a function that takes one step, waits for it and returns its loss; and the
      facts about the model to report.
  """
  # The parent reads this process's first output; all other output goes to the log.
  replies = os.fdopen(os.dup(sys.stdout.fileno()), 'w', buffering=1)
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  imports = peak_mib()
  step, facts = prepare()
  first = [step() for _ in range(WARM_UP)][0]
  print(json.dumps({**facts, 'first_loss': first, 'imports_mib': imports}), file=replies)
  for line in sys.stdin:
    steps = int(line.removeprefix('run '))
    start = time.perf_counter()
    losses = [step() for _ in range(steps)]
    seconds = time.perf_counter() - start
    reply = {'seconds': seconds, 'last_loss': losses[-1], 'peak_mib': peak_mib()}
    print(json.dumps(reply), file=replies)
