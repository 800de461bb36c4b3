"""What a compiled program sends between chips, read from the compiler's own text (HLO).

The body of a loop stands in the text once; here it counts as often as it runs.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator

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


def collectives(text: str, chips: int, chips_per_slice: int | None = None) -> list[Collective]:
  """Counts the collectives of a compiled program.

  Args:
    text: `compiled.as_text()`.
    chips: That the program runs on.
    chips_per_slice: Of one slice; None: all.

  Returns:
    One entry a kind, size of group and number of slices, the greatest sender first.
  """
  totals = collections.defaultdict(lambda: [0, 0, 0])
  for kind, line, times in _collective_lines(text):
    group, spanned = _group(line, chips, chips_per_slice or chips)
    if group == 1 and kind != 'collective-permute':
      continue
    total = totals[kind, group, spanned]
    result = _result_bytes(kind, line, group)
    total[0] += times
    total[1] += times * result
    total[2] += times * _sent(kind, result, group)
  found = [
    Collective(kind, group, count, result, round(sent), spanned)
    for (kind, group, spanned), (count, result, sent) in totals.items()
  ]
  return sorted(found, key=lambda c: (-c.sent_bytes, c.kind, c.group))


def _collective_lines(text: str) -> Iterator[tuple[str, str, int]]:
  """Yields kind, instruction and number of runs of each collective."""
  computations, entry = _computations(text)
  times = collections.Counter()
  _count_runs(computations, entry, 1, times)
  for name, runs in times.items():
    for line, opcode in computations[name]:
      kind = opcode.removesuffix('-start')
      if kind in _KINDS:
        yield kind, line, runs


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


def _group(line: str, chips: int, chips_per_slice: int) -> tuple[int, int]:
  """Chips of one group, and slices that they lie in."""
  if listed := re.search(r'(?:replica_groups|source_target_pairs)=\{\{([\d,]*)\}', line):
    ids = [int(i) for i in listed[1].split(',')]
    return len(ids), len({i // chips_per_slice for i in ids})
  if iota := re.search(r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', line):
    return int(iota[2]), _iota_slices(iota, chips_per_slice)
  return chips, chips // chips_per_slice


def _iota_slices(iota: re.Match, chips_per_slice: int) -> int:
  """Slices of a group, where groups are written as a range, reshaped and transposed."""
  dims = [int(n) for n in iota[3].split(',')]
  ids = np.arange(np.prod(dims)).reshape(dims)
  if iota[4]:
    ids = ids.transpose([int(n) for n in iota[4].split(',')])
  group = ids.reshape(int(iota[1]), int(iota[2]))[0]
  return len(set(group // chips_per_slice))


def _result_bytes(kind: str, line: str, group: int) -> int:
  """Bytes of a collective's result on one chip."""
  types, opcode = line.split(f'{kind}', 1)[0], line.split(f'{kind}', 1)[1]
  total = sum(_bytes(dtype, dims) for dtype, dims in _SHAPE.findall(types))
  if not opcode.startswith('-start'):
    return total
  # What starts a collective holds its operand as well.
  if kind == 'all-gather':
    return round(total * group / (group + 1))
  return total // 2 if kind == 'collective-permute' else total


def _bytes(dtype: str, dims: str) -> int:
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
