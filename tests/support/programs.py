"""Programs of tests: compiled quickly, and read. Tests of ops use it, so it needs jax alone."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax


def compiled(function):
  """Compiles for a single small run: quickly, rather than well."""
  return jax.jit(function, compiler_options={'xla_backend_optimization_level': 0})


def inner_jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
  """Yields the jaxprs in an equation's parameters, on every version of jax."""
  for x in jax.tree.leaves(list(params.values()), is_leaf=lambda x: hasattr(x, 'eqns')):
    if hasattr(x, 'eqns'):
      yield getattr(x, 'jaxpr', x)  # That of a closed one.
