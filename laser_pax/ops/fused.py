r"""Attention that never forms all T x S logits in memory, by jax's own fused kernels.

    O_th = sum_s p_ts V_sh,   p_t = softmax_s( cap(Q_t . K_s) ),   cap(a) = c tanh(a / c)

over the keys that query t may see: s <= t where causal, and of its own segment. On a TPU the kernel
is jax's Pallas splash attention, of jax's two the one that has PAX's logit cap; on a GPU it is
cuDNN's, which has no cap; elsewhere, and where a kernel cannot serve, plain jax by blocks of
queries (blocks.py).

The values are mixed linearly, so `laser(fused_attention)` is fused LASER.

Shapes: B batch, T query length, S key length, N heads, H head size.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_masks
from jax.experimental.shard_map import shard_map
from jax.sharding import Mesh, PartitionSpec

from laser_pax.ops import devices
from laser_pax.ops.blocks import CHECKPOINT_NAME, attention_by_blocks

Array = jax.Array
Kernel = Literal['splash', 'cudnn', 'blocks']

# The kernel's blocks; the greatest that divides the sequence is taken. At 1,024 three of the four
# pairs of blocks do not lie wholly above the causal diagonal and are computed; with n blocks,
# (n + 1) / 2n. Larger ones than 512 exceed the fast memory of a v5e in the backward pass.
_BLOCKS = (512, 384, 256, 128)
_LANES = 128


def fused_attention(
  query: Array,
  key: Array,
  value: Array,
  segment_ids: Array | None = None,
  key_segment_ids: Array | None = None,
  *,
  is_causal: bool,
  logit_cap: float | None = None,
) -> Array:
  r"""Mixes values by attention probabilities.

      O_th = sum_s p_ts V_sh,   p_t = softmax_s( cap(Q_t . K_s) ),   cap(a) = c tanh(a / c)

  Linear in value, and differentiable in query, key and value, in reverse.

  Args:
    query: [B, T, N, H], scaled beforehand.
    key: [B, S, N, H].
    value: [B, S, N, H].
    segment_ids: [B, T] int32: a query sees the keys of its own segment alone. None: all.
    key_segment_ids: [B, S] int32; None: those of the queries.
    is_causal: Whether query t sees only the keys s <= t; T must then be S.
    logit_cap: c; None for no cap.

  Returns:
    [B, T, N, H] in value's dtype; the softmax is float32, and sums are accumulated in float32. The
    row of a query that sees no key is finite, and means nothing.

  Raises:
    ValueError: the shapes do not fit.

  Source: [ours], over jax's kernels.
  """
  _check_shapes(query, key, value, segment_ids, key_segment_ids, is_causal)
  attention = functools.partial(fused_attention_by_heads, is_causal=is_causal, logit_cap=logit_cap)
  return heads_swapped(attention)(query, key, value, segment_ids, key_segment_ids)


def fused_attention_by_heads(
  query: Array,
  key: Array,
  value: Array,
  segment_ids: Array | None = None,
  key_segment_ids: Array | None = None,
  *,
  is_causal: bool,
  logit_cap: float | None = None,
) -> Array:
  """As `fused_attention`, of [B, N, T, H] and [B, N, S, H], for `laser_by_heads`."""
  if segment_ids is not None and key_segment_ids is None:
    key_segment_ids = segment_ids
  kernels = {'splash': _splash, 'cudnn': heads_swapped(_cudnn), 'blocks': attention_by_blocks}
  mix = kernels[choose(query.dtype, logit_cap)]
  mixed = mix(query, key, value, segment_ids, key_segment_ids, is_causal, logit_cap)
  return mixed.astype(value.dtype)


def heads_swapped(attention_fn: Callable[..., Array]) -> Callable[..., Array]:
  """Makes attention over [B, N, T, H] of one over [B, T, N, H], or the other way round."""

  @functools.wraps(attention_fn)
  def attention(query: Array, key: Array, value: Array, *others) -> Array:
    swapped = (x.swapaxes(1, 2) for x in (query, key, value))
    return attention_fn(*swapped, *others).swapaxes(1, 2)

  return attention


def choose(dtype: jnp.dtype, logit_cap: float | None) -> Kernel:
  """Returns what serves on the platform that is compiled for.

  Args:
    dtype: Of the queries.
    logit_cap: As `fused_attention` takes it.
  """
  platform = devices.platform()
  if platform == 'tpu':
    return 'splash'
  if platform in ('gpu', 'cuda') and not logit_cap and dtype in (jnp.bfloat16, jnp.float16):
    return 'cudnn'
  return 'blocks'


def over_mesh(
  attention_fn: Callable[..., Array], mesh: Mesh, batch_axes: object, head_axes: object
) -> Callable[..., Array]:
  """Lets each device attend over its own batch entries and heads; no device sends anything.

  A kernel must be called so, as the compiler cannot divide it. A LASER that wraps the kernel
  belongs inside, so that what it decides by the values is decided by a device's own.

  Args:
    attention_fn: Of (query, key, value, segment_ids, key_segment_ids), as `fused_attention`.
    mesh: The devices.
    batch_axes: The axes of the mesh that divide the batch: a name, a tuple of names, or None.
    head_axes: Those that divide the heads.

  Returns:
    A function of the same arguments.
  """
  heads = PartitionSpec(batch_axes, None, head_axes, None)
  rows = PartitionSpec(batch_axes, None)

  @functools.wraps(attention_fn)
  def attention(query: Array, key: Array, value: Array, *segments: Array | None) -> Array:
    specs = tuple(None if ids is None else rows for ids in segments)
    # The kernel has no rule by which shard_map could check that its result is divided as said.
    local = shard_map(
      attention_fn, mesh, (heads, heads, heads, *specs), out_specs=heads, check_rep=False
    )
    return local(query, key, value, *segments)

  return attention


def block_size(length: int) -> int:
  """Returns the block that a sequence, padded to a multiple of 128, is computed in."""
  return next(block for block in _BLOCKS if _padded(length) % block == 0)


def computed_share(length: int) -> float:
  """Returns the share of all pairs of blocks that the kernel computes of causal attention."""
  blocks = _padded(length) // block_size(length)
  return (blocks + 1) / (2 * blocks)


def _padded(length: int) -> int:
  return -(-length // _LANES) * _LANES


def _check_shapes(query, key, value, segment_ids, key_segment_ids, is_causal) -> None:
  b, t, n, h = query.shape
  s = key.shape[1]
  if key.shape != (b, s, n, h) or value.shape[:3] != (b, s, n):
    raise ValueError(
      f'query {query.shape}, key {key.shape} and value {value.shape} must be [B, T, N, H], '
      '[B, S, N, H] and [B, S, N, H]'
    )
  if is_causal and t != s:
    raise ValueError(f'causal attention needs as many keys as queries; got {s} and {t}')
  if segment_ids is None and key_segment_ids is not None:
    raise ValueError('key_segment_ids are given, but no segment_ids')
  keys = s if key_segment_ids is not None else t
  for ids, shape in ((segment_ids, (b, t)), (key_segment_ids, (b, keys))):
    if ids is not None and ids.shape != shape:
      raise ValueError(f'segment ids must be {shape}; got {ids.shape}')
  if segment_ids is not None and key_segment_ids is None and t != s:
    raise ValueError(f'with {s} keys for {t} queries key_segment_ids are needed')


def _splash(query, key, value, segment_ids, key_segment_ids, is_causal, logit_cap) -> Array:
  """By jax's Pallas kernel, which wants [N, T, H], T and H multiples of 128: what lacks is zeros.

  A padded key is of a segment that no query is of; with a causal mask alone, no query sees it.
  """
  (n, t), s, h = query.shape[1:3], key.shape[2], value.shape[3]
  if segment_ids is None and not is_causal and _padded(s) != s:
    batch = query.shape[0]
    segment_ids, key_segment_ids = (jnp.zeros((batch, x), jnp.int32) for x in (t, s))
  segments = None
  if segment_ids is not None:
    fill = functools.partial(jnp.pad, mode='constant', constant_values=-(2**31))
    segments = splash.SegmentIds(
      q=jnp.pad(segment_ids, ((0, 0), (0, _padded(t) - t))),
      kv=fill(key_segment_ids, ((0, 0), (0, _padded(s) - s))),
    )
  kernel = splash.make_splash_mha(
    _splash_mask(_padded(t), _padded(s), n, is_causal),
    block_sizes=_splash_blocks(t, s),
    attn_logits_soft_cap=logit_cap or None,
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=CHECKPOINT_NAME,
  )
  mixed = _compact(kernel, *(_filled(x) for x in (query, key, value)), segments)
  return mixed if mixed.shape[2:] == (t, h) else mixed[:, :, :t, :h]


@jax.custom_vjp
def _compact(kernel: splash.SplashAttentionKernel, query, key, value, segments) -> Array:
  """Calls the kernel, and sees to it that what is kept for the backward pass is small at once.

  The kernel writes a softmax's normaliser 128 times, twice as much as its result. XLA would take
  the one that is needed as late as the backward pass, and keep all until then.
  """
  return jax.vmap(kernel)(query, key, value, segments)


def _compact_forward(kernel, query, key, value, segments):
  mixed, pull = jax.vjp(lambda *qkv: jax.vmap(kernel)(*qkv, segments), query, key, value)
  # Each once: what is mixed is kept too, and stays one array (laser_pax/ops/exact.py, settled).
  kept = {id(x): x for x in jax.tree.leaves((mixed, pull)) if jnp.issubdtype(x.dtype, jnp.floating)}
  at_once = dict(zip(kept, jax.lax.optimization_barrier([*kept.values()]), strict=True))
  return jax.tree.map(lambda x: at_once.get(id(x), x), (mixed, pull))


def _compact_backward(pull, cotangent):
  return None, *pull(cotangent), None


_compact.defvjp(_compact_forward, _compact_backward)


def _splash_mask(t: int, s: int, heads: int, is_causal: bool) -> splash_masks.MultiHeadMask:
  mask = splash_masks.CausalMask((t, s)) if is_causal else splash_masks.FullMask((t, s))
  return splash_masks.MultiHeadMask([mask] * heads)


def _splash_blocks(t: int, s: int) -> splash.BlockSizes:
  """Blocks of the forward kernel and of the two backward ones.

  jax's single backward kernel would write a gradient of the queries for each block of keys.
  """
  q, kv = block_size(t), block_size(s)
  return splash.BlockSizes(
    block_q=q,
    block_kv=kv,
    block_q_dkv=q,
    block_kv_dkv=kv,
    block_q_dq=q,
    block_kv_dq=kv,
  )


def _filled(x: Array) -> Array:
  """Pads the last two sizes by zeros to multiples of 128."""
  padding = ((0, 0), (0, 0), *((0, _padded(size) - size) for size in x.shape[2:]))
  return jnp.pad(x, padding)


def _cudnn(query, key, value, segment_ids, key_segment_ids, is_causal, logit_cap) -> Array:
  """By cuDNN's kernel, which has no cap; segments become a mask, which it takes as [B, 1, T, S]."""
  del logit_cap
  mask = None
  if segment_ids is not None:
    mask = (segment_ids[:, :, None] == key_segment_ids[:, None, :])[:, None]
  return jax.nn.dot_product_attention(
    query,
    key,
    value.astype(query.dtype),
    mask=mask,
    scale=1.0,
    is_causal=is_causal,
    implementation='cudnn',
  )
