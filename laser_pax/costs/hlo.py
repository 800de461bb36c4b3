"""The compiler's text of a program (HLO): its instructions, and its collectives.

The text has the body of a loop once; here the body counts as often as it runs. A collective that
overlaps products appears in each fusion that it spans; here it counts once.
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
    name: Name of the result.
    shape: Shape of the result with dtype and layout, such as 'f32[8,128]{1,0}', or a tuple of them.
    opcode: Operation, such as 'fusion' or 'all-reduce-start'.
    rest: Text after the opcode's opening bracket: operands, then attributes.
    is_root: Whether its computation returns the result.
  """

  name: str
  shape: str
  opcode: str
  rest: str
  is_root: bool

  @property
  def operands(self) -> tuple[str, ...]:
    """Names of the operands."""
    return tuple(re.findall(r'%([\w.\-]+)', self.rest.split('), ')[0]))


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program.

  Attributes:
    computations: Instructions of each computation, by the computation's name.
    entry: Name of the computation that the program starts with.
  """

  computations: dict[str, list[Instruction]]
  entry: str


def parse(text: str) -> Program:
  """Parses the text of a compiled program.

  Args:
    text: Result of `compiled.as_text()`.
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
  """The collectives of one step that have the same kind, group size and number of slices.

  R is the bytes of a chip's result, and n the number of chips in a group. A chip sends at least:

      R (n - 1) / n     in an all-gather or an all-to-all
      2 R (n - 1) / n   in an all-reduce
      R (n - 1)         in a reduce-scatter
      R                 in a permutation

  Attributes:
    kind: Kind of the collectives, such as 'all-reduce'.
    group: n, the number of chips in a group.
    count: Number of collectives that run.
    result_bytes: R, summed over the collectives.
    sent_bytes: Bytes that one chip sends, summed over the collectives.
    slices: Number of slices that hold the chips of one group.
  """

  kind: str
  group: int
  count: int
  result_bytes: int
  sent_bytes: int
  slices: int

  @property
  def sent_between_slices(self) -> float:
    """Bytes that a chip sends to other slices.

    Each slice first reduces or gathers within itself. Then each chip exchanges its share of the
    slice's result with other slices, by the same formula.
    """
    if self.slices == 1:
      return 0.0
    within = self.group // self.slices
    whole = self.sent_bytes / _sent(self.kind, 1, self.group)
    return whole / within * _sent(self.kind, 1, self.slices)


def collectives(
  text: str, chips: int, chip_slices: Sequence[int] | None = None
) -> list[Collective]:
  """Counts the collectives of a compiled program.

  Args:
    text: Result of `compiled.as_text()`.
    chips: Number of chips that the program runs on.
    chip_slices: Slice of each chip, in the order of the program's mesh. None stands for one slice.

  Returns:
    One entry for each kind, group size and number of slices. Those that send most come first.
  """
  chip_slices = np.zeros(chips, int) if chip_slices is None else np.asarray(chip_slices)
  totals = collections.defaultdict(lambda: [0, 0, 0])
  for kind, instruction, runs in _collective_runs(parse(text)):
    group, slices = _group_size(instruction.rest, chip_slices)
    if group == 1 and kind != 'collective-permute':
      continue
    result = _result_bytes(kind, instruction, group)
    total = totals[kind, group, slices]
    total[0] += runs
    total[1] += runs * result
    total[2] += runs * _sent(kind, result, group)
  summed = [
    Collective(kind, group, count, round(result), round(sent), slices)
    for (kind, group, slices), (count, result, sent) in totals.items()
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
      # The TPU's compiler writes a reduce-scatter as an all-reduce in a computation of this name.
      is_scattered = name.startswith('all-reduce-scatter')
      yield 'reduce-scatter' if is_scattered else kind, instruction, times


def _fused(computations: dict[str, list[Instruction]]) -> set[str]:
  """Returns the names of the computations that fusions call."""
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
  """Adds to `runs` how often each computation runs if `name` runs `times` times."""
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
  """Returns how often a loop runs: the compiler's own number, else its condition's bound."""
  if trip_count := _TRIP_COUNT.search(line):
    return int(trip_count[1])
  condition = re.search(r'condition=%?([\w.\-]+)', line)[1]
  bounds = [
    int(i.rest.split(')')[0])
    for i in computations[condition]
    if i.opcode == 'constant' and i.shape.startswith('s32[]')
  ]
  return max(bounds, default=1)


def _group_size(line: str, chip_slices: np.ndarray) -> tuple[int, int]:
  """Returns the number of chips in one group, and the number of slices that hold them."""
  ids = np.arange(len(chip_slices))
  if id_list := re.search(r'(?:replica_groups|source_target_pairs)=\{\{([\d,]*)\}', line):
    ids = np.array([int(i) for i in id_list[1].split(',')])
  elif iota := re.search(r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', line):
    ids = _first_group(iota)
  return len(ids), len(set(chip_slices[ids]))


def _first_group(iota: re.Match) -> np.ndarray:
  """Returns the first group of groups written as a reshaped and transposed range."""
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
  # The shape of such a start is (operand, result). An all-gather's operand is 1/group of its
  # result, a permutation's is as large. The start of an all-reduce has its result alone.
  if kind == 'all-gather':
    return total * group / (group + 1)
  return total / 2 if kind == 'collective-permute' else total


def array_bytes(dtype: str, dims: str) -> int:
  """Returns the bytes of an array.

  Args:
    dtype: Type in the program's text, such as 'bf16'.
    dims: Sizes in the program's text, such as '8,128'.
  """
  count = 1
  for n in dims.split(','):
    count *= int(n) if n else 1
  bits = _BITS.get(dtype) or int(re.sub(r'^\D+', '', dtype) or 0)
  return count * bits // 8


def _sent(kind: str, result: float, n: int) -> float:
  """Returns the least bytes that a chip sends (see `Collective`), for R `result` and n `n`."""
  if kind == 'collective-permute':
    return result
  if kind == 'reduce-scatter':
    return result * (n - 1)
  return (2 if kind == 'all-reduce' else 1) * result * (n - 1) / n
