r"""Fused attention with a logit cap on NVIDIA GPUs: a Pallas kernel, compiled by Triton.

    W_ts = exp(cap(A_ts) - L_t)      A = Q K^T, L_t = log sum_s exp(cap(A_ts))
                                     0 for a key that t does not see
    O_th = sum_s W_ts V_sh

and with g_th the cotangent of O, and d_t = sum_h g_th O_th:

    dV_sh = sum_t W_ts g_th
    dA_ts = W_ts (sum_h g_th V_sh - d_t) cap'(A_ts)
    dQ_th = sum_s dA_ts K_sh                               dK_sh = sum_t dA_ts Q_th

It is FlashAttention-2's scheme. A program of the GPU holds one block of queries, or of keys. It
goes through the blocks of the others that the causal mask lets it see. Segments leave out no block.
The backward pass has a kernel for dK and dV, and one for dQ; both form the logits anew.

Nobody has run it on a GPU yet: it is tested by Pallas's interpreter, and lowered to Triton's IR.
So it serves only where it is asked for by name (choice.py). docs/gpu.md says why it exists.

Shapes: B batch, T query length, S key length, N heads, H head size.
"""

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from laser_pax.ops import devices
from laser_pax.ops.blocks import CHECKPOINT_NAME, AttentionSpec

if TYPE_CHECKING:
  from jax.experimental import pallas

Array = jax.Array
F32 = jnp.float32

# Rows of a program's own block, and of a block that it goes through. They are not tuned.
_OWN = 128
_OWN_BACKWARD = 64
_PASSED = 64
_HIDDEN = -1e30  # Finite, so that a row that sees nothing stays finite.
_MIN_HEAD_SIZE = 16  # Triton's products take no smaller side.


def triton_attention(
  query: Array,
  key: Array,
  value: Array,
  segment_ids: Array | None,
  key_segment_ids: Array | None,
  spec: AttentionSpec,
) -> Array:
  """Mixes values by attention probabilities; see this file's head.

  The arguments are those of `attention_by_blocks`. Values are rounded to query's dtype.

  Returns:
    [B, N, T, H] in query's dtype. The softmax and all sums are float32. The row of a query that
    sees no key is finite, and means nothing. It can be differentiated in reverse.

  Source: [ours], after FlashAttention-2.
  """
  (t, h), s = query.shape[2:], key.shape[2]
  rows, keys = (_rounded_up(length, _OWN) - length for length in (t, s))
  if segment_ids is None and keys and not spec.is_causal:  # Something must hide the padded keys.
    segment_ids, key_segment_ids = (jnp.zeros((query.shape[0], x), jnp.int32) for x in (t, s))
  if segment_ids is not None:
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, rows)))
    hidden = -(2**31)
    key_segment_ids = jnp.pad(key_segment_ids, ((0, 0), (0, keys)), constant_values=hidden)
  size = max(_MIN_HEAD_SIZE, 1 << (h - 1).bit_length()) - h
  query = _padded(query, rows, size)
  key, value = (_padded(x.astype(query.dtype), keys, size) for x in (key, value))
  output = _attention(query, key, value, segment_ids, key_segment_ids, spec)
  return output[:, :, :t, :h]


