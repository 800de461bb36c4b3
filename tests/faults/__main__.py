"""`python -m tests.faults`: trains under random disturbances, and compares with a whole run."""

import json
import os
import pathlib
import random
import subprocess
import tempfile
import time
from typing import Annotated

import typer

from tests.faults import lives
from tests.support import small_texts
from tests.support.commands import Commands, Server


def main(
  kills: Annotated[int, typer.Option(help='Number of lives that are disturbed.')] = 50,
  steps: Annotated[int, typer.Option(help='Steps of the training.')] = 300,
  processes: Annotated[int, typer.Option(help='Processes that train together.')] = 1,
  only: Annotated[str | None, typer.Option(help='One disturbance; all in turn by default.')] = None,
  seed: Annotated[int, typer.Option(help='Decides the moments.')] = 0,
  disk: Annotated[int, typer.Option(help='MiB of a disk of its own; 0 for none, root only.')] = 0,
) -> None:
  """Disturbs a training over and over. It fails at the first broken promise."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    (folder / 'data').mkdir()
    (folder / 'commands').mkdir()
    (folder / 'job').mkdir()
    source = small_texts.prepare(folder / 'data')
    if disk:
      size = f'size={disk}m'
      subprocess.run(['mount', '-t', 'tmpfs', '-o', size, 'tmpfs', folder / 'job'], check=True)
    server = Server(folder / 'commands')
    try:
      _run(folder, server, source, kills, steps, processes, only, seed)
    finally:
      server.close()
      if disk:
        subprocess.run(['umount', folder / 'job'], check=True)


def _run(folder, server, source, kills, steps, processes, only, seed) -> None:
  start = time.time()
  data = {'LASER_PAX_DATA_DIR': source.data_dir, 'LASER_PAX_VOCAB': source.vocab}
  commands = Commands(server.folder)
  whole = lives.Training(commands, folder / 'whole', data, steps, processes)
  whole.finish()
  disturbed = lives.Training(commands, folder / 'job' / 'disturbed', data, steps, processes)
  rng = random.Random(seed)
  names = [only] if only else list(lives.DISTURBANCES)
  for number in range(kills):
    if (disturbed.whole() or 0) >= steps:
      break
    life = disturbed.live(names[number % len(names)], rng)
    print(json.dumps(life._asdict() | {'number': number + 1}), flush=True)
  disturbed.finish()
  lives.check_equal(disturbed, whole)
  lives.check_no_secret(disturbed)
  minutes = (time.time() - start) / 60
  print(lives.table(disturbed.lives))
  print(
    f'{len(disturbed.lives)} lives were cut off in {steps} steps of {processes} process(es), on '
    f'{os.cpu_count()} cores, in {minutes:.0f} minutes: {steps} losses, each evaluation and each '
    'array of the last checkpoint are equal to those of the whole run'
  )


if __name__ == '__main__':
  typer.run(main)
