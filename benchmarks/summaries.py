"""What attention's summaries cost a train step: `python -m benchmarks.summaries [EXPERIMENT ...]`.

Steps with and without them take turns in one process. A line of JSON has the median of the
process's CPU seconds a step, which other programs of the machine disturb less than the time does.
"""

import dataclasses
import json
import statistics
import sys
import time

import numpy as np

ROUNDS = 40


@dataclasses.dataclass
class Trial:
  """A compiled step and its state.

  Attributes:
    step: The step.
    state: The state before the next step.
    rows: The batch of all steps.
    key: The key of all steps.
    static: What PAX's step needs beside these.
  """

  step: object
  state: object
  rows: object
  key: object
  static: object

  def run(self) -> tuple[float, float]:
    """Runs a step, and returns its CPU seconds and its loss."""
    start = time.process_time()
    self.state, output = self.step(self.state, self.key, self.rows, self.static)
    loss = float(output.loss)
    return time.process_time() - start, loss


def trial(name: str, queries: int | None) -> Trial:
  """Compiles a step of a decoder, on rows of random tokens."""
  import jax
  from paxml import partitioning, trainer_lib
  from praxis import pax_fiddle, py_utils

  from laser_pax import configs
  from laser_pax.experiment import training

  experiment = getattr(configs, name)()
  experiment.ATTENTION_SUMMARY_QUERIES = queries
  experiment.ICI_MESH_SHAPE, experiment.DCN_MESH_SHAPE = [1, 1, 1], [1, 1, 1]
  task = pax_fiddle.instantiate(experiment.task())
  devices = np.array(jax.devices()[:1]).reshape(1, 1, 1)
  partitioner = partitioning.PjitPartitioner(
    init_is_eval=False, reshard_inputs=True, task=task, device_mesh=devices
  )
  key = jax.random.PRNGKey(1)
  specs = experiment.input_specs(experiment.GLOBAL_BATCH_SIZE)
  partitioner.setup(task, key, specs)
  _, state, _ = partitioner.initialize_prng_key_and_train_state(key, None, None)
  step, _ = partitioner.partition(training.train_step(1), specs, is_eval=False)
  static = trainer_lib.BaseStepFnStaticArgs(unpadded_global_batch_size=experiment.GLOBAL_BATCH_SIZE)
  rng = np.random.default_rng(0)
  ids = rng.integers(3, experiment.VOCAB_SIZE, specs.ids.shape, dtype=np.int32)
  ones = np.ones(ids.shape, np.int32)
  rows = py_utils.NestedMap(
    ids=ids,
    labels=np.roll(ids, -1, axis=1),
    weights=ones.astype(np.float32),
    paddings=np.zeros(ids.shape, np.float32),
    segment_ids=ones,
    segment_pos=np.arange(ids.shape[1], dtype=np.int32) * ones,
  )
  return Trial(step, state, jax.tree.map(jax.device_put, rows), key, static)


def main() -> None:
  """Prints a line for each experiment."""
  for name in sys.argv[1:] or ('C4StandardTiny', 'C4LaserTiny'):
    trials = {queries: trial(name, queries) for queries in (None, 16)}
    seconds, losses = {None: [], 16: []}, {None: [], 16: []}
    for number in range(ROUNDS + 3):
      for queries in (None, 16) if number % 2 else (16, None):
        spent, loss = trials[queries].run()
        losses[queries].append(loss)
        if number >= 3:
          seconds[queries].append(spent)
    without, with_summaries = (statistics.median(seconds[q]) for q in (None, 16))
    record = {
      'experiment': name,
      'cpu_seconds_without': round(without, 5),
      'cpu_seconds_with': round(with_summaries, 5),
      'ratio': round(with_summaries / without, 4),
      'losses_are_equal': losses[None] == losses[16],
    }
    print(json.dumps(record), flush=True)


if __name__ == '__main__':
  main()
