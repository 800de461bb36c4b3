"""Compares the speed and memory of train steps on this machine's CPU: `python benchmarks/cpu.py`.

Each implementation has a process of its own. The processes take turns in rounds: each trains a few
steps in each round, and only one of them runs at a time. So all meet whatever else the machine
does. The figures are medians over the rounds, and medians of the rounds' ratios. Compiling and the
first steps are not timed. All train the same sizes in float32 with AdamW, on as many threads as
their library takes by itself.

All workers have the same environment. It is this process's own without the variables whose names
begin as `CLEARED` says: they set threads, compiler flags or another memory allocator. So all use
glibc's malloc with its defaults. With `--keep-pages` they use it as `KEEP_PAGES` sets it: freed
memory stays with the process.

PyTorch and x-transformers are installed into an environment of their own on the first run.
"""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from typing import Annotated, TextIO

import typer

from laser_pax.costs.machine import cores, processor, versions
from laser_pax.costs.rounds import in_turns, ratio

HERE = pathlib.Path(__file__).parent
PEER = ('torch==2.13.0', 'x-transformers==2.31.10')

# Script, variant, colour and line of the plot, by name.
IMPLEMENTATIONS = {
  'laser_pax, LASER': ('ours.py', 'laser', '#d1495b', '-'),
  'laser_pax, standard': ('ours.py', 'standard', '#3a6ea5', '-'),
  'PAX, standard': ('ours.py', 'stock', '#3a6ea5', ':'),
  'x-transformers, LASER': ('peer.py', 'plain', '#4b8b5a', '-'),
  'x-transformers, LASER, flash': ('peer.py', 'flash', '#4b8b5a', ':'),
}
BASE = next(iter(IMPLEMENTATIONS))

CLEARED = ('GLIBC_', 'KMP_', 'LD_PRELOAD', 'MALLOC_', 'MKL_', 'OMP_', 'PYTHONPATH', 'XLA_FLAGS')
KEEP_PAGES = {'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': str(2**40)}


class Worker:
  """One implementation's process, at one shape."""

  def __init__(self, name: str, command: list, environment: dict[str, str], log: TextIO):
    """Starts the process and waits until it is warm."""
    pipe = subprocess.PIPE
    self._log, self._process = (
      log,
      subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment),
    )
    self.name, self.facts, self.last = name, self._answer(), {}

  def turn(self, steps: int) -> float:
    """Lets it train `steps` steps; returns the seconds of one step."""
    self._process.stdin.write(f'run {steps}\n')
    self._process.stdin.flush()
    self.last = self._answer()
    return self.last['seconds'] / steps

  def _answer(self) -> dict:
    if line := self._process.stdout.readline():
      return json.loads(line)
    self._log.seek(0)
    raise SystemExit(f'a worker of the benchmark ended:\n{self._log.read()[-4000:]}')

  def close(self) -> None:
    """Ends the process by ending its input, and waits."""
    self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()


def peer_python(cache: pathlib.Path) -> str:
  """Returns the Python of PyTorch's environment, and makes that if it is not there."""
  folder = cache / 'peer'
  python, mark = folder / 'bin' / 'python', folder / 'installed.txt'
  if not mark.exists() or mark.read_text().split() != list(PEER):
    typer.echo(f'Installing {" and ".join(PEER)} into {folder}')
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    subprocess.run([python, '-m', 'pip', 'install', '--quiet', *PEER], check=True)
    mark.write_text('\n'.join(PEER))
  return str(python)


def worker_environment(keep_pages: bool) -> dict[str, str]:
  """Returns the environment of all workers."""
  kept = {name: value for name, value in os.environ.items() if not name.startswith(CLEARED)}
  return {**kept, 'JAX_PLATFORMS': 'cpu', **(KEEP_PAGES if keep_pages else {})}


