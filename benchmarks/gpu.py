"""LASER beside standard attention on one GPU: time, share of the peak rate, memory, error.

  PYTHONPATH=. python benchmarks/gpu.py [--out gpu.jsonl] [--minutes 4] [--profile DIR]

It needs jax with CUDA, numpy and this checkout. Each part writes one line of JSON when it is
finished, and is skipped when the command is given again; the parts that matter most come first.
After --minutes no part is begun. A table of all finished parts ends the output.

A part is an implementation, a head size, a length, and forward alone or forward with backward. It
times standard attention and LASER around it, in turns: the median of some rounds. Attention is
causal, in bfloat16. Packed rows hold four documents. FLOPs count the causal half: two products
forward, five backward; packed rows count as whole ones. Memory is what the compiled program needs
beside its arguments, and the most that the device has held since the process began.

Errors are relative root mean squares, of the output and of the three gradients, against float64:
one head of 512 keys. Their unit is that of standard attention, not zero: bfloat16 rounds.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from laser_pax.costs import timing
from laser_pax.costs.rounds import in_turns
from laser_pax.ops import choice, fused_attention, laser
from laser_pax.ops.fused import case_of

FORMS = ('standard', 'exact', 'paper')
CAP = 50.0
SPREADS = (0.01, 1.0, 30.0)  # Standard deviations of the values.
DOCUMENTS = 4
ERROR_LENGTH = 512
ROUND_SECONDS = 0.03


@dataclasses.dataclass(frozen=True)
class Implementation:
  """A way to compute attention.

  Attributes:
    kernel: As `fused_attention` takes it.
    logit_cap: PAX's cap, or none.
    is_packed: Whether rows hold several documents.
  """

  kernel: choice.Kernel
  logit_cap: float | None
  is_packed: bool

  def __str__(self) -> str:
    words = [self.kernel, *['capped'] * bool(self.logit_cap), *['packed'] * self.is_packed]
    return ' '.join(words)

  def serves(self, query: jax.Array, length: int) -> bool:
    """Whether it is this kernel that `fused_attention` would call here."""
    case = case_of(query, query, (length, length), self.is_packed, self.logit_cap)
    return choice.choose(case, self.kernel).kernel == self.kernel

  def form(self, name: str) -> Callable[..., jax.Array]:
    """Returns standard attention, or LASER: a function of query, key, value and segment ids."""
    attention = functools.partial(
      fused_attention, is_causal=True, logit_cap=self.logit_cap, kernel=self.kernel
    )
    return attention if name == 'standard' else laser(attention, numerics=name)


KERNELS = (
  Implementation('cudnn', None, False),
  Implementation('triton', CAP, True),
  Implementation('triton', None, False),
  Implementation('cudnn', None, True),
)
WITHOUT_KERNEL = (Implementation('blocks', CAP, True),)


@dataclasses.dataclass(frozen=True)
class Part:
  """What one line of the results is about.

  Attributes:
    what: 'error', 'forward', or 'both': forward and backward.
    implementation: How attention is computed.
    head: Size of a head.
    length: Positions of a row.
  """

  what: str
  implementation: Implementation
  head: int
  length: int

  def __str__(self) -> str:
    return f'{self.what}, {self.implementation}, head {self.head}, length {self.length}'


def parts(heads: list[int], lengths: list[int], error_length: int) -> Iterator[Part]:
  """Yields all parts, those first that matter most: errors, then training, kernels first."""
  for head, implementation in itertools.product(heads, KERNELS + WITHOUT_KERNEL):
    yield Part('error', implementation, head, error_length)
  for what, group in itertools.product(('both', 'forward'), (KERNELS, WITHOUT_KERNEL)):
    for length, head, implementation in itertools.product(lengths, heads, group):
      yield Part(what, implementation, head, length)


def segment_ids(batch: int, length: int) -> jax.Array:
  """Returns [B, T]: documents of different lengths."""
  ends = np.cumsum(np.arange(1, DOCUMENTS + 1)) / np.arange(1, DOCUMENTS + 1).sum()
  ids = np.searchsorted(ends, np.arange(length) / length, side='right')
  return jnp.broadcast_to(jnp.asarray(ids, jnp.int32), (batch, length))


def compiled(part: Part, form: str, arrays: tuple) -> jax.stages.Compiled:
  """Returns the program of a form: the output, or the output with three gradients."""
  attention = part.implementation.form(form)

  def forward(query, key, value, cotangent, ids):
    return attention(query, key, value, ids)

  function = forward if part.what == 'forward' else timing.with_gradients(attention)
  return jax.jit(function).lower(*arrays).compile()


def measure(part: Part, tokens: int, num_heads: int, rounds: int, profile: str | None) -> dict:
  """Times the forms of a part in turns."""
  batch = max(1, tokens // part.length)
  shape = batch, part.length, num_heads, part.head
  keys = jax.random.split(jax.random.PRNGKey(0), 4)
  query, key, value, cotangent = (jax.random.normal(x, shape, jnp.bfloat16) for x in keys)
  ids = segment_ids(batch, part.length) if part.implementation.is_packed else None
  arrays = (query * part.head**-0.5, key, value, cotangent, ids)
  programs = {form: compiled(part, form, arrays) for form in FORMS}
  calls = {form: functools.partial(program, *arrays) for form, program in programs.items()}
  turns = {
    form: functools.partial(timing.seconds, call, timing.calls_of_a_turn(call, ROUND_SECONDS))
    for form, call in calls.items()
  }
  taken = in_turns(turns, rounds)
  if profile:
    for form, call in calls.items():
      with jax.profiler.trace(f'{profile}/{part}/{form}'):
        timing.seconds(call, 3)
  medians = {form: statistics.median(x) for form, x in taken.items()}
  flops = (2 if part.what == 'forward' else 7) * batch * num_heads * part.length**2 * part.head
  return {
    'batch': batch,
    'heads': num_heads,
    'ms': {form: 1e3 * x for form, x in medians.items()},
    'ratio': {form: medians[form] / medians['standard'] for form in FORMS[1:]},
    'tflops': {form: flops / x / 1e12 for form, x in medians.items()},
    'program_mib': {form: _program_mib(program) for form, program in programs.items()},
    'device_peak_mib': _device_peak_mib(),
    'rounds_ms': {form: [1e3 * x for x in seconds] for form, seconds in taken.items()},
  }


def _program_mib(program: jax.stages.Compiled) -> float | None:
  memory = program.memory_analysis()
  return memory and (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**20


def _device_peak_mib() -> float | None:
  peak = timing.peak_bytes(jax.devices()[:1])
  return peak and peak / 2**20


def errors(part: Part) -> dict:
  """Compares output and gradients of a part with float64, for each form and spread of values."""
  found, programs = {}, {}
  ids = segment_ids(1, part.length) if part.implementation.is_packed else None
  seen = np.tril(np.ones((part.length, part.length), bool))
  if ids is not None:
    seen &= np.asarray(ids[0])[:, None] == np.asarray(ids[0])[None, :]
  for form, spread in itertools.product(FORMS, SPREADS):
    rng = np.random.default_rng(0)
    shape = 1, part.length, 1, part.head
    inputs = [
      jnp.asarray(rng.normal(size=shape) * factor, jnp.bfloat16)
      for factor in (part.head**-0.5, 1.0, spread, 1.0)
    ]
    if form not in programs:
      programs[form] = compiled(part, form, (*inputs, ids))
    ours = programs[form](*inputs, ids)
    doubles = [np.asarray(x, np.float64)[0, :, 0] for x in inputs]
    exact = reference(*doubles, seen, part.implementation.logit_cap, form != 'standard')
    names = ('output', 'query', 'key', 'value')
    each = [_error(np.asarray(x)[0, :, 0], y) for x, y in zip(ours, exact, strict=True)]
    found[f'{form}, values {spread:g}'] = dict(zip(names, each, strict=True))
  return {'errors': found}


def _error(x: np.ndarray, exact: np.ndarray) -> float | None:
  """Returns a relative root mean square; None if it is no number."""
  error = np.sqrt(np.mean((x.astype(np.float64) - exact) ** 2) / np.mean(exact**2))
  return float(error) if np.isfinite(error) else None


def reference(query, key, value, cotangent, seen, cap: float | None, is_laser: bool) -> tuple:
  """Returns output and gradients of one head [T, H] in float64, by the plain formulas."""
  logits = query @ key.T
  capped = cap * np.tanh(logits / cap) if cap else logits
  capped = np.where(seen, capped, -np.inf)
  p = np.exp(capped - capped.max(1, keepdims=True))
  p /= p.sum(1, keepdims=True)
  if is_laser:
    top = value.max(0)
    exponentials = np.exp(value - top)
    mixture = p @ exponentials
    output, share = top + np.log(mixture), cotangent / mixture
    d_p, d_value = share @ exponentials.T, exponentials * (p.T @ share)
  else:
    output, d_p, d_value = p @ value, cotangent @ value.T, p.T @ cotangent
  d_logits = p * (d_p - (p * d_p).sum(1, keepdims=True))
  if cap:
    d_logits *= 1 - np.tanh(logits / cap) ** 2
  return output, d_logits @ key, d_logits.T @ query, d_value


def run(part: Part, options: argparse.Namespace) -> dict:
  """Returns the line of a part. What fails is a result too: its first words are kept."""
  probe = jax.ShapeDtypeStruct((1, part.length, 1, part.head), jnp.bfloat16)
  if not part.implementation.serves(probe, part.length):
    return {'does_not_serve': True}
  try:
    if part.what == 'error':
      return errors(part)
    return measure(part, options.tokens, options.heads, options.rounds, options.profile)
  except Exception as e:  # A kernel that a GPU refuses must not hide the others.
    return {'failed': f'{type(e).__name__}: {e}'[:300]}


def table(rows: list[dict]) -> str:
  """Returns all finished parts as two tables in Markdown."""
  lines = [f'## {rows[0]["device"]}, jax {rows[0]["jax"]}'] if rows else []
  if any(row['platform'] == 'cpu' for row in rows):
    lines += ['', 'THESE FIGURES ARE OF A CPU. They show that the benchmark runs, and no more.']
  lines += [
    '',
    '| pass | attention | head | length | standard, ms | of peak | exact | paper '
    '| program, MiB: standard, exact, paper |',
    '|---|---|---|---|---|---|---|---|---|',
  ]
  peak = rows and timing.gpu_peak(rows[0]['device'])
  for row in rows:
    start = f'| {row["what"]} | {row["attention"]} | {row["head"]} | {row["length"]:,} |'
    if 'failed' in row:
      lines.append(f'{start} failed: {row["failed"].splitlines()[0][:80]} | | | | |')
    elif 'ms' in row:
      share = f'{1e12 * row["tflops"]["standard"] / peak:.0%}' if peak else '?'
      memory = ', '.join('?' if x is None else f'{x:,.0f}' for x in row['program_mib'].values())
      ratios = ' | '.join(f'{row["ratio"][form]:.3f}' for form in FORMS[1:])
      lines.append(f'{start} {row["ms"]["standard"]:.3f} | {share} | {ratios} | {memory} |')
  lines += ['', '| attention | head | form, spread | output | query | key | value |']
  lines += ['|---|---|---|---|---|---|---|']
  for row in rows:
    for case, found in row.get('errors', {}).items():
      cells = ' | '.join('not finite' if x is None else f'{x:.1e}' for x in found.values())
      lines.append(f'| {row["attention"]} | {row["head"]} | {case} | {cells} |')
  return '\n'.join(lines)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('gpu.jsonl'))
  parser.add_argument('--minutes', type=float, default=4.0, help='No part is begun after these.')
  parser.add_argument('--head-sizes', default='128,64')
  parser.add_argument('--lengths', default='4096,16384,1024', help='The first come first.')
  parser.add_argument('--tokens', type=int, default=32_768, help='Of a call: rows times length.')
  parser.add_argument('--heads', type=int, default=16)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--error-length', type=int, default=ERROR_LENGTH)
  parser.add_argument('--profile', help="Folder for jax's traces of each timed form.")
  return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
  """Runs the parts that are not finished yet, and prints the table."""
  start, options, device = time.monotonic(), arguments(argv), jax.devices()[0]
  about = {'device': device.device_kind, 'platform': device.platform, 'jax': jax.__version__}
  finished = options.out.read_text().splitlines() if options.out.exists() else []
  rows = [row for row in map(json.loads, finished) if about.items() <= row.items()]
  names = {row['part'] for row in rows}
  sizes = ([int(x) for x in text.split(',')] for text in (options.head_sizes, options.lengths))
  waiting = [x for x in parts(*sizes, options.error_length) if str(x) not in names]
  while waiting and time.monotonic() - start < 60 * options.minutes:
    part = waiting.pop(0)
    sides = {'attention': str(part.implementation), 'head': part.head, 'length': part.length}
    row = {'part': str(part), 'what': part.what, **sides, **about, **run(part, options)}
    rows.append(row)
    with options.out.open('a') as file:
      file.write(json.dumps(row) + '\n')
    print(f'{time.monotonic() - start:.0f} s: {part}', flush=True)
  print(table(rows))
  if waiting:
    print(f'\n{len(waiting)} parts are left; the first: {waiting[0]}. Give the command again.')


if __name__ == '__main__':
  main()
