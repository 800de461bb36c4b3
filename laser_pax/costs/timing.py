"""Times of compiled functions on this machine's devices; needs jax alone."""

import time
from collections.abc import Callable, Sequence

import jax

# Dense bfloat16 operations a second, by the makers' data sheets; the first name that fits counts.
# The chips of TPUs are in configs/pods/chips.
GPU_PEAKS = {
  'H100 PCIe': 756e12,
  'H100 NVL': 835e12,
  'H100': 989e12,
  'H200': 989e12,
  'GH200': 989e12,
  'A100': 312e12,
}
MAX_CALLS = 50


def gpu_peak(device_kind: str) -> float | None:
  """Returns a GPU's peak rate, in operations a second; None if it is not known."""
  return next((peak for name, peak in GPU_PEAKS.items() if name in device_kind), None)


def seconds(call: Callable[[], object], calls: int) -> float:
  """Returns the seconds of one of `calls` calls, which run one after the other on the device."""
  start = time.perf_counter()
  for _ in range(calls):
    result = call()
  jax.block_until_ready(result)
  return (time.perf_counter() - start) / calls


def calls_of_a_turn(call: Callable[[], object], turn_seconds: float) -> int:
  """Warms a function up, and returns how many calls take `turn_seconds`: 1 to MAX_CALLS."""
  seconds(call, 1)
  return min(MAX_CALLS, max(1, round(turn_seconds / seconds(call, 1))))


def with_gradients(attention: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
  """Returns a function of (query, key, value, cotangent, ...): the output, and three gradients.

  Args:
    attention: A function of (query, key, value, ...).
  """

  def run(query, key, value, cotangent, *others):
    output, open_vjp = jax.vjp(lambda *qkv: attention(*qkv, *others), query, key, value)
    return output, *open_vjp(cotangent.astype(output.dtype))

  return run


def peak_bytes(devices: Sequence[jax.Device]) -> int | None:
  """Returns the most that one of the devices has held since the process began, as it tells.

  None where they do not tell it, as on CPUs.
  """
  peaks = [(device.memory_stats() or {}).get('peak_bytes_in_use') for device in devices]
  return None if None in peaks else max(peaks)