def machine(keep_pages: bool) -> dict:
  """Returns the facts about the machine that the figures depend on."""
  return {
    'kind': 'machine',
    'cpu': processor(),
    'cores': cores(),
    'load_before': round(os.getloadavg()[0], 2),
    'malloc': 'glibc, keeping freed pages' if keep_pages else 'glibc',
    'versions': {**versions(), **dict(pin.split('==') for pin in PEER)},
  }


def measure(
  batch: int, length: int, rounds: int, steps: int, peer: str, environment: dict[str, str]
) -> Iterator[dict]:
  """Measures all implementations at one shape, and yields one record for each.

  Args:
    batch: Sequences of a step.
    length: Tokens of a sequence.
    rounds: Turns of each implementation.
    steps: Train steps of one turn.
    peer: The Python that has PyTorch.
    environment: The workers' environment.
  """
  with contextlib.ExitStack() as stack:
    workers = []
    for name, (script, variant, *_) in IMPLEMENTATIONS.items():
      python = peer if script == 'peer.py' else sys.executable
      command = [python, HERE / script, variant, f'--batch={batch}', f'--length={length}']
      log = stack.enter_context(tempfile.TemporaryFile('w+'))
      workers.append(Worker(name, command, environment, log))
      stack.callback(workers[-1].close)
    turns = {worker.name: functools.partial(worker.turn, steps) for worker in workers}
    taken = in_turns(turns, rounds)
    for worker in workers:
      yield record(worker, taken[worker.name], taken[BASE], batch, length, steps)


def record(
  worker: Worker, taken: list[float], base: list[float], batch: int, length: int, steps: int
) -> dict:
  """Returns the record of one worker; `ratio` is its time over the base's."""
  seconds, over_base = statistics.median(taken), ratio(taken, base)
  return {
    'kind': 'point',
    'implementation': worker.name,
    'batch': batch,
    'length': length,
    'steps_per_round': steps,
    'seconds_per_step': round(seconds, 4),
    'tokens_per_second': round(batch * length / seconds, 1),
    'ratio': round(over_base.median, 3),
    'ratios': [round(one, 3) for one in over_base.rounds],
    'rounds': [round(s, 4) for s in taken],
    'peak_mib': round(worker.last['peak_mib']),
    'imports_mib': round(worker.facts['imports_mib']),
    'parameters': worker.facts['parameters'],
    'last_loss': round(worker.last['last_loss'], 4),
  }


def plot(records: list[dict], out: pathlib.Path) -> None:
  """Draws the first shape's speed as bars; then speed and memory of the sweep against length."""
  import matplotlib

  matplotlib.use('Agg')
  matplotlib.rcParams['svg.hashsalt'] = 'benchmarks'
  from matplotlib import pyplot as plt

  facts, *points = records
  first, swept = points[: len(IMPLEMENTATIONS)], points[len(IMPLEMENTATIONS) :]
  figure, axes = plt.subplots(
    1, 3 if swept else 1, figsize=(13 if swept else 6, 4.4), layout='constrained', squeeze=False
  )
  figure.suptitle(f'One train step in float32 on {facts["cores"]} cores of a CPU, 4 layers, D 256')
  plot_bars(axes[0, 0], first)
  if swept:
    plot_sweep(*axes[0, 1:], swept)
    figure.legend(
      *axes[0, 1].get_legend_handles_labels(), loc='outside lower center', ncols=5, frameon=False
    )
  for ax in axes.flat:
    ax.spines[['top', 'right']].set_visible(False)
  figure.savefig(out, metadata={'Date': None})


def plot_bars(axes, points: list[dict]) -> None:
  """Draws speed at one shape."""
  for i, point in enumerate(points):
    *_, colour, line = IMPLEMENTATIONS[point['implementation']]
    bar = axes.barh(i, point['tokens_per_second'], color=colour, alpha=1 if line == '-' else 0.55)
    axes.bar_label(bar, [f'{point["tokens_per_second"]:,.0f}'], padding=3, fontsize=8)
  axes.set_yticks(range(len(points)), [p['implementation'] for p in points], fontsize=8)
  batch, length = points[0]['batch'], points[0]['length']
  axes.set(title=f'Speed, {batch} x {length} tokens a step', xlabel='tokens a second')
  axes.invert_yaxis()
  axes.margins(x=0.2)


