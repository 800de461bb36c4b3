r"""Fused attention in plain jax, for platforms without a kernel: a block of queries at a time.

    W_ts = exp(cap(Q_t . K_s) - m_t)  for the keys that t sees, else 0      l_t = sum_s W_ts
    O_th = sum_s W_ts V_sh / l_t

and with g_th the cotangent of O, U_th = g_th / l_t, and d_t = sum_h U_th O_th:

    dV_sh = sum_t W_ts U_th
    dA_ts = W_ts (sum_h U_th V_sh - d_t) cap'(A_ts)        A = Q K^T
    dQ_th = sum_s dA_ts K_sh                               dK_sh = sum_t dA_ts Q_th

A causal block of queries meets the keys up to its end and no others: of n blocks a side
(n + 1) / 2n is computed. The logits are formed again in the backward pass, which costs less than to
keep and to read them; probabilities are never divided by their sum, the results are.

Shapes: B batch, T query length, S key length, N heads, H head size.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

Array = jax.Array
F32 = jnp.float32

# What a checkpoint policy may save so that a forward pass is not run again: the mixture and the
# softmax's normaliser. The name is Praxis's own for an attention's output.
CHECKPOINT_NAME = 'context'

# Fewer blocks compute more of what a causal mask hides; more have less to do each, and take longer
# to compile. On two cores 64 rows of 256 took less time than 32 or 128, and 256 rows of 4,096 took
# 0.93 of what 512 take.
_MIN_ROWS = 64
_MAX_BLOCKS = 8
# exp of a logit of this size, summed over all keys there may be, and its inverse, are float32 and
# bfloat16: no greatest logit need be looked for. PAX's cap is 50.
_SAFE_CAP = 60.0


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
    key_segment_ids: [B, S] int32, or None.
    is_causal: Whether query t sees only the keys s <= t; T must then be S.
    logit_cap: c of cap(a) = c tanh(a / c); None for none.

  Returns:
    [B, N, T, H] in value's dtype; the softmax is float32, and sums are accumulated in float32. 0
    in the row of a query that sees no key.

  Source: [ours]; d_t by the output is FlashAttention's.
  """
  return _forward(query, key, value, segment_ids, key_segment_ids, is_causal, logit_cap)[0]


def _forward(query, key, value, segment_ids, key_segment_ids, is_causal, logit_cap):
  logit_cap, outputs, shifts, sums = logit_cap or None, [], [], []
  for rows, keys in _blocks(query.shape[2], key.shape[2], is_causal):
    capped = _capped(_logits(query[:, :, rows], key[:, :, keys]), logit_cap)
    seen = _seen(rows, keys, segment_ids, key_segment_ids, is_causal)
    shift = _shift(capped, seen, logit_cap, value.dtype)
    weights = _weights(capped, seen, shift).astype(value.dtype)
    # Of the weights as they are rounded. A product: a sum along rows is slower on a CPU.
    ones = jnp.ones((weights.shape[3], 1), value.dtype)
    total = jnp.einsum('BNTS,SO->BNTO', weights, ones, preferred_element_type=F32)
    total = jnp.where(total == 0, 1.0, total)
    outputs.append(_einsum('BNTS,BNSH->BNTH', weights, value[:, :, keys]) / total)
    shifts.append(shift)
    sums.append(total)
  output = checkpoint_name(jnp.concatenate(outputs, axis=2).astype(value.dtype), CHECKPOINT_NAME)
  total = checkpoint_name(jnp.concatenate(sums, axis=2), CHECKPOINT_NAME)
  return output, (query, key, value, segment_ids, key_segment_ids, output, total, shifts)


def _backward(is_causal, logit_cap, residuals, cotangent):
  query, key, value, segment_ids, key_segment_ids, output, total, shifts = residuals
  logit_cap = logit_cap or None
  by_total = cotangent.astype(F32) / total
  centers = jnp.sum(by_total * output.astype(F32), axis=-1, keepdims=True)
  by_total = by_total.astype(value.dtype)
  d_query, d_key, d_value = [], jnp.zeros(key.shape, F32), jnp.zeros(value.shape, F32)
  for (rows, keys), shift in zip(
    _blocks(query.shape[2], key.shape[2], is_causal), shifts, strict=True
  ):
    q, k, v, u = query[:, :, rows], key[:, :, keys], value[:, :, keys], by_total[:, :, rows]
    capped = _capped(_logits(q, k), logit_cap)
    weights = _weights(capped, _seen(rows, keys, segment_ids, key_segment_ids, is_causal), shift)
    d_logits = weights * (_einsum('BNTH,BNSH->BNTS', u, v) - centers[:, :, rows])
    if logit_cap:
      d_logits *= 1.0 - jnp.square(capped / logit_cap)
    d_logits = d_logits.astype(query.dtype)
    d_query.append(_einsum('BNTS,BNSH->BNTH', d_logits, k))
    d_key = d_key.at[:, :, keys].add(_einsum('BNTS,BNTH->BNSH', d_logits, q))
    weights = weights.astype(value.dtype)
    d_value = d_value.at[:, :, keys].add(_einsum('BNTS,BNTH->BNSH', weights, u))
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


def _logits(query: Array, key: Array) -> Array:
  return _einsum('BNTH,BNSH->BNTS', query, key)


def _einsum(equation: str, *operands: Array) -> Array:
  return jnp.einsum(equation, *operands, preferred_element_type=F32)


def _capped(logits: Array, cap: float | None) -> Array:
  return cap * jnp.tanh(logits / cap) if cap else logits


def _seen(rows, keys, segment_ids, key_segment_ids, is_causal) -> Array | None:
  """Returns what these rows see of these keys, [B|1, 1, T, S]; None: all."""
  seen = None
  if is_causal:
    seen = (jnp.arange(rows.start, rows.stop)[:, None] >= jnp.arange(keys.stop))[None, None]
  if segment_ids is not None:
    same = segment_ids[:, None, rows, None] == key_segment_ids[:, None, None, keys]
    seen = same if seen is None else seen & same
  return seen


def _shift(capped: Array, seen: Array | None, cap: float | None, dtype) -> Array | None:
  """Returns what is taken from each row's logits, [B, N, T, 1], or None where nothing need be."""
  if cap and cap <= _SAFE_CAP and dtype != jnp.float16:
    return None
  return jnp.max(capped, axis=-1, keepdims=True, where=seen, initial=jnp.finfo(F32).min)


def _weights(capped: Array, seen: Array | None, shift: Array | None) -> Array:
  weights = jnp.exp(capped if shift is None else capped - shift)
  return weights if seen is None else jnp.where(seen, weights, 0.0)
