"""Tells where a train step's time on a CPU goes: `python benchmarks/cpu_profile.py laser`.

It runs one variant of `ours.py` at the benchmark's first shape, and reads XLA's own trace. It lists
the time of each operation of the compiled step on the thread that runs the step. Matrix products
run on other threads meanwhile and hardly show: they are the rest of the step's time.
"""

import collections
import glob
import gzip
import json
import os
import re
import sys
import tempfile
import time

import typer

STEPS, BATCH, LENGTH = 3, 8, 256


def main(variant: str, rows: int = 40) -> None:
  """Prints the operations of a step that take longest."""
  with tempfile.TemporaryDirectory() as folder:
    os.environ['XLA_FLAGS'] = f'--xla_dump_to={folder}/hlo --xla_dump_hlo_as_text'
    os.environ['JAX_PLATFORMS'] = 'cpu'
    seconds = _trace(variant, f'{folder}/trace')
    shapes, durations = _operations(f'{folder}/hlo'), _durations(f'{folder}/trace')
  print(f'{seconds:.3f} s a step; on its thread {sum(durations.values()):.3f} s; of it, in ms:')
  for name, duration in durations.most_common(rows):
    print(f'{1e3 * duration:7.1f}  {name:44} {shapes.get(name, "")}')


def _trace(variant: str, folder: str) -> float:
  """Traces some steps, and returns the seconds of one without the trace."""
  sys.argv = sys.argv[:1]
  import jax
  import ours

  step, _ = ours.prepare(variant, BATCH, LENGTH)
  for _ in range(2):
    step()
  start = time.perf_counter()
  for _ in range(STEPS):
    step()
  seconds = (time.perf_counter() - start) / STEPS
  with jax.profiler.trace(folder):
    for _ in range(STEPS):
      step()
  return seconds


def _operations(folder: str) -> dict[str, str]:
  """Returns the shape of each operation of the compiled step, and its place in the model."""
  (text,) = glob.glob(f'{folder}/*_wrapped_step_fn*cpu_after_optimizations.txt')
  shapes = {}
  with open(text) as lines:
    for line in lines:
      if match := re.match(r'\s+(?:ROOT )?%?([\w.-]+) = (\S+) ', line):
        source = re.search(r'op_name="([^"]*)"', line)
        shapes[match[1]] = f'{match[2][:32]:34}{source[1][-90:] if source else ""}'
  return shapes


def _durations(folder: str) -> collections.Counter:
  """Returns the seconds of one step that each operation takes."""
  (trace,) = glob.glob(f'{folder}/**/*.trace.json.gz', recursive=True)
  with gzip.open(trace) as file:
    events = json.load(file)['traceEvents']
  durations = collections.Counter()
  for event in events:
    name = event.get('args', {}).get('hlo_op')
    if name and 'dur' in event and not name.startswith('call'):  # A call's fusion has an event too.
      durations[name] += event['dur'] / 1e6 / STEPS
  return durations


if __name__ == '__main__':
  typer.run(main)
