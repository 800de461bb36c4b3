r"""Attention that never forms all T x S logits in memory, by jax's own fused kernels.

    O_th = sum_s p_ts V_sh,   p_t = softmax_s( cap(Q_t . K_s) ),   cap(a) = c tanh(a / c)

over the keys that query t may see: s <= t where causal, and of its own segment. Which kernel serves
depends on the platform, and choice.py decides:

- TPU: jax's Pallas splash attention. It has PAX's logit cap; jax's other TPU kernel has not.
- GPU: cuDNN's, which has no cap. Asked for by name, a Triton kernel with a cap (triton.py).
- Elsewhere, and where a kernel cannot serve: plain jax by blocks of queries (blocks.py).

The values are mixed linearly, so `laser(fused_attention)` is fused LASER.

Shapes: B batch, T query length, S key length, N heads, H head size.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from laser_pax.ops import devices
from laser_pax.ops.beta import Beta
from laser_pax.ops.blocks import CHECKPOINT_NAME, AttentionSpec, attention_by_blocks
from laser_pax.ops.by_heads import heads_swapped
from laser_pax.ops.choice import Case, Kernel, choose
from laser_pax.ops.open_vjp import OpenVjp, vjp_without_output
from laser_pax.ops.triton import triton_attention

if TYPE_CHECKING:
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

Array = jax.Array

# The sizes of the kernel's blocks; it uses the greatest that divides the sequence. A pair of blocks
# that lies wholly above the causal diagonal is not computed: with n blocks a side, (n + 1) / 2n of
# the pairs are. Blocks above 512 exceed the fast memory of a v5e in the backward pass.
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
  kernel: Kernel | None = None,
) -> Array:
  r"""Mixes values by attention probabilities.

      O_th = sum_s p_ts V_sh,   p_t = softmax_s( cap(Q_t . K_s) ),   cap(a) = c tanh(a / c)

  Linear in value, and differentiable in query, key and value, in reverse.

  Args:
    query: [B, T, N, H], scaled beforehand.
    key: [B, S, N, H].
    value: [B, S, N, H].
    segment_ids: [B, T] int32: a query sees the keys of its own segment alone. None: all keys.
    key_segment_ids: [B, S] int32; None: those of the queries.
    is_causal: Whether query t sees only the keys s <= t; T must then be S.
    logit_cap: c; None for no cap.
    kernel: The kernel that is asked for. None, or where it cannot serve: what `choose` says.

  Returns:
    [B, T, N, H] in value's dtype. The softmax and all sums are float32. The row of a query that
    sees no key is finite, and means nothing.

  Raises:
    ValueError: the shapes do not fit.

  Source: [ours], over jax's kernels.
  """
  _check_shapes(query, key, value, segment_ids, key_segment_ids, is_causal)
  attention = functools.partial(
    fused_attention_by_heads, is_causal=is_causal, logit_cap=logit_cap, kernel=kernel
  )
  output = heads_swapped(attention)(query, key, value, segment_ids, key_segment_ids)
  return output.astype(value.dtype)


def fused_attention_by_heads(
  query: Array,
  key: Array,
  value: Array,
  segment_ids: Array | None = None,
  key_segment_ids: Array | None = None,
  *,
  is_causal: bool,
  logit_cap: float | None = None,
  kernel: Kernel | None = None,
) -> Array:
  """Computes `fused_attention` over [B, N, T, H] and [B, N, S, H], for `laser_by_heads`.

  Blocks of queries give float32, whatever value's dtype: LASER rounds less then.
  """
  if segment_ids is not None and key_segment_ids is None:
    key_segment_ids = segment_ids
  spec = AttentionSpec(is_causal, logit_cap)
  kernels = {
    'splash': _splash,
    'cudnn': heads_swapped(_cudnn),
    'triton': triton_attention,
    'blocks': attention_by_blocks,
  }
  lengths, has_segments = (query.shape[2], key.shape[2]), segment_ids is not None
  case = case_of(query, value, lengths, has_segments, logit_cap)
  attention = devices.with_auto_axes(kernels[choose(case, kernel).kernel], _like_output)
  return attention(query, key, value, segment_ids, key_segment_ids, spec)


def case_of(
  query: Array,
  value: Array,
  lengths: tuple[int, int],
  has_segments: bool,
  logit_cap: float | None,
) -> Case:
  """Returns what `choose` needs to know, on the platform that is compiled for.

  Args:
    query: [..., H], scaled beforehand or not.
    value: [..., H].
    lengths: T and S.
    has_segments: Whether there are segment ids.
    logit_cap: As `fused_attention` takes it.
  """
  return Case(
    platform=devices.platform(),
    dtype=query.dtype,
    head_size=query.shape[-1],
    value_size=value.shape[-1],
    lengths=lengths,
    has_segments=has_segments,
    logit_cap=logit_cap,
  )


def _like_output(query: Array, key: Array, value: Array, *others) -> Array:
  """Returns an array that is divided over devices as the output is."""
  return query.sum(-1, keepdims=True) + jnp.zeros(value.shape[3])


def over_mesh(
  attention_fn: Callable[..., Array],
  mesh: Mesh | AbstractMesh,
  batch_axes: object,
  head_axes: object,
) -> Callable[..., Array]:
  """Lets each device attend over its own batch entries and heads; no device sends anything.

  The compiler cannot divide a kernel, so that it must be called in this way. A LASER that wraps the
  kernel belongs inside: each device then decides by its own values.

  Args:
    attention_fn: A function of (query, key, value, segment_ids, key_segment_ids), as
      `fused_attention`.
    mesh: The devices.
    batch_axes: The axes of the mesh that divide the batch: a name, a tuple of names, or None.
    head_axes: The axes of the mesh that divide the heads.

  Returns:
    A function of the same arguments; and of LASER's beta, a number or [N, 1, H], if attention_fn
    takes it.
  """
  heads = PartitionSpec(batch_axes, None, head_axes, None)
  rows = PartitionSpec(batch_axes, None)

  @functools.wraps(attention_fn)
  def attention(
    query: Array,
    key: Array,
    value: Array,
    *segments: Array | None,
    beta: Beta = None,
  ) -> Array:
    arrays = (query, key, value, *segments)
    specs = (heads, heads, heads, *(None if ids is None else rows for ids in segments))
    # The kernel has no rule by which jax could check that its result is divided as said.
    if not isinstance(beta, Array):
      return devices.map_shards(_given(beta, attention_fn), mesh, specs, heads)(*arrays)
    local = devices.map_shards(
      lambda beta, *args: attention_fn(*args, beta=beta),
      mesh,
      (PartitionSpec(head_axes), *specs),
      heads,
    )
    return local(beta, *arrays)

  return attention


def padded_to_lanes(attention_fn: Callable[..., Array]) -> Callable[..., Array]:
  """Pads what the TPU's kernel would pad, but outside of `attention_fn`, such as LASER.

  LASER and the kernel then keep the same arrays for the backward pass, and not one set each. The
  padded keys repeat the last one: the range of a column stays as it is. No query sees them.

  Args:
    attention_fn: A function of (query, key, value, segment_ids, key_segment_ids), not
      causal, or causal with as many keys as queries; heads come before rows: [B, N, T, H].

  Returns:
    A function of the same arguments; and of LASER's beta, a number or [N, 1, H], if attention_fn
    takes it. On other platforms it is `attention_fn`.
  """

  @functools.wraps(attention_fn)
  def attention(
    query: Array,
    key: Array,
    value: Array,
    segment_ids: Array | None = None,
    key_segment_ids: Array | None = None,
    beta: Beta = None,
  ) -> Array:
    t, (s, h) = query.shape[2], value.shape[2:]
    sizes = (t, s, h, query.shape[3])
    if devices.platform() != 'tpu' or all(_padded(size) == size for size in sizes):
      return _given(beta, attention_fn)(query, key, value, segment_ids, key_segment_ids)
    if segment_ids is None:
      segment_ids, key_segment_ids = (jnp.zeros((query.shape[0], x), jnp.int32) for x in (t, s))
    elif key_segment_ids is None:
      key_segment_ids = segment_ids
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, _padded(t) - t)))
    unseen = ((0, 0), (0, _padded(s) - s))
    key_segment_ids = jnp.pad(key_segment_ids, unseen, constant_values=-(2**31))
    repeated = ((0, 0), *unseen, (0, 0))
    key, value = (jnp.pad(x, repeated, mode='edge') for x in (key, value))
    if isinstance(beta, Array) and beta.ndim:
      beta = jnp.pad(beta, ((0, 0), (0, 0), (0, _padded(h) - h)))
    filled = map(_filled, (query, key, value))
    output = _given(beta, attention_fn)(*filled, segment_ids, key_segment_ids)
    return output[:, :, :t, :h]

  return attention


def _given(beta: Beta, attention_fn: Callable[..., Array]) -> Callable[..., Array]:
  """Returns attention_fn with its beta set; without one attention_fn need not know it."""
  return attention_fn if beta is None else functools.partial(attention_fn, beta=beta)


def block_size(length: int) -> int:
  """Returns the size of the blocks of a sequence that is padded to a multiple of 128."""
  return next(block for block in _BLOCKS if _padded(length) % block == 0)


def computed_share(length: int) -> float:
  """Returns the share of all pairs of blocks that the kernel computes in causal attention."""
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


def _splash(query, key, value, segment_ids, key_segment_ids, spec: AttentionSpec) -> Array:
  """Attends by jax's Pallas kernel, for which T and H are padded to multiples of 128.

  A padded key belongs to a segment without queries. With a causal mask alone no query sees it.
  """
  # Pallas takes longer to import than all of this package.
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

  (n, t), s, h = query.shape[1:3], key.shape[2], value.shape[3]
  if segment_ids is None and not spec.is_causal and _padded(s) != s:
    batch = query.shape[0]
    segment_ids, key_segment_ids = (jnp.zeros((batch, x), jnp.int32) for x in (t, s))
  segments = None
  if segment_ids is not None:
    fill = functools.partial(jnp.pad, mode='constant', constant_values=-(2**31))
    segments = splash_attention_kernel.SegmentIds(
      q=jnp.pad(segment_ids, ((0, 0), (0, _padded(t) - t))),
      kv=fill(key_segment_ids, ((0, 0), (0, _padded(s) - s))),
    )
  kernel = splash_attention_kernel.make_splash_mha(
    _splash_mask(_padded(t), _padded(s), n, spec.is_causal),
    block_sizes=splash_attention_kernel.BlockSizes(**_splash_blocks(t, s)),
    attn_logits_soft_cap=spec.logit_cap or None,
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=CHECKPOINT_NAME,
  )
  output = _call_compactly(kernel, *(_filled(x) for x in (query, key, value)), segments)
  return output if output.shape[2:] == (t, h) else output[:, :, :t, :h]


@jax.custom_vjp
def _call_compactly(
  kernel: 'splash_attention_kernel.SplashAttentionKernel', query, key, value, segments
) -> Array:
  """Calls the kernel, and makes what is kept for the backward pass small at once.

  The kernel writes 128 copies of the softmax's normaliser, twice as much as its output. XLA would
  select the one copy that is needed in the backward pass, and keep all until then.
  """
  return jax.vmap(kernel)(query, key, value, segments)


def _compact_forward(kernel, query, key, value, segments):
  output, open_vjp = vjp_without_output(
    lambda *qkv: jax.vmap(kernel)(*qkv, segments), query, key, value
  )
  output, open_vjp = _at_once((output, open_vjp))
  return output, (output, open_vjp)


def _compact_backward(residuals: tuple[Array, OpenVjp], cotangent: Array):
  output, open_vjp = residuals
  return None, *open_vjp(output, cotangent), None


_call_compactly.defvjp(_compact_forward, _compact_backward)


def _at_once(tree):
  """Returns the tree, whose float arrays the compiler may then no longer compute later."""
  leaves, structure = jax.tree.flatten(tree)
  is_float = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]
  floats = [x for x, is_one in zip(leaves, is_float, strict=True) if is_one]
  computed = iter(jax.lax.optimization_barrier(floats))
  leaves = [next(computed) if is_one else x for x, is_one in zip(leaves, is_float, strict=True)]
  return jax.tree.unflatten(structure, leaves)


def _splash_mask(t: int, s: int, heads: int, is_causal: bool):
  """Returns the mask of all heads: causal, or one that hides nothing."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

  mask = splash_attention_mask.CausalMask if is_causal else splash_attention_mask.FullMask
  return splash_attention_mask.MultiHeadMask([mask((t, s))] * heads)


