"""One attention head in float64, with gradients: standard attention, LASER, and their family.

The results equal those of laser_pax/ops/oracle.py (test_precision.py), but come from matrix
products: fast enough for thousands of positions.
"""

import functools

import numpy as np

# A level of values spans so much: with the logarithm of a probability it stays in the range of exp.
_LEVEL = 600.0


def probabilities(query, key, seen):
  """softmax(Q K^T / sqrt(H)) [T, S]; a row that sees nothing attends to all keys alike."""
  arrays = [np.asarray(query), np.asarray(key), np.asarray(seen)]
  return _probabilities(*((x.tobytes(), x.shape, x.dtype) for x in arrays))


@functools.lru_cache(maxsize=32)  # LASER and standard attention share them, and so do many values.
def _probabilities(*arrays):
  query, key, seen = (np.frombuffer(data, dtype).reshape(shape) for data, shape, dtype in arrays)
  logits = query @ key.T / np.sqrt(query.shape[1])
  blind = ~seen.any(1, keepdims=True)
  logits = np.where(blind, 0.0, np.where(seen, logits, -np.inf))
  weights = np.exp(logits - logits.max(1, keepdims=True))
  weights /= weights.sum(1, keepdims=True)
  weights.setflags(write=False)
  return weights


def _query_and_key_gradients(query, key, seen, d_logits):
  d_logits = np.where(seen, d_logits, 0) / np.sqrt(query.shape[1])
  return d_logits @ key, d_logits.T @ query


def standard(query, key, value, seen, cotangent):
  """Returns the output [T, H] and the gradients of query, key and value."""
  p = probabilities(query, key, seen)
  d_p = cotangent @ value.T
  d_logits = p * (d_p - (p * d_p).sum(1, keepdims=True))
  return p @ value, *_query_and_key_gradients(query, key, seen, d_logits), p.T @ cotangent


def _levels(value):
  """Returns pairs (c [1, H], exp(V - c) [S, H]): each value is in one pair, in others 0 is."""
  levels, left = [], np.ones(value.shape, bool)
  while left.any():
    top = np.where(left, value, -np.inf).max(0, keepdims=True)
    members = left & (value >= top - _LEVEL)
    center = np.where(np.isfinite(top), top, 0.0)
    levels.append((center, np.where(members, np.exp(np.minimum(value - center, 0.0)), 0.0)))
    left &= ~members
  return levels


def laser(query, key, value, seen, cotangent):
  """Returns the output [T, H] and the gradients of query, key and value."""
  p = probabilities(query, key, seen)
  levels = _levels(value)
  with np.errstate(divide='ignore'):
    output = np.logaddexp.reduce([center + np.log(p @ e) for center, e in levels])
  d_p, d_value = -cotangent.sum(1, keepdims=True), 0.0
  for center, e in levels:
    # Above the bound there is nothing that the row sees.
    scaled = cotangent * np.exp(np.minimum(center - output, 700.0))
    d_p = d_p + scaled @ e.T
    d_value = d_value + e * (p.T @ scaled)
  return output, *_query_and_key_gradients(query, key, seen, p * d_p), d_value


def family(query, key, value, seen, cotangent, beta):
  """Returns log(P exp(beta V)) / beta, and the gradients of query, key, value, and beta [H].

  Args:
    query: [T, H].
    key: [S, H].
    value: [S, H].
    seen: Booleans [T, S].
    cotangent: [T, H].
    beta: A number, 0 or not nearer to it than 1e-3.
  """
  if beta == 0:
    output, *gradients = standard(query, key, value, seen, cotangent)
    variance = probabilities(query, key, seen) @ value**2 - output**2
    return output, *gradients, (cotangent * variance).sum(0) / 2
  output, *d_logits, d_value = laser(query, key, beta * value, seen, cotangent)
  output, d_logits = output / beta, [d / beta for d in d_logits]
  # b dO/db = sum_s V_s dO/dV_s - O, as O(c b, V / c) is O(b, V) / c.
  d_beta = ((value * d_value).sum(0) - (cotangent * output).sum(0)) / beta
  return output, *d_logits, d_value, d_beta