def plot_sweep(speed, memory, points: list[dict]) -> None:
  """Draws speed, and peak memory, against the length of the sequences."""
  for name, (*_, colour, line) in IMPLEMENTATIONS.items():
    own = [p for p in points if p['implementation'] == name]
    lengths = [p['length'] for p in own]
    style = dict(color=colour, ls=line, marker='o', ms=3, label=name)
    speed.plot(lengths, [p['tokens_per_second'] for p in own], **style)
    memory.plot(lengths, [(p['peak_mib'] - p['imports_mib']) / 1024 for p in own], **style)
  tokens = points[0]['batch'] * points[0]['length']
  speed.set(title=f'Speed, {tokens:,} tokens a step', ylabel='tokens a second', ylim=(0, None))
  memory.set(title='Peak memory beyond the imports', ylabel='GiB')
  memory.set_yscale('log', base=2)
  memory.yaxis.set_major_formatter('{x:g}')
  ticks = sorted({p['length'] for p in points})
  for axes in (speed, memory):
    axes.set_xscale('log', base=2)
    axes.set_xticks(ticks, [f'{t:,}' for t in ticks])
    axes.set_xlabel('tokens of a sequence')
    axes.grid(alpha=0.3)


def main(
  out: Annotated[pathlib.Path, typer.Option(help='Folder of the results.')] = HERE / 'results',
  cache: Annotated[
    pathlib.Path, typer.Option(help="Folder of PyTorch's environment.")
  ] = pathlib.Path('~/.cache/laser_pax/benchmarks'),
  batch: Annotated[int, typer.Option(help='Sequences of the first shape.')] = 8,
  length: Annotated[int, typer.Option(help='Tokens of a sequence of the first shape.')] = 256,
  rounds: Annotated[int, typer.Option(min=1, help='Turns of each, at the first shape.')] = 9,
  steps: Annotated[int, typer.Option(min=1, help='Steps of a turn, at the first shape.')] = 3,
  lengths: Annotated[
    str, typer.Option(help='Lengths of the sweep; empty for none.')
  ] = '128,256,512,1024,2048,4096',
  tokens: Annotated[int, typer.Option(help='Tokens of a step of the sweep.')] = 4_096,
  sweep_rounds: Annotated[int, typer.Option(min=1, help='Turns of one step, in the sweep.')] = 3,
  keep_pages: Annotated[bool, typer.Option(help='Keep freed memory in all workers.')] = False,
) -> None:
  """Compares train steps of this package, PAX and x-transformers on this machine's CPU.

  Writes cpu.jsonl and cpu.svg.
  """
  peer, environment = peer_python(cache.expanduser()), worker_environment(keep_pages)
  shapes = [(batch, length, rounds, steps)]
  for swept in map(int, filter(None, lengths.split(','))):
    shapes.append((tokens // swept, swept, sweep_rounds, 1))
  out.mkdir(parents=True, exist_ok=True)
  records = [machine(keep_pages)]
  with open(out / 'cpu.jsonl', 'w', buffering=1) as results:
    print(json.dumps(records[0]), file=results)
    for shape in shapes:
      for point in measure(*shape, peer, environment):
        records.append(point)
        print(json.dumps(point), file=results)
        typer.echo(
          f'{point["batch"]:3} x {point["length"]:<5,} {point["implementation"]:29}'
          f'{point["tokens_per_second"]:9,.0f} tokens/s, {point["ratio"]:6.2f} x the time, '
          f'{point["peak_mib"]:6,} MiB'
        )
  plot(records, out / 'cpu.svg')


if __name__ == '__main__':
  typer.run(main)
