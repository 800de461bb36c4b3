r"""Fused attention in plain jax, for platforms without a kernel: a block of queries at a time.

    W_ts = exp(cap(A_ts) - m_t)      A = Q K^T, m_t its greatest that t sees; 0 for what it does not
    O_th = sum_s W_ts V_sh / l_t     l_t = sum_s W_ts

and with g_th the cotangent of O, P = W / l and d_t = sum_sh P_ts g_th V_sh:

    dV_sh = sum_t P_ts g_th
    dA_ts = P_ts (sum_h g_th V_sh - d_t) cap'(A_ts)
    dQ_th = sum_s dA_ts K_sh                               dK_sh = sum_t dA_ts Q_th

A causal block of queries meets the keys up to its end and no others: of n blocks a side
(n + 1) / 2n is computed. Logits are formed a block at a time, and again in the backward pass, of
query and key alone: nothing else is kept, whatever the checkpoint policy.

Shapes: B batch, T query length, S key length, N heads, H head size.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

Array = jax.Array
F32 = jnp.float32

# What a checkpoint policy may save so that a forward pass is not run again: the mixture, and of a
# kernel the softmax's normaliser. The name is Praxis's own for an attention's output.
CHECKPOINT_NAME = 'context'

# Fewer blocks compute more of what a causal mask hides; more have less to do each, and take longer
# to compile.
_MIN_ROWS = 64
_MAX_BLOCKS = 8
_HIDDEN = -1e30  # A logit that is not seen: finite, so that a row that sees nothing stays finite.


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def attention_by_blocks(
  query: Array,
  key: Array,
  value: Array,
  segment_ids: Array | None,
  key_segment_ids: Array | None,
  is_causal: bool,
  logit_cap: float | None,
) -> Array:
  """Mixes values by attention probabilities; see this file's head.

  Args:
    query: [B, N, T, H], scaled beforehand.
    key: [B, N, S, H].
    value: [B, N, S, H].
    segment_ids: [B, T] int32, or None: a query sees the keys of its own segment alone.
    key_segment_ids: [B, S] int32; None exactly if segment_ids is.
    is_causal: Whether query t sees only the keys s <= t; T must then be S.
    logit_cap: c of cap(a) = c tanh(a / c); None for none.

  Returns:
    [B, N, T, H] in value's dtype; the softmax is float32, and sums are accumulated in float32. The
    row of a query that sees no key is a mean of values. It can be differentiated in reverse.

  Source: [ours].
  """
  return _forward(query, key, value, segment_ids, key_segment_ids, is_causal, logit_cap)[0]


def _forward(query, key, value, segment_ids, key_segment_ids, is_causal, logit_cap):
  outputs = []
  for rows, keys in _blocks(query.shape[2], key.shape[2], is_causal):
    seen = _seen(rows, keys, segment_ids, key_segment_ids, is_causal)
    capped = _capped(query[:, :, rows], key[:, :, keys], logit_cap)
    weights, total = _weights(capped, seen, value.dtype)
    outputs.append(_einsum('BNTS,BNSH->BNTH', weights, value[:, :, keys]) / total)
  output = checkpoint_name(jnp.concatenate(outputs, axis=2).astype(value.dtype), CHECKPOINT_NAME)
  return output, (query, key, value, segment_ids, key_segment_ids)


def _backward(is_causal, logit_cap, residuals, cotangent):
  query, key, value, segment_ids, key_segment_ids = residuals
  d_query, d_key, d_value = [], jnp.zeros(key.shape, F32), jnp.zeros(value.shape, F32)
  for rows, keys in _blocks(query.shape[2], key.shape[2], is_causal):
    q, k, v, g = query[:, :, rows], key[:, :, keys], value[:, :, keys], cotangent[:, :, rows]
    seen = _seen(rows, keys, segment_ids, key_segment_ids, is_causal)
    capped = _capped(q, k, logit_cap)
    weights, total = _weights(capped, seen, value.dtype)
    probabilities = weights.astype(F32) / total
    by_probability = _einsum('BNTH,BNSH->BNTS', g, v)
    centers = jnp.sum(probabilities * by_probability, axis=-1, keepdims=True)
    d_logits = probabilities * (by_probability - centers)
    if logit_cap:
      d_logits *= 1.0 - jnp.square(capped / logit_cap)
    if segment_ids is not None:  # Of a row that sees nothing probabilities are not 0.
      d_logits = jnp.where(seen, d_logits, 0.0)
    d_logits = d_logits.astype(query.dtype)
    d_query.append(_einsum('BNTS,BNSH->BNTH', d_logits, k))
    d_key = d_key.at[:, :, keys].add(_einsum('BNTS,BNTH->BNSH', d_logits, q))
    probabilities = probabilities.astype(value.dtype)
    d_value = d_value.at[:, :, keys].add(_einsum('BNTS,BNTH->BNSH', probabilities, g))
  d_query = jnp.concatenate(d_query, axis=2).astype(query.dtype)
  return d_query, d_key.astype(key.dtype), d_value.astype(value.dtype), None, None


attention_by_blocks.defvjp(_forward, _backward)


def computed_share(length: int) -> float:
  """Returns the share of all pairs that is computed of causal attention."""
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


def _capped(query: Array, key: Array, cap: float | None) -> Array:
  logits = _einsum('BNTH,BNSH->BNTS', query, key)
  return cap * jnp.tanh(logits / cap) if cap else logits


def _einsum(equation: str, *operands: Array) -> Array:
  return jnp.einsum(equation, *operands, preferred_element_type=F32)


def _seen(rows, keys, segment_ids, key_segment_ids, is_causal) -> Array | None:
  """Returns what these rows see of these keys, [B|1, 1, T, S]; None: all."""
  seen = None
  if is_causal:
    seen = (jnp.arange(rows.start, rows.stop)[:, None] >= jnp.arange(keys.stop))[None, None]
  if segment_ids is not None:
    same = segment_ids[:, None, rows, None] == key_segment_ids[:, None, None, keys]
    seen = same if seen is None else seen & same
  return seen


def _weights(capped: Array, seen: Array | None, dtype: jnp.dtype) -> tuple[Array, Array]:
  """Returns W [B, N, T, S] in dtype, and the sum of each row as it is rounded, [B, N, T, 1]."""
  logits = capped if seen is None else jnp.where(seen, capped, _HIDDEN)
  # As far as 1, whatever the cap: LASER's values need the rest of the range (exact.py, WIDTH).
  weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True)).astype(dtype)
  # A product: a sum along rows is slower on a CPU.
  ones = jnp.ones((weights.shape[3], 1), dtype)
  return weights, _einsum('BNTS,SO->BNTO', weights, ones)
