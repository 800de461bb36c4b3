"""LASER on four devices, under each kind of mesh that this version of jax has.

tests/ops/test_devices.py runs it; it prints the greatest error of each, and what the mesh tells.
A DeprecationWarning that laser_pax causes ends it.
"""

import contextlib
import functools
import json
import warnings

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from laser_pax import fused_attention, laser, laser_oracle, log_weighted_sum_exp
from laser_pax.ops import (
  devices,
  fused_attention_by_heads,
  laser_by_heads,
  laser_oracle_vjp,
  over_mesh,
)
from laser_pax.ops.by_heads import heads_swapped

warnings.filterwarnings('error', category=DeprecationWarning, module=r'laser_pax')
AXES = ('data', 'heads')
SPEC = PartitionSpec('data', None, 'heads', None)
BETA = np.float32([[0.0, 1e-3, 0.5, 1.0, -1.0, 3.0, -0.2, 2.0], [1.0, 0.7, -2.0, 0, 0.1, 5, 1, 1]])


def arrays():
  """Query, key, value, [B, T, N, H]; one head's values need levels."""
  rng = np.random.default_rng(0)
  query, key, value = (rng.standard_normal((4, 6, 2, 8)).astype(np.float32) for _ in range(3))
  value[0, :, 0] *= 60
  return 8**-0.5 * query, key, value


def by_einsum(query, key, value, beta=None):
  """Mixes by probabilities that are known."""
  logits = jax.numpy.einsum('BTNH,BSNH->BNTS', query, key)
  return log_weighted_sum_exp('BNTS,BSNH->BTNH', jax.nn.softmax(logits), value, beta=beta)


def attentions(mesh):
  """Each way to LASER, as a function of query, key and value."""
  fused = laser(functools.partial(fused_attention, is_causal=False))
  return {
    'plain': laser(functools.partial(jax.nn.dot_product_attention, scale=1.0)),
    'einsum': by_einsum,
    'fused': fused,
    'over_mesh': over_mesh(fused, mesh, *AXES),
    'over_mesh_in_context': lambda *qkv: over_mesh(fused, devices.current_mesh(), *AXES)(*qkv),
  }


def with_beta(mesh):
  """Each way to the family, as a function of query, key, value, and beta [N, H]."""
  attend = functools.partial(fused_attention_by_heads, is_causal=False)
  by_heads = over_mesh(heads_swapped(laser_by_heads(attend)), mesh, *AXES)
  plain = functools.partial(jax.nn.dot_product_attention, scale=1.0)
  return {
    'plain, beta': lambda *qkv_beta: laser(plain, beta=qkv_beta[3])(*qkv_beta[:3]),
    'einsum, beta': by_einsum,
    'over_mesh, beta': lambda *qkv_beta: by_heads(*qkv_beta[:3], beta=qkv_beta[3][:, None]),
  }


def error(found, expected):
  return float(
    max(np.abs(f - e).max() / np.abs(e).max() for f, e in zip(found, expected, strict=True))
  )


def contexts():
  """Yields name, mesh, and the context that a user opens."""
  old = Mesh(np.array(jax.devices()).reshape(2, 2), AXES)
  yield 'with mesh', old, old
  if hasattr(jax, 'set_mesh'):
    for kind in jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit:
      mesh = jax.make_mesh((2, 2), AXES, axis_types=(kind, kind))
      yield f'set_mesh {kind.name}', mesh, jax.set_mesh(mesh)
  elif hasattr(jax.sharding, 'use_mesh'):
    yield 'use_mesh', old, jax.sharding.use_mesh(old)


def main() -> None:
  cotangent = np.ones_like(arrays()[2])
  expected = [
    (
      laser_oracle(*arrays(), scale=1.0, beta=beta),
      *laser_oracle_vjp(*arrays(), cotangent, scale=1.0, beta=beta),
    )
    for beta in (None, BETA)
  ]
  results = {}
  for name, mesh, context in contexts():
    with contextlib.ExitStack() as stack:
      with warnings.catch_warnings():  # `with mesh:` is deprecated; that is the user's own affair.
        warnings.simplefilter('ignore', DeprecationWarning)
        stack.enter_context(context)
      given = [jax.device_put(x, NamedSharding(mesh, SPEC)) for x in arrays()]
      results[name] = {'platform': devices.platform(), 'axes': devices.current_mesh().axis_names}

      def run(attention, *qkv):
        output, vjp = jax.vjp(attention, *qkv)
        return output, *vjp(jax.numpy.ones_like(output))

      options = {'xla_backend_optimization_level': 0}
      beta = jax.device_put(BETA, NamedSharding(mesh, PartitionSpec('heads')))
      inputs = (given, [*given, beta])
      for ways, arguments, exact in zip((attentions, with_beta), inputs, expected, strict=True):
        for way, attention in ways(mesh).items():
          found = jax.jit(functools.partial(run, attention), compiler_options=options)(*arguments)
          results[name][way] = error([np.asarray(x) for x in found], exact)
  print(json.dumps(results))


if __name__ == '__main__':
  main()