def _splash_blocks(t: int, s: int) -> dict[str, int]:
  """Returns the block sizes of the forward kernel and of the two backward kernels.

  jax's single backward kernel would write a gradient of the queries for each block of keys.
  """
  q, kv = block_size(t), block_size(s)
  return {
    'block_q': q,
    'block_kv': kv,
    'block_q_dkv': q,
    'block_kv_dkv': kv,
    'block_q_dq': q,
    'block_kv_dq': kv,
  }


def _filled(x: Array) -> Array:
  """Pads the last two sizes by zeros to multiples of 128."""
  padding = ((0, 0), (0, 0), *((0, _padded(size) - size) for size in x.shape[2:]))
  return jnp.pad(x, padding)


def _cudnn(query, key, value, segment_ids, key_segment_ids, spec: AttentionSpec) -> Array:
  """Attends by cuDNN's kernel, which has no cap and takes segments as a mask [B, 1, T, S]."""
  mask = None
  if segment_ids is not None:
    mask = (segment_ids[:, :, None] == key_segment_ids[:, None, :])[:, None]
  return jax.nn.dot_product_attention(
    query,
    key,
    value.astype(query.dtype),
    mask=mask,
    scale=1.0,
    is_causal=spec.is_causal,
    implementation='cudnn',
  )
