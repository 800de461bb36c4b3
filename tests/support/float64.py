"""One attention head in float64, output and gradients, for standard attention and for LASER.

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
