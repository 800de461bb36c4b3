"""What jax traces, read. It needs jax alone."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.extend


def inner_jaxprs(params: Mapping[str, Any]) -> Iterator[jax.extend.core.Jaxpr]:
  """Yields the traced functions among the parameters of an equation.

  Args:
    params: The equation's parameters. One may be a traced function, or a tuple of them.
  """
  for value in params.values():
    for body in value if isinstance(value, tuple) else (value,):
      if isinstance(body, jax.extend.core.ClosedJaxpr):
        yield body.jaxpr
      elif isinstance(body, jax.extend.core.Jaxpr):
        yield body
