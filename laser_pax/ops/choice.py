"""Which attention serves where, and why: `fused_attention` asks `choose`, and so does `show`.

`choose` is pure. It knows sizes and types, not devices: a statement about a GPU needs no GPU.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp

Kernel = Literal['splash', 'cudnn', 'triton', 'blocks']

NAMES: Mapping[Kernel, str] = {
  'splash': "jax's splash attention",
  'cudnn': "cuDNN's attention",
  'triton': "this package's Triton kernel",
  'blocks': 'plain jax by blocks of queries',
}
# What each setting is called by those who call `fused_attention`.
SETTINGS = {
  'logit_cap': 'logit_cap=None',
  'dtype': 'queries in bfloat16',
  'kernel': "kernel='triton'",
}
# No kernel is here that has never run on the platform: `kernel` asks for such a one by name.
_BY_DEFAULT: Mapping[str, tuple[Kernel, ...]] = {
  'tpu': ('splash',),
  'gpu': ('cudnn',),
  'cuda': ('cudnn',),
}
_HALF_PRECISION = ('bfloat16', 'float16')
_MAX_HEAD_SIZE = 128  # cuDNN takes 256 on some GPUs, which are not known when a step is traced.


class Case(NamedTuple):
  """What decides which attention serves.

  Attributes:
    platform: Platform that is compiled for: 'tpu', 'gpu' or 'cpu'.
    dtype: The queries' dtype.
    head_size: Size of a head of queries and keys.
    value_size: Size of a head of values.
    lengths: T and S, the numbers of queries and of keys.
    has_segments: Whether a query sees the keys of its own segment alone.
    logit_cap: As `fused_attention` takes it.
  """

  platform: str
  dtype: jnp.dtype
  head_size: int
  value_size: int
  lengths: tuple[int, int]
  has_segments: bool
  logit_cap: float | None


class Obstacle(NamedTuple):
  """Why a kernel cannot serve.

  Attributes:
    reason: Words that follow the kernel's name.
    setting: The setting that would remove it: a key of SETTINGS. None if there is none.
  """

  reason: str
  setting: str | None = None


class Choice(NamedTuple):
  """The attention that serves.

  Attributes:
    kernel: Its short name.
    reason: Why it is this one.
    faster: Kernels that would take its place, and the settings that each needs. It is not measured
      whether they are faster in this case.
  """

  kernel: Kernel
  reason: str
  faster: tuple[tuple[Kernel, tuple[str, ...]], ...] = ()

  def text(self, settings: Mapping[str, str] = SETTINGS) -> str:
    """Returns one line: what serves, why, and what to set for another kernel.

    Args:
      settings: What each setting is called.
    """
    line = f'{NAMES[self.kernel]}: {self.reason}'
    for kernel, needed in self.faster:
      line += f'; {" and ".join(settings[x] for x in needed)} would give {NAMES[kernel]}'
      line += ' (never run on a GPU yet)' if kernel == 'triton' else ''
      line += ' (another model)' if 'logit_cap' in needed else ''
    return line


def choose(case: Case, wanted: Kernel | None = None) -> Choice:
  """Returns the attention that serves.

  Args:
    case: What is to be computed, and where.
    wanted: The kernel that is asked for. It serves if it can; otherwise this is as without it.

  Raises:
    ValueError: wanted is no kernel's name.
  """
  if wanted is not None and wanted not in get_args(Kernel):
    raise ValueError(f'kernel must be one of {", ".join(get_args(Kernel))}; got {wanted!r}')
  if wanted and not obstacles(wanted, case):
    return Choice(wanted, 'asked for by name')
  refusal = f'{_refusal(wanted, case)}; ' if wanted else ''
  candidates = _BY_DEFAULT.get(case.platform, ())
  for kernel in candidates:
    if not obstacles(kernel, case):
      return Choice(kernel, f'{refusal}{_praise(kernel, case)}')
  reasons = [_refusal(kernel, case) for kernel in candidates if kernel != wanted]
  if not candidates:
    reasons = [f'there is no kernel for the platform {case.platform}']
  reason = (refusal + '; '.join(reasons)).removesuffix('; ')
  return Choice('blocks', reason, _faster(case, candidates, wanted))


def obstacles(kernel: Kernel, case: Case) -> list[Obstacle]:
  """Returns all that keeps a kernel from serving; nothing if it can serve."""
  platforms = {'splash': ('tpu',), 'cudnn': ('gpu', 'cuda'), 'triton': ('gpu', 'cuda')}
  if case.platform not in platforms.get(kernel, (case.platform,)):
    return [Obstacle(f'does not run on the platform {case.platform}')]
  if kernel not in ('cudnn', 'triton'):
    return []
  missing = []
  if kernel == 'cudnn' and case.logit_cap:
    missing.append(Obstacle(f'has no logit cap (here {case.logit_cap:g})', 'logit_cap'))
  if jnp.dtype(case.dtype).name not in _HALF_PRECISION:
    missing.append(Obstacle(f'takes 16-bit floats, not {jnp.dtype(case.dtype).name}', 'dtype'))
  if case.head_size > _MAX_HEAD_SIZE or kernel == 'cudnn' and case.head_size % 8:
    multiple = ' that are multiples of 8' if kernel == 'cudnn' else ''
    missing.append(
      Obstacle(f'takes heads of at most {_MAX_HEAD_SIZE}{multiple}, not of {case.head_size}')
    )
  if case.head_size != case.value_size:
    missing.append(Obstacle('takes values only of the size of the keys'))
  if kernel == 'cudnn' and case.has_segments and any(length % 2 for length in case.lengths):
    missing.append(Obstacle('takes segments only with even lengths'))
  return missing


def _refusal(kernel: Kernel, case: Case) -> str:
  reasons = [obstacle.reason for obstacle in obstacles(kernel, case)]
  return f'{NAMES[kernel]} {" and ".join(reasons)}'


def _praise(kernel: Kernel, case: Case) -> str:
  """Returns why a kernel serves that was not asked for."""
  if kernel == 'cudnn':
    mask = ', segments as a T x S mask' if case.has_segments else ''
    return f'{jnp.dtype(case.dtype).name} without a logit cap{mask}'
  return 'it has segments and any logit cap'


def _faster(
  case: Case, candidates: tuple[Kernel, ...], wanted: Kernel | None
) -> tuple[tuple[Kernel, tuple[str, ...]], ...]:
  """Returns the fused kernels that settings alone would bring, and these settings."""
  is_reachable = wanted and all(obstacle.setting for obstacle in obstacles(wanted, case))
  kernels = (wanted,) if is_reachable else candidates  # What is asked for comes before a default.
  if 'cudnn' in candidates:
    kernels += ('triton',)
  faster = []
  for kernel in dict.fromkeys(kernels):
    missing = obstacles(kernel, case)
    if all(obstacle.setting for obstacle in missing):
      needed = tuple(obstacle.setting for obstacle in missing)
      faster.append((kernel, (*needed, 'kernel') if kernel == 'triton' != wanted else needed))
  return tuple(faster)
