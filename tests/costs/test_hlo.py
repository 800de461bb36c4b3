"""Collectives, counted in programs whose collectives are known."""

import os
import subprocess
import sys

import pytest

from laser_pax.costs import hlo

# A loop all-reduces 4 KiB over pairs 5 times. An all-gather over all 8 and a permutation follow.
_TEXT = """HloModule m, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%condition (p: (s32[], f32[1024])) -> pred[] {
  %p = (s32[], f32[1024]{0}) parameter(0)
  %n = s32[]{:T(128)} constant(5)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (p: (s32[], f32[1024])) -> (s32[], f32[1024]) {
  %p = (s32[], f32[1024]{0}) parameter(0)
  %x = f32[1024]{0} get-tuple-element(%p), index=1
  %r = f32[1024]{0:T(1024)} all-reduce(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %t = (s32[], f32[1024]{0}) tuple(%i, %r)
}

ENTRY %main (x: f32[1024]) -> bf16[8192] {
  %x = f32[1024]{0} parameter(0)
  %w = (s32[], f32[1024]{0}) while(%x), condition=%condition, body=%body
  %s = (bf16[1024]{0}, bf16[8192]{0}) all-gather-start(%x), replica_groups=[1,8]<=[8]
  %d = bf16[8192]{0} all-gather-done(%s)
  %p = bf16[16]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  ROOT %o = bf16[8192]{0} copy(%d)
}
"""


def test_loops_count_as_often_as_they_run():
  reduce, gather, permute = hlo.collectives(_TEXT, chips=8)
  assert (reduce.kind, reduce.group, reduce.count) == ('all-reduce', 2, 5)
  assert reduce.result_bytes == 5 * 4096
  assert reduce.sent_bytes == 5 * 2 * 4096 // 2
  assert (gather.kind, gather.group, gather.count) == ('all-gather', 8, 1)
  assert (gather.result_bytes, gather.sent_bytes) == (16384, 16384 * 7 // 8)
  assert (permute.kind, permute.count, permute.sent_bytes) == ('collective-permute', 1, 32)


def test_a_chip_sends_its_share_between_slices():
  reduce, gather, _ = hlo.collectives(_TEXT, chips=8, chip_slices=[0] * 4 + [1] * 4)
  assert reduce.slices == 1 and reduce.sent_between_slices == 0
  # Each of two slices gathers its own 4 shares. Then each chip sends a quarter to the other slice.
  assert gather.slices == 2
  assert gather.sent_between_slices == pytest.approx(16384 / 4 / 2)


_FUSED = """HloModule m, num_partitions=8

%fused_start (x: f32[128]) -> f32[1024] {
  %x = f32[128]{0} parameter(0)
  ROOT %g = f32[1024]{0} all-gather(%x), channel_id=7, replica_groups=[1,8]<=[8]
}

%async_collective_fusion.1 (x: f32[128], y: f32[64]) -> f32[64] {
  %x = f32[128]{0} parameter(0)
  %y = f32[64]{0} parameter(1)
  %g = f32[1024]{0} all-gather(%x), channel_id=7, replica_groups=[1,8]<=[8]
  ROOT %o = f32[64]{0} multiply(%y, %y)
}

ENTRY %main (x: f32[128]) -> f32[64] {
  %x = f32[128]{0} parameter(0)
  %f = f32[1024]{0} fusion(%x), kind=kCustom, calls=%fused_start
  ROOT %o = f32[64]{0} fusion(%x, %f), kind=kCustom, calls=%async_collective_fusion.1
}
"""


def test_a_collective_that_overlaps_products_counts_once():
  (gather,) = hlo.collectives(_FUSED, chips=8)
  assert (gather.count, gather.result_bytes) == (1, 4096)


_SCATTERED = """HloModule m, num_partitions=8

%all-reduce-scatter.1 (x: bf16[64,32]) -> bf16[8,32] {
  %x = bf16[64,32]{1,0} parameter(0)
  %r = bf16[64,32]{1,0} all-reduce(%x), channel_id=3, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %s = bf16[8,32]{1,0} dynamic-slice(%r), dynamic_slice_sizes={8,32}
}

ENTRY %main (x: bf16[64,32]) -> bf16[8,32] {
  %x = bf16[64,32]{1,0} parameter(0)
  ROOT %f = bf16[8,32]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_an_all_reduce_whose_shares_are_kept_is_a_reduce_scatter():
  (scatter,) = hlo.collectives(_SCATTERED, chips=8)
  assert (scatter.kind, scatter.result_bytes) == ('reduce-scatter', 8 * 32 * 2)
  assert scatter.sent_bytes == 64 * 32 * 2 * 7 // 8


def test_slices_are_in_the_order_of_the_mesh():
  reduce = next(c for c in hlo.collectives(_TEXT, 8, [0, 1] * 4) if c.kind == 'all-reduce')
  assert reduce.slices == 2


_SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from laser_pax.costs import hlo
mesh = Mesh(np.array(jax.devices()).reshape(8), ('x',))

def put(shape, *spec):
  return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))

def layers(x, w):
  return jax.lax.scan(lambda c, v: (jnp.tanh(c @ v), None), x, w)[0].sum()

step = jax.jit(jax.grad(layers, argnums=1), out_shardings=NamedSharding(mesh, P()))
text = step.lower(put((16, 64), 'x'), put((7, 64, 64))).compile().as_text()
for c in hlo.collectives(text, 8):
  print(c.kind, c.group, c.count, c.result_bytes, c.sent_bytes)
"""


def test_data_parallel_gradients_are_reduced_once_a_layer():
  env = os.environ | {
    'XLA_FLAGS': '--xla_force_host_platform_device_count=8',
    'JAX_PLATFORMS': 'cpu',
  }
  process = subprocess.run(
    [sys.executable, '-c', _SHARDED], env=env, capture_output=True, text=True, check=True
  )
  collectives = [line.split() for line in process.stdout.splitlines()]
  reduced = sum(int(line[3]) for line in collectives if line[0] == 'all-reduce')
  sent = sum(int(line[4]) for line in collectives if line[0] == 'all-reduce')
  assert reduced == pytest.approx(7 * 64 * 64 * 4, rel=1e-3)  # The weights' gradients alone.
  assert sent == pytest.approx(2 * reduced * 7 / 8, rel=1e-3)
