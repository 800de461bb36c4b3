"""The compiler's own text of a program (HLO): its instructions, and what chips send each other.

The body of a loop stands in the text once; here it counts as often as it runs. A collective that
goes on under products stands in each fusion that it passes through; here it counts once.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

_BITS = {'pred': 8, 's4': 4, 'u4': 4, 'bf16': 16, 'f8e4m3fn': 8, 'f8e5m2': 8, 'token': 0}
_KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*?[\]})]) ([a-z][\w\-]*)\((.*)$')
_SHAPE = re.compile(r'\b([a-z]+\d*\w*)\[([\d,]*)\]')
_CALLED = re.compile(
  r'(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_CHANNEL = re.compile(r'channel_id=(\d+)')
_TRIP_COUNT = re.compile(r'known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a program.

  Attributes:
    name: Of its result.
    shape: Of its result, with dtypes and layouts: 'f32[8,128]{1,0}', or a tuple of them.
    opcode: 'fusion', 'all-reduce-start' and so on.
    rest: What follows the opcode's bracket: operands, then attributes.
    is_root: Whether it is what its computation returns.
  """

  name: str
  shape: str
  opcode: str
  rest: str
  is_root: bool

  @property
  def operands(self) -> tuple[str, ...]:
    """The names of its operands."""
    return tuple(re.findall(r'%([\w.\-]+)', self.rest.split('), ')[0]))


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program.

  Attributes:
    computations: The instructions of each, by name.
    entry: The name of the one that runs.
  """

  computations: dict[str, list[Instruction]]
  entry: str


def parse(text: str) -> Program:
  """Reads a program.

  Args:
    text: `compiled.as_text()`.
  """
  computations, entry, current = {}, '', []
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      current = computations[match[2]] = []
      entry = match[2] if match[1] else entry
    elif match := _INSTRUCTION.match(line):
      root, name, shape, opcode, rest = match.groups()
      current.append(Instruction(name, shape, opcode, rest, bool(root)))
  return Program(computations, entry)


@dataclasses.dataclass(frozen=True)
class Collective:
  """The collectives of one kind and size of group in one step.

  With R the bytes of a chip's result and n the chips of a group, a chip sends at least
  R (n-1)/n in an all-gather, 2R (n-1)/n in an all-reduce, R (n-1) in a reduce-scatter,
  R (n-1)/n in an all-to-all, and R in a permutation.

  Attributes:
    kind: 'all-reduce' and so on.
    group: n.
    count: How many run.
    result_bytes: R, summed over them.
    sent_bytes: What one chip sends, summed over them.
    slices: That the chips of one group lie in.
  """

  kind: str
  group: int
  count: int
  result_bytes: int
  sent_bytes: int
  slices: int

  @property
  def sent_between_slices(self) -> float:
    """Bytes that a chip sends to other slices, where each slice first reduces or gathers its own.

    The same formula over the slices, for the chip's share of the result in its own slice.
    """
    if self.slices == 1:
      return 0.0
    within = self.group // self.slices
    whole = self.sent_bytes / _sent(self.kind, 1, self.group)
    return whole / within * _sent(self.kind, 1, self.slices)


def collectives(text: str, chips: int, slice_of: Sequence[int] | None = None) -> list[Collective]:
  """Counts the collectives of a compiled program.

  Args:
    text: `compiled.as_text()`.
    chips: That the program runs on.
    slice_of: The slice of each of them, in the order of the program's mesh; None: there is one.

  Returns:
    One entry a kind, size of group and number of slices, the greatest sender first.
  """
  slice_of = np.zeros(chips, int) if slice_of is None else np.asarray(slice_of)
  totals = collections.defaultdict(lambda: [0, 0, 0])
  for kind, instruction, runs in _collective_runs(parse(text)):
    group, spanned = _group(instruction.rest, slice_of)
    if group == 1 and kind != 'collective-permute':
      continue
    result = _result_bytes(kind, instruction, group)
    total = totals[kind, group, spanned]
    total[0] += runs
    total[1] += runs * result
    total[2] += runs * _sent(kind, result, group)
  summed = [
    Collective(kind, group, count, round(result), round(sent), spanned)
    for (kind, group, spanned), (count, result, sent) in totals.items()
  ]
  return sorted(summed, key=lambda c: (-c.sent_bytes, c.kind, c.group))


def _collective_runs(program: Program) -> Iterator[tuple[str, Instruction, int]]:
  """Yields kind, instruction and number of runs of each collective."""
  runs = collections.Counter()
  _count_runs(program.computations, program.entry, 1, runs)
  fused = _fused(program.computations)
  channels = set()
  for name, times in runs.most_common():
    for instruction in program.computations[name]:
      kind = instruction.opcode.removesuffix('-start')
      if kind not in _KINDS:
        continue
      channel = _CHANNEL.search(instruction.rest)
      if name in fused and channel:
        if channel[1] in channels:
          continue
        channels.add(channel[1])
      # As the TPU's compiler writes it: an all-reduce, of which each chip keeps its share.
      is_scattered = name.startswith('all-reduce-scatter')
      yield 'reduce-scatter' if is_scattered else kind, instruction, times


def _fused(computations: dict[str, list[Instruction]]) -> set[str]:
  """Returns the computations that are the inside of a fusion."""
  return {
    callee
    for instructions in computations.values()
    for i in instructions
    if i.opcode == 'fusion'
    for callee in _CALLED.findall(i.rest)
  }


def _count_runs(
  computations: dict[str, list[Instruction]], name: str, times: int, runs: collections.Counter
) -> None:
  """Adds to `runs` how often each computation runs when `name` runs so many times."""
  runs[name] += times
  for i in computations[name]:
    loops = _trip_count(computations, i.rest) if i.opcode == 'while' else 1
    called = _CALLED.findall(i.rest)
    for branches in _BRANCHES.findall(i.rest):
      called += [branch.strip().lstrip('%') for branch in branches.split(',')]
    for callee in called:
      if callee in computations:
        _count_runs(computations, callee, times * loops, runs)


def _trip_count(computations: dict[str, list[Instruction]], line: str) -> int:
  """Returns how often a loop runs: as the compiler notes it, or its condition's bound."""
  if noted := _TRIP_COUNT.search(line):
    return int(noted[1])
  condition = re.search(r'condition=%?([\w.\-]+)', line)[1]
  bounds = [
    int(i.rest.split(')')[0])
    for i in computations[condition]
    if i.opcode == 'constant' and i.shape.startswith('s32[]')
  ]
  return max(bounds, default=1)


