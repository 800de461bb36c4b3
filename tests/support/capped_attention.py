"""Attention with a logit cap in float64, [B, N, T, H], and inputs for it: standard and LASER."""

import jax.numpy as jnp
import numpy as np

B, N, H = 2, 2, 16


def draw(t, s, dtype='float32', scale=1.0, seed=0):
  rng = np.random.default_rng(seed)
  sizes = (t, s, s, t)
  query, *rest = (rng.standard_normal((B, N, x, H)) for x in sizes)
  return [jnp.asarray(x, dtype) for x in (query * scale * H**-0.5, *rest)]


def segments(t):
  ids = np.arange(t) * 3 // t
  return jnp.asarray(np.stack([ids, ids // 2]), jnp.int32)


def visible(t, s, ids, key_ids, is_causal):
  seen = np.ones((B, 1, t, s), bool)
  if is_causal:
    seen &= np.tril(np.ones((t, s), bool))
  if ids is not None:
    seen &= (np.asarray(ids)[:, :, None] == np.asarray(key_ids)[:, None, :])[:, None]
  return seen


def exact(query, key, value, cotangent, seen, cap, is_laser=False):
  """Output and gradients in float64, by the plain formulas."""
  q, k, v, g = (np.asarray(x, np.float64) for x in (query, key, value, cotangent))
  a = q @ k.swapaxes(-1, -2)
  capped = np.where(seen, cap * np.tanh(a / cap) if cap else a, -np.inf)
  p = np.exp(capped - capped.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  if is_laser:
    top = v.max(-2, keepdims=True)
    output = top + np.log(p @ np.exp(v - top))
    share = np.exp(np.minimum(v[:, :, None] - output[:, :, :, None], 700.0))  # [B, N, T, S, H]
    share = np.where(np.broadcast_to(seen, p.shape)[..., None], share, 0.0)
    d_p = np.einsum('bnth,bntsh->bnts', g, share)
    d_v = np.einsum('bnts,bntsh,bnth->bnsh', p, share, g)
  else:
    output, d_p, d_v = p @ v, g @ v.swapaxes(-1, -2), p.swapaxes(-1, -2) @ g
  d_a = p * (d_p - (p * d_p).sum(-1, keepdims=True))
  if cap:
    d_a *= 1 - np.tanh(a / cap) ** 2
  return output, d_a @ k, d_a.swapaxes(-1, -2) @ q, d_v
