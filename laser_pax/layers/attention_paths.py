"""Which attention each fused layer takes, told while a model is traced.

A layer tells its path at the place where it takes it. So `show`, `train` and the log say what runs.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping

import jax
from absl import logging

from laser_pax.ops import choice

# What the settings of choice.py are called in a layer's config, and in an experiment.
LAYER_SETTINGS = {
  'logit_cap': 'atten_logit_cap=0',
  'dtype': 'fprop_dtype=bfloat16',
  'kernel': 'kernel=triton',
}
EXPERIMENT_SETTINGS = {
  'logit_cap': 'ATTEN_LOGIT_CAP=0',
  'dtype': 'FPROP_DTYPE=bfloat16',
  'kernel': 'ATTENTION_KERNEL=triton',
}


@dataclasses.dataclass(frozen=True)
class Path:
  """The path that one attention layer takes.

  Attributes:
    layer: Name of the layer's class.
    case: What decides which kernel serves; None where the layer takes Praxis's plain path.
    kernel: The kernel that the layer asks for, or None.
    plain_reason: Why it takes the plain path; None where it does not.
    num_heads: N, the number of heads; None where the layer takes the plain path.
    attention: What it computes between its projections, to be timed alone: a function of query
      [B, T, N, H], key and value [B, S, N, H], and segment ids [B, T] or None. A learned beta is 1
      there. None where the layer takes the plain path.
  """

  layer: str
  case: choice.Case | None = None
  kernel: choice.Kernel | None = None
  plain_reason: str | None = None
  num_heads: int | None = None
  attention: Callable[..., jax.Array] | None = dataclasses.field(
    default=None, compare=False, repr=False
  )

  def text(self, settings: Mapping[str, str] = LAYER_SETTINGS, platform: str | None = None) -> str:
    """Returns one line: what serves, why, and what to set for another kernel.

    Args:
      settings: What each setting is called.
      platform: The platform to speak of; None: the one that the layer was traced for.
    """
    if self.case is None:
      return f"Praxis's attention, which forms all logits: {self.plain_reason}"
    case = self.case if platform is None else self.case._replace(platform=platform)
    return choice.choose(case, self.kernel).text(settings)


_listeners: list[Callable[[Path], None]] = []


@contextlib.contextmanager
def telling(listener: Callable[[Path], None]) -> Iterator[None]:
  """Calls `listener` with the path of each fused layer that is traced in the `with` block."""
  _listeners.append(listener)
  try:
    yield
  finally:
    _listeners.remove(listener)


def tell(path: Path) -> None:
  """Logs a path, each text once, and tells it to all who listen."""
  if logging.level_info():  # Praxis silences the log while it traces for shapes alone.
    _log(f'{path.layer}: {path.text()}')
  for listener in list(_listeners):
    listener(path)


@functools.cache
def _log(line: str) -> None:
  logging.info('%s', line)
