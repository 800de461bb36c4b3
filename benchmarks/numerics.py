"""Error of LASER against float64 by the size of the values: every way to compute it, side by side.

`python benchmarks/numerics.py` (some minutes on a CPU) writes docs/results/numerics.jsonl and
docs/pictures/numerics.png. One causal head, query and key of standard deviation 1, values of a
given one; errors are relative root mean squares, of the very inputs that were given (rounded to the
dtype). Standard attention is measured against standard attention in float64, all others against
LASER.
"""

import functools
import json
import pathlib
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np

from laser_pax import ops

DOCS = pathlib.Path(__file__).parent.parent / 'docs'
LENGTH, HEAD_SIZE, KEYS_PER_BLOCK, CLAMP = 512, 128, 64, 15.0
SCALES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
DTYPES = ('bfloat16', 'float32')
OUTPUTS = ('output', 'query', 'key', 'value')  # The output, and the gradient of each.

Array = jax.Array
SEEN = np.tri(LENGTH, dtype=bool)


def _product(weights: Array, values: Array) -> Array:
  return jnp.matmul(weights, values, preferred_element_type=jnp.float32)


def standard(weights: Array, values: Array) -> Array:
  """P V."""
  return _product(weights, values)


def soft_clamp(weights: Array, values: Array) -> Array:
  """As x-transformers: log(P exp(15 tanh(V / 15))), exp and log in float32."""
  clamped = CLAMP * jnp.tanh(values.astype(jnp.float32) / CLAMP)
  mixed = _product(weights, jnp.exp(clamped).astype(values.dtype))
  return jnp.log(jnp.maximum(mixed, 1e-20))


def blocks(weights: Array, values: Array) -> Array:
  """The paper's form, a shift for each block of keys: log sum_b exp(m_b) (P_b exp(V_b - m_b))."""
  values = values.reshape(-1, KEYS_PER_BLOCK, values.shape[1])
  weights = weights.reshape(len(weights), -1, KEYS_PER_BLOCK).swapaxes(0, 1)
  shifts = jax.lax.stop_gradient(values.max(1, keepdims=True).astype(jnp.float32))
  mixed = _product(weights, jnp.exp(values - shifts).astype(values.dtype))
  logs = jnp.log(jnp.where(mixed > 0, mixed, 1.0)) + shifts
  return jax.nn.logsumexp(jnp.where(mixed > 0, logs, -jnp.inf), axis=0)


def ours(numerics: ops.Numerics) -> Callable[[Array, Array], Array]:
  """`log_weighted_sum_exp`, in one of its ways."""
  return functools.partial(ops.log_weighted_sum_exp, 'TS,SH->TH', numerics=numerics)


WAYS = {
  'standard attention': standard,
  "LASER, 'exact' (ours)": ours('exact'),
  "LASER, 'paper'": ours('paper'),
  'LASER, soft clamp at 15': soft_clamp,
  'LASER, a shift for each 64 keys': blocks,
}


def run(way: Callable, query: Array, key: Array, value: Array, cotangent: Array) -> list[Array]:
  """Returns the output [T, H], and the gradients of query, key and value."""

  def attend(query, key, value):
    logits = _product(query, key.T) * HEAD_SIZE**-0.5
    weights = jax.nn.softmax(jnp.where(SEEN, logits, -1e30)).astype(value.dtype)
    return way(weights, value).astype(value.dtype)

  output, pull = jax.vjp(attend, query, key, value)
  return [output, *pull(cotangent)]


def exact_laser(*arrays: Array) -> list[np.ndarray]:
  """LASER in float64: the output, and the gradients."""
  query, key, value, cotangent = (np.asarray(x, np.float64)[None, :, None] for x in arrays)
  output = ops.laser_oracle(query, key, value, SEEN)
  found = output, *ops.laser_oracle_vjp(query, key, value, cotangent, SEEN)
  return [x[0, :, 0] for x in found]


def exact_standard(*arrays: Array) -> list[np.ndarray]:
  """Standard attention in float64: the output, and the gradients."""
  query, key, value, cotangent = (np.asarray(x, np.float64) for x in arrays)
  logits = np.where(SEEN, query @ key.T * HEAD_SIZE**-0.5, -np.inf)
  weights = np.exp(logits - logits.max(1, keepdims=True))
  weights /= weights.sum(1, keepdims=True)
  by_weight = cotangent @ value.T
  by_logit = weights * (by_weight - (weights * by_weight).sum(1, keepdims=True))
  by_logit *= HEAD_SIZE**-0.5
  return [weights @ value, by_logit @ key, by_logit.T @ query, weights.T @ cotangent]


def errors(dtype: str, scale: float) -> list[dict]:
  """Returns, of each way, its error in each output; None where a number is not finite."""
  rng = np.random.default_rng(0)
  sizes = (1.0, 1.0, scale, 1.0)
  arrays = [
    jnp.asarray(size * rng.standard_normal((LENGTH, HEAD_SIZE)), jnp.dtype(dtype)) for size in sizes
  ]
  of_laser, of_standard = exact_laser(*arrays), exact_standard(*arrays)
  rows = []
  for name, way in WAYS.items():
    row = {'dtype': dtype, 'scale': scale, 'way': name}
    wanted = of_standard if way is standard else of_laser
    for what, found, expected in zip(OUTPUTS, run(way, *arrays), wanted, strict=True):
      gap = np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected)
      row[what] = float(gap) if np.isfinite(gap) else None
    rows.append(row)
  return rows


def plot(rows: list[dict], path: pathlib.Path) -> None:
  """Draws the errors: a row for each dtype, a column for the output and each gradient."""
  titles = ('output', 'gradient of query', 'gradient of key', 'gradient of value')
  figure, axes = plt.subplots(2, 4, figsize=(14, 6.4), sharex=True, sharey='row')
  for of_dtype, dtype in zip(axes, DTYPES, strict=True):
    for panel, what, title in zip(of_dtype, OUTPUTS, titles, strict=True):
      for name in WAYS:
        shown = [r for r in rows if r['dtype'] == dtype and r['way'] == name]
        points = [r[what] if r[what] is not None else np.nan for r in shown]
        width = 2.6 if 'ours' in name else 1.3
        panel.plot([r['scale'] for r in shown], points, label=name, linewidth=width, marker='.')
      panel.set(xscale='log', yscale='log', title=f'{dtype}: {title}')
      panel.grid(alpha=0.3)
    of_dtype[0].set_ylabel('relative error')
  for panel in axes[1]:
    panel.set_xlabel('standard deviation of V')
  figure.legend(*axes[0][0].get_legend_handles_labels(), loc='lower center', ncols=5)
  figure.suptitle('Error against float64; a line ends where a number is not finite')
  figure.tight_layout(rect=(0, 0.05, 1, 1))
  figure.savefig(path, dpi=110)


def main() -> None:
  """Measures, writes the raw figures, and draws them."""
  rows = []
  with open(DOCS / 'results' / 'numerics.jsonl', 'w') as kept:
    for dtype in DTYPES:
      for scale in SCALES:
        found = errors(dtype, scale)
        rows += found
        for row in found:
          kept.write(json.dumps(row) + '\n')
          print(*(f'{x:.2e}' if isinstance(x, float) else x for x in row.values()), sep='  ')
        sys.stdout.flush()
  plot(rows, DOCS / 'pictures' / 'numerics.png')


if __name__ == '__main__':
  main()
