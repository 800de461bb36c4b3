"""One attention head in float64, output and gradients, for standard attention and for LASER.

As laser_pax/ops/oracle.py, whose results these equal (test_precision.py), but by matrix products:
fast enough for thousands of positions, right where a column's values span less than 1,400.
"""

import numpy as np


def probabilities(query, key, seen):
  """softmax(Q K^T / sqrt(H)) [T, S]; a row that sees nothing attends to all keys alike."""
  logits = query @ key.T / np.sqrt(query.shape[1])
  blind = ~seen.any(1, keepdims=True)
  logits = np.where(blind, 0.0, np.where(seen, logits, -np.inf))
  weights = np.exp(logits - logits.max(1, keepdims=True))
  return weights / weights.sum(1, keepdims=True)


def _of_logits(query, key, seen, d_logits):
  d_logits = np.where(seen, d_logits, 0) / np.sqrt(query.shape[1])
  return d_logits @ key, d_logits.T @ query


def standard(query, key, value, seen, cotangent):
  """Returns the output [T, H] and the gradients of query, key and value."""
  p = probabilities(query, key, seen)
  d_p = cotangent @ value.T
  d_logits = p * (d_p - (p * d_p).sum(1, keepdims=True))
  return p @ value, *_of_logits(query, key, seen, d_logits), p.T @ cotangent


def laser(query, key, value, seen, cotangent):
  """Returns the output [T, H] and the gradients of query, key and value."""
  p = probabilities(query, key, seen)
  middle = (value.max(0) + value.min(0)) / 2
  e = np.exp(value - middle)
  mixed = p @ e
  pulled = cotangent / mixed
  d_logits = p * (pulled @ e.T - cotangent.sum(1, keepdims=True))
  return middle + np.log(mixed), *_of_logits(query, key, seen, d_logits), e * (p.T @ pulled)
