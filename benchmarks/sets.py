"""Compares a train step on both sets of packages: `python benchmarks/sets.py`.

It trains the model of benchmarks/cpu.py, LASER and standard attention, on the jax of `.venv` and on
that of `.venv-current` (docs/environment.md). The processes take turns, as there.
"""

import contextlib
import functools
import json
import pathlib
import tempfile
from typing import Annotated

import cpu
import typer

from laser_pax.costs.rounds import in_turns

ROOT = pathlib.Path(__file__).parents[1]
SETS = {'pinned': '.venv', 'current': '.venv-current'}
BATCH, LENGTH = 8, 256


def main(
  rounds: Annotated[int, typer.Option(min=1, help='Turns of each.')] = 9,
  steps: Annotated[int, typer.Option(min=1, help='Steps of a turn.')] = 3,
) -> None:
  """Prints a JSON line for each variant and set; `ratio` is its time over the pinned set's."""
  environment = cpu.worker_environment(keep_pages=False)
  with contextlib.ExitStack() as stack:
    workers = {}
    for variant in ('laser', 'standard'):
      for name, venv in SETS.items():
        command = [ROOT / venv / 'bin' / 'python', cpu.HERE / 'ours.py', variant]
        command += [f'--batch={BATCH}', f'--length={LENGTH}']
        log = stack.enter_context(tempfile.TemporaryFile('w+'))
        workers[variant, name] = cpu.Worker(f'{variant}, {name}', command, environment, log)
        stack.callback(workers[variant, name].close)
    turns = {key: functools.partial(worker.turn, steps) for key, worker in workers.items()}
    taken = in_turns(turns, rounds)
    for (variant, name), worker in workers.items():
      seconds, base = taken[variant, name], taken[variant, 'pinned']
      point = cpu.record(worker, seconds, base, BATCH, LENGTH, steps)
      typer.echo(json.dumps(point))


if __name__ == '__main__':
  typer.run(main)
