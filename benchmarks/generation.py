"""How fast a decoder generates, with its cache and without.

`python benchmarks/generation.py` takes some minutes on two cores. The model is C4LaserTiny, and its
standard twin, with 512 positions and random weights: speed does not depend on what they say.

Without a cache each new token costs a pass over all tokens before it. The rows are padded to powers
of two, so that few programs are compiled. Compiling is not timed.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from paxml import trainer_lib
from praxis import py_utils

from laser_pax import configs
from laser_pax.evaluation import generation, restored
from laser_pax.experiment import saved_models

PROMPT, NEW, ROUNDS = 16, 256, 3


class RandomWeights(restored.Restored):
  """An experiment's model with random weights, in place of a checkpoint's."""

  def _read(self, metadata):
    rng = np.random.default_rng(0)

    def draw(x, spec):
      value = (0.1 * rng.standard_normal(x.shape)).astype(x.dtype)
      return jax.device_put(value, jax.sharding.NamedSharding(self.mesh, spec))

    shapes, specs = metadata.padded_global_shapes, metadata.partition_specs
    weights = jax.tree.map(draw, shapes.mdl_vars, specs.mdl_vars)
    return shapes.replace(step=jnp.zeros((), jnp.int32), mdl_vars=weights, opt_states=[])


def with_cache(model: RandomWeights, prompts: list[list[int]]) -> tuple[float, int]:
  """Returns the seconds of a generation, and its number of new tokens."""
  start = time.perf_counter()
  new = generation.generate(model, prompts, max_tokens=NEW)
  return time.perf_counter() - start, sum(map(len, new))


def without_cache(model: RandomWeights, prompts: list[list[int]]) -> tuple[float, int]:
  """Returns the same figures where each token is the last of a pass over the whole row."""
  rows = np.zeros((len(prompts), PROMPT + NEW + 1), np.int32)
  rows[:, 1 : PROMPT + 1] = prompts
  start = time.perf_counter()
  for place in range(PROMPT, PROMPT + NEW):
    rows[:, place + 1] = _likeliest(model, rows, place)
  return time.perf_counter() - start, len(prompts) * NEW


def _likeliest(model: RandomWeights, rows: np.ndarray, place: int) -> np.ndarray:
  """Returns the likeliest token after `place` of each row, by one pass."""
  length = 1 << place.bit_length()
  ids = np.zeros((len(rows), length), np.int32)
  ids[:, : place + 1] = rows[:, : place + 1]
  weights = np.tile((np.arange(length) <= place).astype(np.float32), (len(rows), 1))
  batch = py_utils.NestedMap(
    ids=ids,
    labels=np.zeros_like(ids),
    weights=weights,
    paddings=1 - weights,
    segment_ids=weights.astype(np.int32),
    segment_pos=(np.arange(length) * weights).astype(np.int32),
  )
  output = model.run(trainer_lib.eval_step_single_learner, batch)
  return output.per_example_out.per_example_argmax[:, place]


def main() -> None:
  """Prints tokens a second of both ways, for each attention and number of rows."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rows', type=int, nargs='+', default=[1, 8])
  rng, records = np.random.default_rng(1), []
  for name in ('C4StandardTiny', 'C4LaserTiny'):
    experiment = getattr(configs, name)()
    experiment.SEQ_LEN = 512
    model = RandomWeights(experiment, saved_models.Saved('nowhere', 0, None))
    for rows in parser.parse_args().rows:
      prompts = rng.integers(3, experiment.VOCAB_SIZE, (rows, PROMPT)).tolist()
      generation.compile_for(model, prompts, max_tokens=NEW)
      for place in (PROMPT, 32, 64, 128, 256):
        _likeliest(model, np.zeros((rows, PROMPT + NEW + 1), np.int32), place)
      rates = {}
      for way in (with_cache, without_cache):
        measured = [way(model, prompts) for _ in range(ROUNDS)]
        rates[way.__name__] = statistics.median(count / seconds for seconds, count in measured)
      ratio = rates['with_cache'] / rates['without_cache']
      records.append({'experiment': name, 'rows': rows, **rates, 'ratio': ratio})
      print(
        f'{name}, {rows} rows: {rates["with_cache"]:,.0f} tokens/s with the cache, '
        f'{rates["without_cache"]:,.0f} without: {ratio:.1f} times as fast',
        flush=True,
      )
  print(json.dumps(records))


if __name__ == '__main__':
  main()
