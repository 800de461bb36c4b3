"""Trains in micro-batches on one and on four devices, and prints the results as JSON."""

import collections
import json
import re

import jax
import numpy as np

from tests.support import steps

STEPS = 20
_GRADIENT = 'learning/raw_grad_norm_aggregate_scalar'
# Each case is a name, a number of devices and a number of parts.
CASES = [
  ('C4StandardTiny', 1, 1),
  ('C4StandardTiny', 1, 4),
  ('C4LaserTiny', 1, 1),
  ('C4LaserTiny', 1, 4),
  ('C4LaserTiny', 4, 4),
  ('C4LaserTiny', 4, 1),  # It is compiled alone, to compare.
]


def _series(trainer, state, padded):
  trainer.state = trainer.place(state, trainer.metadata.partition_specs)
  outputs = trainer.train(0, STEPS, padded)
  return {
    'loss': [float(o.loss) for o in outputs],
    'gradient': [float(np.ravel(o.summary_tensors[_GRADIENT])[0]) for o in outputs],
    'scores': np.ravel(outputs[0].per_example_out['scores']).tolist(),
    'scalars': {
      name: [[float(x) for x in o.weighted_scalars[name]] for o in outputs]
      for name in outputs[0].weighted_scalars
    },
  }


def _collectives(text):
  """Counts collectives by name and element type of their first result."""
  collectives = re.findall(
    r'= \(?(\w+)\[[^=]* (all-to-all|all-gather|collective-permute)(?:-start)?\(', text
  )
  return {f'{op} {dtype}': n for (dtype, op), n in collections.Counter(collectives).items()}


def main():
  """Trains each case."""
  results, state = {}, None  # The twins begin with the same state.
  for name, devices, parts in CASES:
    experiment = steps.experiment(name, NUM_LAYERS=1)
    trainer = steps.Trainer(experiment, [1, devices, 1], parts, state)
    state = jax.tree.map(np.asarray, trainer.state) if state is None else state
    case = {}
    if (devices, parts) != (4, 1):
      case = {str(padded): _series(trainer, state, padded) for padded in (False, True)}
    if devices == 4:
      compiled = trainer.compiled()
      case['temporaries'] = compiled.memory_analysis().temp_size_in_bytes
      case['collectives'] = _collectives(compiled.as_text())
    results[f'{name} {devices} {parts}'] = case
  print(json.dumps(results))


if __name__ == '__main__':
  main()