def _group(line: str, slice_of: np.ndarray) -> tuple[int, int]:
  """Chips of one group, and slices that they lie in."""
  ids = np.arange(len(slice_of))
  if listed := re.search(r'(?:replica_groups|source_target_pairs)=\{\{([\d,]*)\}', line):
    ids = np.array([int(i) for i in listed[1].split(',')])
  elif iota := re.search(r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', line):
    ids = _first_group(iota)
  return len(ids), len(set(slice_of[ids]))


def _first_group(iota: re.Match) -> np.ndarray:
  """The first of groups that are written as a range, reshaped and transposed."""
  dims = [int(n) for n in iota[3].split(',')]
  ids = np.arange(np.prod(dims)).reshape(dims)
  if iota[4]:
    ids = ids.transpose([int(n) for n in iota[4].split(',')])
  return ids.reshape(int(iota[1]), int(iota[2]))[0]


def _result_bytes(kind: str, instruction: Instruction, group: int) -> float:
  """Returns the bytes of a collective's result on one chip."""
  total = sum(array_bytes(dtype, dims) for dtype, dims in _SHAPE.findall(instruction.shape))
  if kind == 'reduce-scatter' and 'all-reduce' in instruction.opcode:
    return total / group
  if not instruction.opcode.endswith('-start'):
    return total
  # The shape of what starts a collective has its operand too.
  if kind == 'all-gather':
    return total * group / (group + 1)
  return total / 2 if kind == 'collective-permute' else total


def array_bytes(dtype: str, dims: str) -> int:
  """Bytes of an array, from its type and its sizes as the text has them."""
  count = 1
  for n in dims.split(','):
    count *= int(n) if n else 1
  bits = _BITS.get(dtype) or int(re.sub(r'^\D+', '', dtype) or 0)
  return count * bits // 8


def _sent(kind: str, result: float, n: int) -> float:
  """Bytes that a chip must send for a result of `result` bytes."""
  if kind == 'collective-permute':
    return result
  if kind == 'reduce-scatter':
    return result * (n - 1)
  return (2 if kind == 'all-reduce' else 1) * result * (n - 1) / n
