"""What a measurement depends on: the processor, and the versions; imports the standard library."""

import os
import pathlib
import platform
from importlib import metadata

LIBRARIES = ('jax', 'jaxlib', 'paxml', 'praxis')


def processor() -> str:
  """Returns the name of this machine's processor."""
  file = pathlib.Path('/proc/cpuinfo')
  lines = file.read_text().splitlines() if file.exists() else []
  names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
  return names[0] if names else platform.machine()


def cores() -> int:
  """Returns the number of cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def versions() -> dict[str, str]:
  """Returns the versions of jax and PAX, by name."""
  return {name: metadata.version(name) for name in LIBRARIES}
