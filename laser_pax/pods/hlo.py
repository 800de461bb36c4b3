"""What a compiled program sends between chips, read from the compiler's own text (HLO).

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

_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?[\w.\-]+ = (.*)$')
_SHAPE = re.compile(r'\b([a-z]+\d*\w*)\[([\d,]*)\]')
_OPCODE = re.compile(r'[\]})] ([a-z][\w\-]*)\(')
_CALLED = re.compile(
  r'(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_CHANNEL = re.compile(r'channel_id=(\d+)')
_TRIP_COUNT = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_BOUND = re.compile(r's32\[\](?:\{[^}]*\})? constant\((\d+)\)')


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
  for kind, result, line, times in _collective_lines(text):
    group, spanned = _group(line, slice_of)
    if group == 1 and kind != 'collective-permute':
      continue
    result = _result_bytes(kind, result, group)
    total = totals[kind, group, spanned]
    total[0] += times
    total[1] += times * result
    total[2] += times * _sent(kind, result, group)
  found = [
    Collective(kind, group, count, round(result), round(sent), spanned)
    for (kind, group, spanned), (count, result, sent) in totals.items()
  ]
  return sorted(found, key=lambda c: (-c.sent_bytes, c.kind, c.group))


def _collective_lines(text: str) -> Iterator[tuple[str, str, str, int]]:
  """Yields kind, what stands before its operands, instruction, and number of runs of each."""
  computations, entry = _computations(text)
  times = collections.Counter()
  _count_runs(computations, entry, 1, times)
  fused = _fused(computations)
  channels = set()
  for name, runs in times.most_common():
    for line, opcode in computations[name]:
      kind = opcode.removesuffix('-start')
      if kind not in _KINDS:
        continue
      channel = _CHANNEL.search(line)
      if name in fused and channel:
        if channel[1] in channels:
          continue
        channels.add(channel[1])
      # As the TPU's compiler writes it: an all-reduce, of which each chip keeps its share.
      is_scattered = name.startswith('all-reduce-scatter')
      yield 'reduce-scatter' if is_scattered else kind, line.split('(%')[0], line, runs


def _fused(computations: dict) -> set[str]:
  """Returns the computations that are the inside of a fusion."""
  return {
    callee
    for lines in computations.values()
    for line, opcode in lines
    if opcode == 'fusion'
    for callee in _CALLED.findall(line)
  }


def _computations(text: str) -> tuple[dict[str, list[tuple[str, str]]], str]:
  """Returns the instructions, each with its opcode, of each computation, and the entry's name."""
  computations, entry, current = {}, '', []
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      current = computations[match[1]] = []
      entry = match[1] if line.startswith('ENTRY') else entry
    elif (match := _INSTRUCTION.match(line)) and (opcode := _OPCODE.search(match[1])):
      current.append((match[1], opcode[1]))
  return computations, entry


def _count_runs(computations: dict, name: str, runs: int, times: collections.Counter) -> None:
  """Adds to `times` how often each computation runs when `name` runs `runs` times."""
  times[name] += runs
  for line, opcode in computations[name]:
    loops = _trip_count(computations, line) if opcode == 'while' else 1
    called = _CALLED.findall(line)
    for branches in _BRANCHES.findall(line):
      called += [branch.strip().lstrip('%') for branch in branches.split(',')]
    for callee in called:
      if callee in computations:
        _count_runs(computations, callee, runs * loops, times)


def _trip_count(computations: dict, line: str) -> int:
  """How often a loop runs: as noted by the compiler, or the bound that its condition has."""
  if noted := _TRIP_COUNT.search(line):
    return int(noted[1])
  condition = re.search(r'condition=%?([\w.\-]+)', line)[1]
  bounds = [int(b) for text, _ in computations[condition] for b in _BOUND.findall(text)]
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


def _result_bytes(kind: str, before: str, group: int) -> float:
  """Bytes of a collective's result on one chip, from what stands before its operands."""
  total = sum(array_bytes(dtype, dims) for dtype, dims in _SHAPE.findall(before))
  if kind == 'reduce-scatter' and 'all-reduce' in before:
    return total / group
  if not before.endswith('-start'):
    return total
  # What starts a collective holds its operand as well.
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