def _rounded_up(length: int, block: int) -> int:
  return -(-length // block) * block


def _padded(x: Array, rows: int, size: int) -> Array:
  return jnp.pad(x, ((0, 0), (0, 0), (0, rows), (0, size))) if rows or size else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(query, key, value, segment_ids, key_segment_ids, spec: AttentionSpec) -> Array:
  """As `triton_attention`, of lengths that blocks divide and a head size that is a power of 2."""
  return _forward(query, key, value, segment_ids, key_segment_ids, spec)[0]


def _forward(query, key, value, segment_ids, key_segment_ids, spec: AttentionSpec):
  operands = (query, key, value, segment_ids, key_segment_ids)
  output, normalizer = _call(
    functools.partial(_forward_kernel, spec),
    (_OWN, *query.shape),
    [(query, True), (key, False), (value, False), (segment_ids, True), (key_segment_ids, False)],
    [jax.ShapeDtypeStruct(query.shape, query.dtype), jax.ShapeDtypeStruct(query.shape[:3], F32)],
  )
  output, normalizer = (checkpoint_name(x, CHECKPOINT_NAME) for x in (output, normalizer))
  return output, (*operands, output, normalizer)


def _backward(spec: AttentionSpec, residuals, cotangent: Array):
  query, key, value, segment_ids, key_segment_ids, output, normalizer = residuals
  centers = jnp.sum(output.astype(F32) * cotangent.astype(F32), axis=-1)
  like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # noqa: E731
  by_row = (query, segment_ids, cotangent.astype(query.dtype), normalizer, centers)
  by_key = (key, value, key_segment_ids)
  (d_query,) = _call(
    functools.partial(_query_kernel, spec),
    (_OWN_BACKWARD, *query.shape),
    [*((x, True) for x in by_row), *((x, False) for x in by_key)],
    [like(query)],
  )
  d_key, d_value = _call(
    functools.partial(_key_kernel, spec),
    (_OWN_BACKWARD, *key.shape),
    [*((x, False) for x in by_row), *((x, True) for x in by_key)],
    [like(key), like(value)],
  )
  return d_query, d_key, d_value, None, None


_attention.defvjp(_forward, _backward)


def _call(
  kernel: Any,
  sizes: tuple[int, ...],
  operands: list[tuple[Array | None, bool]],
  results: list[jax.ShapeDtypeStruct],
) -> list[Array]:
  """Calls a kernel for each block of rows, head and example.

  Args:
    kernel: A function of references to all operands and all results.
    sizes: Rows of a block; B, N, the number of rows, and H.
    operands: The arrays, and of each whether the kernel is given its own block of it, or all rows.
    results: Shapes and types of the results, of which it writes its own block.
  """
  from jax.experimental import pallas

  block, b, n, rows, h = sizes
  return pallas.pallas_call(
    kernel,
    grid=(rows // block, n, b),
    in_specs=[None if x is None else _block_spec(pallas, x, block, own) for x, own in operands],
    out_specs=[_block_spec(pallas, x, block, True) for x in results],
    out_shape=results,
    compiler_params=devices.triton_params(num_warps=4 if h <= 64 else 8, num_stages=2),
    name=kernel.func.__name__.strip('_'),
  )(*(x for x, _ in operands))


def _block_spec(pallas: Any, x: Any, block: int, own: bool) -> 'pallas.BlockSpec':
  """Returns which part of [B, N, rows, H], [B, N, rows] or [B, rows] a program is given."""
  rows_axis = 1 if x.ndim == 2 else 2
  shape = (*(None,) * rows_axis, block if own else x.shape[rows_axis], *x.shape[rows_axis + 1 :])

  def index(i, head, example):
    before = (example,) if x.ndim == 2 else (example, head)
    return (*before, i if own else 0, *(0,) * (x.ndim - rows_axis - 1))

  return pallas.BlockSpec(shape, index)


def _forward_kernel(spec, query, key, value, segment_ids, key_segment_ids, output, normalizer):
  """Writes O and L of a block of queries."""
  from jax.experimental import pallas

  own, q = pallas.program_id(0), query[...]
  ids = None if segment_ids is None else segment_ids[...]

  def attend(j, carry):
    mixture, greatest, total = carry
    span = pallas.ds(j * _PASSED, _PASSED)
    key_ids = None if ids is None else key_segment_ids[span]
    logits = spec.cap(_product(q, key[span, :], 1, 1))
    visible = _visible(own * _OWN, j * _PASSED, logits.shape, ids, key_ids, spec)
    logits = logits if visible is None else jnp.where(visible, logits, _HIDDEN)
    new = jnp.maximum(greatest, jnp.max(logits, axis=1))
    weights, kept = jnp.exp(logits - new[:, None]), jnp.exp(greatest - new)
    v = value[span, :]
    mixture = mixture * kept[:, None] + _product(weights.astype(v.dtype), v, 1, 0)
    return mixture, new, total * kept + jnp.sum(weights, axis=1)

  end = (own + 1) * (_OWN // _PASSED) if spec.is_causal else key.shape[0] // _PASSED
  start = (
    jnp.zeros(q.shape, F32),
    jnp.full(q.shape[:1], _HIDDEN, F32),
    jnp.zeros(q.shape[:1], F32),
  )
  mixture, greatest, total = lax.fori_loop(0, end, attend, start)
  output[...] = (mixture / total[:, None]).astype(output.dtype)
  normalizer[...] = greatest + jnp.log(total)


def _query_kernel(
  spec, query, segment_ids, cotangent, normalizer, centers, key, value, key_segment_ids, d_query
):
  """Writes dQ of a block of queries."""
  from jax.experimental import pallas

  own = pallas.program_id(0)
  ids = None if segment_ids is None else segment_ids[...]
  rows = (query[...], ids, cotangent[...], normalizer[...], centers[...])

  def add(j, total):
    span = pallas.ds(j * _PASSED, _PASSED)
    key_ids = None if ids is None else key_segment_ids[span]
    keys = (key[span, :], value[span, :], key_ids)
    _, d_logits = _gradients(rows, keys, (own * _OWN_BACKWARD, j * _PASSED), spec)
    return total + _product(d_logits.astype(query.dtype), keys[0], 1, 0)

  end = own + 1 if spec.is_causal else key.shape[0] // _PASSED
  total = lax.fori_loop(0, end, add, jnp.zeros(d_query.shape, F32))
  d_query[...] = total.astype(d_query.dtype)


def _key_kernel(
  spec,
  query,
  segment_ids,
  cotangent,
  normalizer,
  centers,
  key,
  value,
  key_segment_ids,
  d_key,
  d_value,
):
  """Writes dK and dV of a block of keys."""
  from jax.experimental import pallas

  own = pallas.program_id(0)
  key_ids = None if key_segment_ids is None else key_segment_ids[...]
  keys = (key[...], value[...], key_ids)

  def add(j, totals):
    span = pallas.ds(j * _PASSED, _PASSED)
    ids = None if key_ids is None else segment_ids[span]
    rows = (query[span, :], ids, cotangent[span, :], normalizer[span], centers[span])
    weights, d_logits = _gradients(rows, keys, (j * _PASSED, own * _OWN_BACKWARD), spec)
    d_keys = totals[0] + _product(d_logits.astype(query.dtype), rows[0], 0, 0)
    return d_keys, totals[1] + _product(weights.astype(query.dtype), rows[2], 0, 0)

  start = own if spec.is_causal else 0
  zeros = jnp.zeros(d_key.shape, F32)
  totals = lax.fori_loop(start, query.shape[0] // _PASSED, add, (zeros, zeros))
  d_key[...], d_value[...] = (x.astype(d_key.dtype) for x in totals)


def _gradients(rows, keys, firsts: tuple[Any, Any], spec: AttentionSpec) -> tuple[Array, Array]:
  """Returns W and dA of a block of queries and a block of keys, which begin at `firsts`."""
  q, ids, g, normalizer, centers = rows
  k, v, key_ids = keys
  capped = spec.cap(_product(q, k, 1, 1))
  weights = jnp.exp(capped - normalizer[:, None])
  visible = _visible(*firsts, capped.shape, ids, key_ids, spec)
  if visible is not None:
    weights = jnp.where(visible, weights, 0.0)
  d_logits = weights * (_product(g, v, 1, 1) - centers[:, None])
  return weights, d_logits * spec.cap_slope(capped) if spec.logit_cap else d_logits


def _visible(row, column, shape, ids, key_ids, spec: AttentionSpec) -> Array | None:
  """Returns which keys of a block each of its queries sees; None: all."""
  visible = None
  if spec.is_causal:
    rows, columns = row + jnp.arange(shape[0]), column + jnp.arange(shape[1])
    visible = rows[:, None] >= columns[None, :]
  if ids is not None:
    is_same = ids[:, None] == key_ids[None, :]
    visible = is_same if visible is None else visible & is_same
  return visible


def _product(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
  return lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=F32)
