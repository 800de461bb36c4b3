"""LASER in float64 that never overflows or underflows: every other form is measured against it.

The logarithm of each weight is added to the value. A log-sum-exp over keys follows, with a maximum
of its own for each row and column. It is slow, as it forms [T, S, H]; it is meant to be plain.
"""

import math

import numpy as np

# A beta nearer to 0 is taken for this one: float64 cannot tell the difference.
_LEAST = 1e-100


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


def _prepare(query, key, value, mask, scale, beta):
  query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
  scale = query.shape[-1] ** -0.5 if scale is None else scale
  beta = np.asarray(1.0 if beta is None else beta, np.float64)
  beta = np.where(abs(beta) < _LEAST, _LEAST, beta)
  log_p = _log_probabilities(query, key, mask, scale)
  return query, key, value, log_p, scale, np.broadcast_to(beta, value.shape[2:])


def _heads(log_p, value, beta):
  """Yields, for each batch element b and head n, b, n and what the formulas need.

  Yields:
    b: The batch element.
    n: The head.
    p: Its probabilities, [T, S, 1].
    output: O, [T, H].
    gap: V - O, [T, S, H].
    weights: p exp(beta gap), [T, S, H], which sum to 1 over S.
  """
  for b, n in np.ndindex(log_p.shape[:2]):
    log_weights, columns = log_p[b, n, :, :, None], beta[n]
    p = np.exp(log_weights)
    mean = (p * value[b, None, :, n]).sum(1, keepdims=True)
    x = columns * (value[b, None, :, n] - mean)
    is_small = abs(x) < 1
    above = np.where(  # Where all that a row sees is small, beta may be near 0.
      (is_small | (p == 0)).all(1, keepdims=True),
      np.log1p((p * np.expm1(np.where(is_small, x, 0.0))).sum(1, keepdims=True)),
      np.logaddexp.reduce(log_weights + x, axis=1, keepdims=True),
    )
    output = mean + above / columns
    yield b, n, p, output[:, 0], (x - above) / columns, np.exp(log_weights + x - above)


def laser_oracle(query, key, value, mask=None, scale: float | None = None, beta=None) -> np.ndarray:
  """O_th = log sum_s p_ts exp(V_sh), p = softmax(scale Q K^T), for any finite V and any mask.

  With beta it is O_th = log( sum_s p_ts exp(beta_h V_sh) ) / beta_h, whose limit at 0 is standard
  attention.

  Args:
    query: [B, T, N, H], of any dtype that numpy converts to float64.
    key: [B, S, N, H].
    value: [B, S, N, H].
    mask: None, or booleans that broadcast to [B, N, T, S]: True where key s is visible to query t.
      A row that sees nothing attends to all keys alike, as in Praxis.
    scale: The factor of the logits; None: H ** -0.5.
    beta: None, or what broadcasts to [N, H]; finite. None: 1, LASER.

  Returns:
    O, [B, T, N, H], float64.
  """
  _, _, value, log_p, _, beta = _prepare(query, key, value, mask, scale, beta)
  output = np.empty((value.shape[0], log_p.shape[2], *value.shape[2:]))
  for b, n, _, head_output, *_ in _heads(log_p, value, beta):
    output[b, :, n] = head_output
  return output


def laser_oracle_vjp(
  query, key, value, cotangent, mask=None, scale: float | None = None, beta=None
) -> tuple[np.ndarray, ...]:
  """Gradients of sum(cotangent * laser_oracle(...)) for query, key and value, in closed form.

  With a the logits, o the output, and w_tsh = p_ts exp(beta (V_sh - O_th)), which sums to 1 over s:

      dO_th / dV_sh = w_tsh
      dO_th / da_ts = (w_tsh - p_ts) / beta  = p_ts expm1(beta (V_sh - O_th)) / beta
      dO_th / dbeta = (sum_s w_tsh V_sh - O_th) / beta
                    = sum_s p_ts (V_sh - O_th)^2 r(beta (V_sh - O_th))

  with r(x) = (1 + (x - 1) e^x) / x^2. The second forms are the same, as w and p both sum to 1, and
  hold at beta = 0 too, where r is 1/2.

  Args:
    query: As in `laser_oracle`, like key, value, mask, scale and beta.
    key: [B, S, N, H].
    value: [B, S, N, H].
    cotangent: The cotangent of the output, [B, T, N, H].
    mask: As in `laser_oracle`.
    scale: As in `laser_oracle`.
    beta: As in `laser_oracle`.

  Returns:
    The gradients, float64, shaped as query, key and value; and where beta is given that of beta,
    [N, H].
  """
  query, key, value, log_p, scale, columns = _prepare(query, key, value, mask, scale, beta)
  cotangent = np.asarray(cotangent, np.float64)
  d_logits, d_value, d_beta = np.zeros(log_p.shape), np.zeros(value.shape), np.zeros(columns.shape)
  for b, n, p, _, gap, weights in _heads(log_p, value, columns):
    g = cotangent[b, :, n]
    d_value[b, :, n] = np.einsum('th,tsh->sh', g, weights)
    d_logits[b, n] = np.einsum('th,tsh->ts', g, _bent(p, weights, gap, columns[n]))
    d_beta[n] += np.einsum('th,tsh->h', g, _spread(p, weights, gap, columns[n]))
  if mask is not None:
    d_logits = np.where(np.broadcast_to(mask, log_p.shape), d_logits, 0.0)
  d_query = scale * np.einsum('BNTS,BSNH->BTNH', d_logits, key)
  d_key = scale * np.einsum('BNTS,BTNH->BSNH', d_logits, query)
  return (d_query, d_key, d_value) if beta is None else (d_query, d_key, d_value, d_beta)


def _bent(p, weights, gap, beta):
  """Returns p expm1(beta gap) / beta, where weights are p exp(beta gap)."""
  near = abs(beta * gap) < 1
  return np.where(near, p * np.expm1(np.where(near, beta * gap, 0.0)), weights - p) / beta


def _spread(p, weights, gap, beta):
  """Returns p gap^2 r(beta gap), where weights are p exp(beta gap)."""
  x = beta * gap
  near = abs(x) < 0.1
  series = sum((n + 1) / math.factorial(n + 2) * np.where(near, x, 0.0) ** n for n in range(12))
  return np.where(near, p * gap**2 * series, (p + (x - 1) * weights) / beta**2)
