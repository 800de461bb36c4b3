"""Programs of tests, compiled quickly. Tests of ops use it, so it needs jax alone."""

import jax


def compiled(function):
  """Compiles for a single small run: quickly, rather than well."""
  return jax.jit(function, compiler_options={'xla_backend_optimization_level': 0})


def rounded_as_stated(function):
  """As `compiled`; each rounding happens, where XLA may compute with more bits than asked."""
  return jax.jit(
    function,
    compiler_options={
      'xla_backend_optimization_level': 0,
      'xla_allow_excess_precision': False,
    },
  )
