r"""Fused attention in plain jax, for platforms without a kernel: a block of queries at a time.

    W_ts = exp(cap(A_ts) - m_t)      A = Q K^T, m_t the greatest of the keys that t sees
                                     0 for a key that t does not see
    O_th = sum_s W_ts V_sh / l_t     l_t = sum_s W_ts

and with g_th the cotangent of O, P = W / l and d_t = sum_sh P_ts g_th V_sh:

    dV_sh = sum_t P_ts g_th
    dA_ts = P_ts (sum_h g_th V_sh - d_t) cap'(A_ts)
    dQ_th = sum_s dA_ts K_sh                               dK_sh = sum_t dA_ts Q_th

A causal block of queries meets the keys up to its end alone: of n x n pairs of blocks the share
(n + 1) / 2n is computed. The backward pass forms the logits again, a block at a time, from query
and key. Nothing else is kept, whatever the checkpoint policy.

Shapes: B batch, T query length, S key length, N heads, H head size.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from laser_pax.ops.products import einsum

Array = jax.Array
F32 = jnp.float32

# A checkpoint policy may save what bears this name, so that a forward pass is not run again: the
# output, and a kernel's normaliser of the softmax. Praxis gives it to an attention's output.
CHECKPOINT_NAME = 'context'

# Fewer blocks compute more of what a causal mask hides. More blocks have less to do each, and take
# longer to compile.
_MIN_ROWS = 64
_MAX_BLOCKS = 8
_HIDDEN = -1e30  # Finite, so that a row that sees nothing stays finite.


class AttentionSpec(NamedTuple):
  """What attention computes, beside its arrays.

  Attributes:
    is_causal: Whether query t sees only the keys s <= t; T must then be S.
    logit_cap: c of cap(a) = c tanh(a / c); None: cap(a) = a.
  """

  is_causal: bool
  logit_cap: float | None = None

  def cap(self, logits: Array) -> Array:
    """Caps logits; as they are without a cap."""
    c = self.logit_cap
    return c * jnp.tanh(logits / c) if c else logits

  def cap_slope(self, capped: Array) -> Array:
    """Returns the derivative of a cap that there is, where its result is `capped`."""
    return 1.0 - jnp.square(capped / self.logit_cap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attention_by_blocks(
  query: Array,
  key: Array,
  value: Array,
  segment_ids: Array | None,
  key_segment_ids: Array | None,
  spec: AttentionSpec,
) -> Array:
  """Mixes values by attention probabilities; see this file's head.

  Args:
    query: [B, N, T, H], scaled beforehand.
    key: [B, N, S, H].
    value: [B, N, S, H].
    segment_ids: [B, T] int32, or None: a query sees the keys of its own segment alone.
    key_segment_ids: [B, S] int32; None exactly if segment_ids is.
    spec: Whether it is causal, and the cap.

  Returns:
    [B, N, T, H], float32, as the softmax and all products are. The row of a query that sees no key
    is a mean of values. It can be differentiated in reverse.

  Source: [ours].
  """
  return _forward(query, key, value, segment_ids, key_segment_ids, spec)[0]


def _forward(query, key, value, segment_ids, key_segment_ids, spec: AttentionSpec):
  outputs = []
  for rows, keys in _blocks(query.shape[2], key.shape[2], spec.is_causal):
    visible = _visible(rows, keys, segment_ids, key_segment_ids, spec.is_causal)
    capped = spec.cap(_logits(query[:, :, rows], key[:, :, keys]))
    weights, total = _weights(capped, visible)
    outputs.append(einsum('BNTS,BNSH->BNTH', weights, value[:, :, keys]) / total)
  output = checkpoint_name(jnp.concatenate(outputs, axis=2), CHECKPOINT_NAME)
  return output, (query, key, value, segment_ids, key_segment_ids)


def _backward(spec: AttentionSpec, residuals, cotangent):
  query, key, value, segment_ids, key_segment_ids = residuals
  d_query, d_key, d_value = [], jnp.zeros(key.shape, F32), jnp.zeros(value.shape, F32)
  for rows, keys in _blocks(query.shape[2], key.shape[2], spec.is_causal):
    q, k, v, g = query[:, :, rows], key[:, :, keys], value[:, :, keys], cotangent[:, :, rows]
    visible = _visible(rows, keys, segment_ids, key_segment_ids, spec.is_causal)
    capped = spec.cap(_logits(q, k))
    weights, total = _weights(capped, visible)
    probabilities = weights / total
    d_probabilities = einsum('BNTH,BNSH->BNTS', g, v)
    centers = jnp.sum(probabilities * d_probabilities, axis=-1, keepdims=True)
    d_logits = probabilities * (d_probabilities - centers)
    if spec.logit_cap:
      d_logits *= spec.cap_slope(capped)
    if segment_ids is not None:  # A row that sees nothing has probabilities all the same.
      d_logits = jnp.where(visible, d_logits, 0.0)
    d_query.append(einsum('BNTS,BNSH->BNTH', d_logits, k))
    d_key = d_key.at[:, :, keys].add(einsum('BNTS,BNTH->BNSH', d_logits, q))
    d_value = d_value.at[:, :, keys].add(einsum('BNTS,BNTH->BNSH', probabilities, g))
  d_query = jnp.concatenate(d_query, axis=2).astype(query.dtype)
  return d_query, d_key.astype(key.dtype), d_value.astype(value.dtype), None, None


attention_by_blocks.defvjp(_forward, _backward)


def computed_share(length: int) -> float:
  """Returns the share of all pairs that causal attention computes."""
  cuts = _blocks(length, length, is_causal=True)
  return sum((rows.stop - rows.start) * keys.stop for rows, keys in cuts) / length**2


def _blocks(t: int, s: int, is_causal: bool) -> list[tuple[slice, slice]]:
  """Returns the rows of each block, and the keys that they may see."""
  size = max(_MIN_ROWS, -(-t // _MAX_BLOCKS))
  starts = range(0, t, size)
  return [
    (slice(start, min(start + size, t)), slice(0, min(start + size, t) if is_causal else s))
    for start in starts
  ]


def _logits(query: Array, key: Array) -> Array:
  return einsum('BNTH,BNSH->BNTS', query, key)


def _visible(rows, keys, segment_ids, key_segment_ids, is_causal: bool) -> Array | None:
  """Returns which of these keys each of these rows sees, [B|1, 1, T, S]; None: all."""
  visible = None
  if is_causal:
    visible = (jnp.arange(rows.start, rows.stop)[:, None] >= jnp.arange(keys.stop))[None, None]
  if segment_ids is not None:
    is_same = segment_ids[:, None, rows, None] == key_segment_ids[:, None, None, keys]
    visible = is_same if visible is None else visible & is_same
  return visible


def _weights(capped: Array, visible: Array | None) -> tuple[Array, Array]:
  """Returns W [B, N, T, S], float32, and the sum of each row, [B, N, T, 1]."""
  logits = capped if visible is None else jnp.where(visible, capped, _HIDDEN)
  # The maximum is subtracted even where a cap bounds the logits: weights are then at most 1, and
  # LASER's values may use the rest of float32's range (columns.py, WIDTH).
  weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  # A product: a sum along rows is slower on a CPU.
  ones = jnp.ones((weights.shape[3], 1), F32)
  return weights, einsum('BNTS,SO->BNTO', weights, ones)
