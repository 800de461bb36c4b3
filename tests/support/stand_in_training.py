"""A stand-in for `python -m laser_pax train`, with records and checkpoints as the real one has.

It takes the flags of `train` and trains nothing. The loss of a step follows from LEARNING_RATE and
INIT_SEED alone. A checkpoint is saved at each second step, and the same command goes on from the
newest. Each start adds a line to starts.jsonl. SIGTERM ends it with 75, and SIGINT with 130, as
they end the real one. A learning rate above 0.9 diverges, and one of 0.5 fails at its second step.

Files in the sweep's folder: with `deny` each training fails at once; with `hold` it waits after its
second step until there is no such file; with `meet` it first waits for a second training.
"""

import json
import math
import os
import pathlib
import signal
import sys
import time

BEST = 0.004


def figure(learning_rate: float, seed: int) -> float:
  """Returns the last figure of a run: least at `BEST`, and a little greater for each seed."""
  return 1 + math.log10(learning_rate / BEST) ** 2 + seed / 1000


def _save(folder: pathlib.Path, step: int) -> None:
  checkpoint = folder / 'checkpoints' / f'checkpoint_{step:08d}'
  for name in ('metadata', 'state'):
    (checkpoint / name).mkdir(parents=True, exist_ok=True)
    (checkpoint / name / 'metadata').write_text('{}')


def main(words: list[str]) -> int:
  """Trains, and returns the exit code."""
  flags = dict(word.lstrip('-').partition('=')[::2] for word in words)
  folder = pathlib.Path(flags['job_log_dir'])
  rate, seed = float(flags['fdl.LEARNING_RATE']), int(flags.get('fdl.INIT_SEED', 0))
  steps = int(flags.get('fdl.NUM_TRAIN_STEPS', 4))
  if (folder.parent / 'deny').exists():
    print('some words\nerror: denied', file=sys.stderr)
    return 2
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
  signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
  saved = [int(path.name[-8:]) for path in folder.glob('checkpoints/checkpoint_*')]
  with (folder / 'starts.jsonl').open('a') as starts:
    cores = sorted(os.sched_getaffinity(0))
    record = {'step': max(saved, default=0), 'cores': cores, 'words': words}
    starts.write(json.dumps(record) + '\n')
  if (folder.parent / 'meet').exists():
    _wait(lambda: len([*folder.parent.glob('*/starts.jsonl')]) > 1)
  with (folder / 'progress.jsonl').open('a', buffering=1) as records:
    for step in range(max(saved, default=0) + 1, steps + 1):
      if rate == 0.5 and step == 2:
        print('error: out of memory', file=sys.stderr)
        return 1
      loss = None if rate > 0.9 else figure(rate, seed) + (steps - step)
      common = {'step': step, 'seconds': float(step)}
      records.write(
        json.dumps({'kind': 'train', 'loss': loss, 'tokens_per_second': None, **common}) + '\n'
      )
      if step == steps:
        evaluation = {'kind': 'eval', 'split': 'validation', 'loss': loss, **common}
        records.write(json.dumps(evaluation) + '\n')
      if step % 2 == 0 or step == steps:
        _save(folder, step)
      if step == 2:
        _wait(lambda: not (folder.parent / 'hold').exists())
  return 0


def _wait(condition) -> None:
  deadline = time.time() + 120
  while not condition():
    if time.time() > deadline:
      sys.exit('error: it waited in vain')
    time.sleep(0.01)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
