"""Thousands of corrupted files through `prepare`, `vocab` and the input of a training.

    python -m tests.faults.fuzz --inputs=2000 --seed=0

Each input is drawn by the seed and its number, so that `--only=NUMBER` gives one again. Inputs run
in child processes: one that ends its process, or takes longer than `--seconds`, is a fault too.
"""

import argparse
import collections
import json
import multiprocessing
import os
import pathlib
import random
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

# Five of ten inputs go through `prepare`, three through `vocab`, and two through a training's.
_TURNS = ('prepare',) * 5 + ('vocab',) * 3 + ('train',) * 2
# A child takes so many inputs: TensorFlow keeps what each has opened.
_INPUTS_OF_A_CHILD = 250


class Result(NamedTuple):
  """What came of an input.

  Attributes:
    number: Number of the input.
    stage: Its stage.
    kind: How a file was corrupted; 'unknown' after a fault.
    end: 'accepted', 'refused' or 'fault'.
    text: The refusal's message, or what is wrong.
    file: The file that was corrupted.
  """

  number: int
  stage: str
  kind: str
  end: str
  text: str = ''
  file: str = ''


def stage_of(number: int) -> str:
  """Returns the name of the stage of an input."""
  return _TURNS[number % len(_TURNS)]


def run_one(number: int, seed: int) -> Result:
  """Runs one input in this process."""
  from tests.faults import stages

  name = stage_of(number)
  with tempfile.TemporaryDirectory(prefix='fuzz-', ignore_cleanup_errors=True) as folder:
    try:
      path = pathlib.Path(folder) / 'x'
      path.mkdir()
      outcome = stages.STAGES[name](path, random.Random(f'{seed} {number}'))
    except BaseException as e:
      kind, file = stages.drawn
      where = traceback.extract_tb(e.__traceback__)[-1]
      text = f'{type(e).__name__}: {e} ({where.filename}, line {where.lineno})'
      return Result(number, name, kind, 'fault', text, file)
  end = 'refused' if outcome.message else 'accepted'
  return Result(number, name, outcome.kind, end, outcome.message, outcome.file)


def _work(numbers: list[int], seed: int, results: Any) -> None:
  """Runs inputs in a child."""
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
  sys.stderr = open(os.devnull, 'w')  # noqa: SIM115
  from tests.faults import stages  # noqa: F401

  for number in numbers:
    results.send(number)
    results.send(run_one(number, seed))


def run(
  numbers: Iterable[int],
  seed: int,
  seconds: float,
  work: Callable[[list[int], int, Any], None] = _work,
) -> Iterator[Result]:
  """Yields what came of inputs, each of which may take so many seconds.

  Args:
    numbers: Numbers of inputs.
    seed: The seed.
    seconds: The time of one input. A child's first one has ten times as much, to import TensorFlow.
    work: What a child does with some of the numbers. It sends each number, and then its result.
  """
  waiting = list(numbers)
  context = multiprocessing.get_context('spawn')
  while waiting:
    here, there = context.Pipe(duplex=False)
    batch = waiting[:_INPUTS_OF_A_CHILD]
    child = context.Process(target=work, args=(batch, seed, there), daemon=True)
    child.start()
    there.close()
    limit, done = 10 * seconds, 0
    try:
      while done < len(batch):
        if not here.poll(limit):
          yield _broken(batch[done], f'no end within {limit:g} s')
          done += 1
          break
        if isinstance(answer := here.recv(), Result):
          yield answer
          done += 1
        limit = seconds
    except EOFError:
      child.join()
      yield _broken(batch[done], f'its process ended with code {child.exitcode}')
      done += 1
    child.kill()
    waiting = waiting[done:]


def _broken(number: int, fault: str) -> Result:
  return Result(number, stage_of(number), 'unknown', 'fault', fault)


def table(results: Iterable[Result]) -> str:
  """Returns how many inputs of each stage and kind were accepted and refused, and the faults."""
  counts = collections.Counter((r.stage, r.kind, r.end) for r in results)
  lines = [f'{"stage":8} {"corruption":10} {"accepted":>8} {"refused":>8} {"faults":>8}']
  for stage in dict.fromkeys(_TURNS):
    kinds = sorted({kind for s, kind, _ in counts if s == stage})
    for kind in [*kinds, 'all']:
      row = [
        sum(n for (s, k, e), n in counts.items() if (s, e) == (stage, end) and kind in (k, 'all'))
        for end in ('accepted', 'refused', 'fault')
      ]
      lines.append(f'{stage:8} {kind:10} {row[0]:8,} {row[1]:8,} {row[2]:8,}')
  return '\n'.join(lines)


def main() -> int:
  """Runs the inputs that the command line asks for. Returns 1 after a fault."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--inputs', type=int, default=2_000, help='number of corrupted inputs')
  parser.add_argument('--seed', type=int, default=0, help='seed of all of them')
  parser.add_argument('--only', type=int, help='number of the one input to run')
  parser.add_argument('--seconds', type=float, default=60.0, help='most seconds of one input')
  parser.add_argument('--json', type=pathlib.Path, help='file for a line of JSON an input')
  args = parser.parse_args()
  numbers = range(args.inputs) if args.only is None else [args.only]
  results = []
  for result in run(numbers, args.seed, args.seconds):
    results.append(result)
    if args.json:
      with args.json.open('a') as file:
        file.write(json.dumps(result._asdict()) + '\n')
    if result.end == 'fault':
      print(f'input {result.number} of seed {args.seed}: {result}', flush=True)
  print(table(results))
  return any(result.end == 'fault' for result in results)


if __name__ == '__main__':
  sys.exit(main())
