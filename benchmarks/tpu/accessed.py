"""Counts what LASER's train step moves through a chip's memory beside its twin's, by the compiler.

`python -m benchmarks.tpu.accessed` compiles both with few layers. Layers are unrolled, because the
body of a scan counts once. The difference of two compilations is a layer's; docs/fused.md shows
the figures for all layers.
"""

import dataclasses
import json
import re
from collections.abc import Iterator

import jax

from benchmarks import page
from laser_pax import configs
from laser_pax.costs import compiler, hlo, libtpu

PAIR = ('C4Standard2B', 'C4Laser2B')
POD = 'v5p-256chips'
LAYERS = (2, 4)

_ARRAY = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?')
# Instructions that only name arrays; and loops, which do not count.
_UNCOUNTED_OPCODES = (
  'parameter',
  'constant',
  'tuple',
  'get-tuple-element',
  'bitcast',
  'while',
  'opt-barrier',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accessed:
  """Bytes of one chip in a train step.

  Attributes:
    experiment: Its name.
    layers: How many it was compiled with, unrolled, laid out as the whole model.
    xla_bytes: XLA's "bytes accessed". It counts the body of a loop once, run or not. It counts a
      copy from HBM to a chip's fast memory as an access of both.
    hbm_bytes: As the function `hbm_bytes` counts.
    temporary_bytes: The step's memory beside its state.
  """

  experiment: str
  layers: int
  xla_bytes: float
  hbm_bytes: int
  temporary_bytes: int


def hbm_bytes(text: str) -> int:
  """Counts what a compiled program's entry reads from HBM and writes to it.

  Each instruction counts its operands and results. Those that the compiler has put into fast memory
  (VMEM, `S(1)` in the text) do not count: a copy brings them there, and that copy counts. Where a
  fusion only slices an array, the slices count. Where it updates an array in place, the update
  counts. A kernel counts its inputs once. Loops do not count. They are LASER's levels, which as a
  rule do not run, and the loss's chunks, which its twin has too.

  Args:
    text: `compiled.as_text()`.
  """
  program = hlo.parse(text)
  instructions = program.computations[program.entry]
  shapes = {i.name: i.shape for i in instructions}
  total = 0
  for i in instructions:
    if i.opcode in _UNCOUNTED_OPCODES or i.opcode.endswith('-done'):
      continue
    if i.opcode == 'copy-start':  # Its result is a tuple: target, source and a flag.
      total += sum(_sizes(i.shape)[:2])
    elif not i.opcode.endswith('-start'):
      called = re.search(r'calls=%?([\w.\-]+)', i.rest)
      inside = program.computations[called[1]] if i.opcode == 'fusion' and called else None
      total += _written(i.shape, inside)
      total += sum(_read(shapes.get(x, ''), n, inside) for n, x in enumerate(i.operands))
  return total


def _sizes(shape: str) -> list[int]:
  """Returns the bytes of each array of a shape; 0 for an array in fast memory."""
  return [
    0 if 'S(1)' in layout else hlo.array_bytes(dtype, dims)
    for dtype, dims, layout in _ARRAY.findall(shape)
  ]


def _users(inside: list[hlo.Instruction], name: str) -> Iterator[tuple[hlo.Instruction, str]]:
  """Yields the instructions that use a name, through bitcasts, and the name that they use."""
  for i in inside:
    if name in i.operands:
      if i.opcode == 'bitcast':
        yield from _users(inside, i.name)
      else:
        yield i, name


def _read(shape: str, number: int, inside: list[hlo.Instruction] | None) -> int:
  """Returns the bytes that an instruction reads of its operand."""
  whole = sum(_sizes(shape))
  if not inside or not whole:
    return whole
  parameter = next(i for i in inside if i.opcode == 'parameter' and i.rest.startswith(f'{number})'))
  users = list(_users(inside, parameter.name))
  if all(i.opcode == 'dynamic-update-slice' and i.operands[0] == name for i, name in users):
    return 0
  if all(i.opcode in ('slice', 'dynamic-slice') for i, _ in users):
    return min(whole, sum(sum(_sizes(i.shape)) for i, _ in users))
  return whole


def _written(shape: str, inside: list[hlo.Instruction] | None) -> int:
  """Returns the bytes that an instruction writes of its results."""
  sizes = _sizes(shape)
  if not inside:
    return sum(sizes)
  instructions = {i.name: i for i in inside}
  root = next(i for i in inside if i.is_root)
  outputs = [instructions[x] for x in root.operands] if root.opcode == 'tuple' else [root]
  total = 0
  for size, output in zip(sizes, outputs, strict=False):
    while output.opcode == 'bitcast':
      output = instructions[output.operands[0]]
    updated = output.opcode == 'dynamic-update-slice'
    total += min(size, sum(_sizes(instructions[output.operands[1]].shape))) if updated else size
  return total


def accessed(name: str, layers: int) -> Accessed:
  """Compiles an experiment with few layers, unrolled. `libtpu.use` must have been called.

  Args:
    name: An experiment of laser_pax.configs.
    layers: How many layers.
  """
  experiment_cls = getattr(configs, name)
  short = type(name, (experiment_cls,), {'NUM_LAYERS': layers, 'USE_REPEATED_LAYER': False})
  experiment = short().on(POD)
  experiment.use_layout(experiment_cls().on(POD).layout())
  step = compiler.compile_step(compiler.trace_train(experiment, experiment.pod()))
  return Accessed(
    experiment=name,
    layers=layers,
    xla_bytes=step.xla_bytes,
    hbm_bytes=hbm_bytes(step.text),
    temporary_bytes=step.temporary_bytes,
  )


def main() -> None:
  """Writes docs/fused.md's table of the pair, and docs/results/accessed.jsonl."""
  libtpu.use()
  measured = []
  with open(page.RESULTS / 'accessed.jsonl', 'w') as kept:
    for name in PAIR:
      for layers in LAYERS:
        measured.append(accessed(name, layers))
        kept.write(json.dumps(dataclasses.asdict(measured[-1])) + '\n')
        print(measured[-1], flush=True)
        jax.clear_caches()
  page.replace('accessed', table([dataclasses.asdict(x) for x in measured]), page.DOCS / 'fused.md')


def extrapolate(measured: list[dict], experiment: str, field: str, layers: int) -> float:
  """Extends the figures of the compiled experiments, by a straight line, to a number of layers."""
  few, more = (
    next(r[field] for r in measured if (r['experiment'], r['layers']) == (experiment, n))
    for n in LAYERS
  )
  return few + (more - few) / (LAYERS[1] - LAYERS[0]) * (layers - LAYERS[0])


def table(measured: list[dict]) -> str:
  """Returns the table: GiB of both, and their ratio, with few layers and with all."""
  names = {'hbm_bytes': 'through HBM', 'xla_bytes': "XLA's bytes accessed"}
  all_layers = getattr(configs, PAIR[0]).NUM_LAYERS
  rows = []
  for field, title in names.items():
    for layers in (*LAYERS, all_layers):
      standard, laser = (extrapolate(measured, name, field, layers) for name in PAIR)
      cells = f'{standard / 2**30:.3f}', f'{laser / 2**30:.3f}', f'{laser / standard:.4f}'
      rows.append([title, str(layers), *cells])
  return page.rows(['GiB a chip and step', 'layers', *(f'`{x}`' for x in PAIR), 'ratio'], rows)


if __name__ == '__main__':
  main()
