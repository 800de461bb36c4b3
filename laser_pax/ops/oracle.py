"""LASER in float64 that never overflows or underflows: every other form is measured against it.

The logarithm of each weight is added to the value. A log-sum-exp over keys follows, with a maximum
of its own for each row and column. It is slow, as it forms [T, S, H]; it is meant to be plain.
"""

import numpy as np


def _log_probabilities(query, key, mask, scale):
  """Log softmax(scale Q K^T) over visible keys, [B, N, T, S]; -inf where masked.

  A fully masked row attends to all keys alike.
  """
  logits = scale * np.einsum('BTNH,BSNH->BNTS', query, key)
  if mask is not None:
    mask = np.broadcast_to(mask, logits.shape)
    any_visible = mask.any(-1, keepdims=True)
    logits = np.where(any_visible, np.where(mask, logits, -np.inf), 0.0)
  return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def _prepare(query, key, value, mask, scale):
  query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
  scale = query.shape[-1] ** -0.5 if scale is None else scale
  return query, key, value, _log_probabilities(query, key, mask, scale), scale


def _heads(log_p, value):
  """Yields (b, n, log p [T, S, 1] + v [1, S, H]) for each batch element and head."""
  for b, n in np.ndindex(log_p.shape[:2]):
    yield b, n, log_p[b, n, :, :, None] + value[b, None, :, n, :]


def laser_oracle(query, key, value, mask=None, scale: float | None = None) -> np.ndarray:
  """O_th = log sum_s p_ts exp(V_sh), p = softmax(scale Q K^T), for any finite V and any mask.

  Args:
    query: [B, T, N, H], of any dtype that numpy converts to float64.
    key: [B, S, N, H].
    value: [B, S, N, H].
    mask: None, or booleans that broadcast to [B, N, T, S]: True where key s is visible to query t.
      A row that sees nothing attends to all keys alike, as in Praxis.
    scale: The factor of the logits; None: H ** -0.5.

  Returns:
    O, [B, T, N, H], float64.
  """
  _, _, value, log_p, _ = _prepare(query, key, value, mask, scale)
  output = np.empty((value.shape[0], log_p.shape[2], *value.shape[2:]))
  for b, n, terms in _heads(log_p, value):
    output[b, :, n] = np.logaddexp.reduce(terms, axis=1)
  return output


def laser_oracle_vjp(
  query, key, value, cotangent, mask=None, scale: float | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Gradients of sum(cotangent * laser_oracle(...)) for query, key and value, in closed form.

  With a the logits, o the output, and w_tsh = p_ts exp(V_sh - O_th), which sums to 1 over s:

      dO_th / dV_sh = w_tsh
      dO_th / da_ts = w_tsh - p_ts

  Args:
    query: As in `laser_oracle`, like key, value, mask and scale.
    key: [B, S, N, H].
    value: [B, S, N, H].
    cotangent: The cotangent of the output, [B, T, N, H].
    mask: As in `laser_oracle`.
    scale: As in `laser_oracle`.

  Returns:
    The three gradients, float64, shaped as query, key and value.
  """
  query, key, value, log_p, scale = _prepare(query, key, value, mask, scale)
  cotangent = np.asarray(cotangent, np.float64)
  d_logits, d_value = np.zeros(log_p.shape), np.zeros(value.shape)
  visible = None if mask is None else np.broadcast_to(mask, log_p.shape)
  for b, n, terms in _heads(log_p, value):
    output = np.logaddexp.reduce(terms, axis=1, keepdims=True)
    weights = np.exp(terms - output)
    g = cotangent[b, :, n]
    d_value[b, :, n] = np.einsum('th,tsh->sh', g, weights)
    d_logits[b, n] = np.einsum('th,tsh->ts', g, weights - np.exp(log_p[b, n])[:, :, None])
  if visible is not None:
    d_logits = np.where(visible, d_logits, 0.0)
  d_query = scale * np.einsum('BNTS,BSNH->BTNH', d_logits, key)
  d_key = scale * np.einsum('BNTS,BTNH->BSNH', d_logits, query)
  return d_query, d_key, d_value
