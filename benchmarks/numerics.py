"""Error of LASER against float64 by the size of the values: every way to compute it, side by side.

`python -m benchmarks.numerics` (some 90 minutes on two cores) writes docs/results/numerics.jsonl,
two pictures, and the table of docs/numerics.md. With `--lengths=512` it takes ten minutes.

Attention is causal. The standard deviation of logits is 1, or 0.1 where they are flat; that of
values varies. Errors are relative root mean squares over several heads, of the very inputs that
were given (rounded to the dtype). Standard attention is measured against standard attention in
float64, all others against LASER.
"""

import functools
import itertools
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np
import typer

from benchmarks import page
from laser_pax import ops
from tests.support import float64, interpreted

KEPT = page.RESULTS / 'numerics.jsonl'
HEAD_SIZE, KEYS_PER_BLOCK, CLAMP = 64, 64, 15.0
# How many heads, by the number of keys. The first rows see few keys and decide the errors.
HEADS = {512: 16, 2048: 4, 8192: 1}
LOGITS = {'unit': 1.0, 'flat': 0.1}
SCALES = tuple(float(f'{x:.2g}') for x in np.geomspace(1e-5, 100, 25))
DTYPES = ('bfloat16', 'float32')
OUTPUTS = ('output', 'query', 'key', 'value')  # The output, and the gradient of each.

Array = jax.Array
Way = Callable[[Array, Array, Array], Array]  # (query, key, value) -> output, [T, H] each.


def by_weights(mix: Callable[[Array, Array], Array]) -> Way:
  """Makes attention of a function that mixes values by weights [T, S], which have their dtype."""

  def attend(query, key, value):
    logits = _product(query, key.T) * HEAD_SIZE**-0.5
    seen = jnp.tri(len(query), dtype=bool)
    return mix(jax.nn.softmax(jnp.where(seen, logits, -1e30)).astype(value.dtype), value)

  return attend


def by_heads_first(attention: Callable[[Array, Array, Array], Array]) -> Way:
  """Makes attention of one head of one over [B, N, T, H], whose query is scaled beforehand."""

  def attend(query, key, value):
    query = query * HEAD_SIZE**-0.5  # A power of two: nothing is rounded.
    return attention(*(x[None, None] for x in (query, key, value)))[0, 0]

  return attend


def _product(weights: Array, values: Array) -> Array:
  return jnp.matmul(weights, values, preferred_element_type=jnp.float32)


def soft_clamp(weights: Array, values: Array) -> Array:
  """As x-transformers: log(P exp(15 tanh(V / 15))), exp and log in float32."""
  clamped = CLAMP * jnp.tanh(values.astype(jnp.float32) / CLAMP)
  mixed = _product(weights, jnp.exp(clamped).astype(values.dtype))
  return jnp.log(jnp.maximum(mixed, 1e-20))


def shift_for_each_block(weights: Array, values: Array) -> Array:
  """The paper's form, a shift for each block of keys: log sum_b exp(m_b) (P_b exp(V_b - m_b))."""
  values = values.reshape(-1, KEYS_PER_BLOCK, values.shape[1])
  weights = weights.reshape(len(weights), -1, KEYS_PER_BLOCK).swapaxes(0, 1)
  shifts = jax.lax.stop_gradient(values.max(1, keepdims=True).astype(jnp.float32))
  mixed = _product(weights, jnp.exp(values - shifts).astype(values.dtype))
  logs = jnp.log(jnp.where(mixed > 0, mixed, 1.0)) + shifts
  return jax.nn.logsumexp(jnp.where(mixed > 0, logs, -jnp.inf), axis=0)


def ours(numerics: ops.Numerics) -> Way:
  """`log_weighted_sum_exp`, in one of its ways."""
  return by_weights(functools.partial(ops.log_weighted_sum_exp, 'TS,SH->TH', numerics=numerics))


def wrapped(query: Array, key: Array, value: Array) -> Array:
  """`laser` around a function that rounds its output to the dtype of values."""
  attention = ops.laser(functools.partial(jax.nn.dot_product_attention, is_causal=True))
  return attention(*(x[None, :, None] for x in (query, key, value)))[0, :, 0]


fused = by_heads_first(
  ops.laser_by_heads(functools.partial(ops.fused_attention_by_heads, is_causal=True))
)


def interpreted_kernel(query: Array, key: Array, value: Array) -> Array:
  """As `fused` on a TPU, whose kernel is interpreted."""
  with interpreted.kernels():
    return fused(query, key, value)


STANDARD = 'standard attention'
# Our ways are measured in all cases, the others with 512 keys and unit logits alone.
OUR_WAYS = {
  'LASER, einsum': ours('exact'),
  'LASER, blocks': fused,
  'LASER, kernel': interpreted_kernel,
  'LASER, laser(f)': wrapped,
}
OTHER_WAYS = {
  "LASER, 'paper'": ours('paper'),
  'LASER, soft clamp at 15': by_weights(soft_clamp),
  'LASER, a shift for each 64 keys': by_weights(shift_for_each_block),
}
WAYS = {STANDARD: by_weights(_product)} | OUR_WAYS | OTHER_WAYS


@functools.partial(jax.jit, static_argnums=0)
def run(way: Way, arrays: list[Array]) -> list[Array]:
  """Returns outputs [N, T, H], and gradients, of queries, keys, values and cotangents [N, T, H]."""

  def of_head(arrays):
    query, key, value, cotangent = arrays
    output, pull = jax.vjp(lambda *qkv: way(*qkv).astype(value.dtype), query, key, value)
    return [output, *pull(cotangent)]

  return jax.lax.map(of_head, arrays)


def draw(dtype: str, keys: int, logits: str, scale: float) -> list[Array]:
  """Returns queries, keys, values and cotangents."""
  rng = np.random.default_rng(0)
  sizes = (LOGITS[logits], 1.0, scale, 1.0)
  shape = (HEADS[keys], keys, HEAD_SIZE)
  return [jnp.asarray(size * rng.standard_normal(shape), dtype) for size in sizes]


def exact(attention: Callable, arrays: list[np.ndarray]) -> list[np.ndarray]:
  """Returns what `run` does, by attention of one head in float64."""
  seen = np.tri(arrays[0].shape[1], dtype=bool)
  heads = [attention(*qkv, seen, cotangent) for *qkv, cotangent in zip(*arrays, strict=True)]
  return [np.stack(x) for x in zip(*heads, strict=True)]


def errors(dtype: str, keys: int, logits: str, scale: float) -> list[dict]:
  """Returns, of each way, its error in each output; None where a number is not finite."""
  arrays = draw(dtype, keys, logits, scale)
  in_float64 = [np.asarray(x, np.float64) for x in arrays]
  of_laser, of_standard = (exact(f, in_float64) for f in (float64.laser, float64.standard))
  rows = []
  for name, way in WAYS.items():
    if name in OTHER_WAYS and (keys, logits) != (512, 'unit'):
      continue
    row = {'dtype': dtype, 'keys': keys, 'logits': logits, 'scale': scale, 'way': name}
    wanted = of_standard if name == STANDARD else of_laser
    for what, found, expected in zip(OUTPUTS, run(way, arrays), wanted, strict=True):
      gap = np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected)
      row[what] = float(gap) if np.isfinite(gap) else None
    rows.append(row)
  return rows


def plot_ways(rows: list[dict], path: pathlib.Path) -> None:
  """Draws errors with 512 keys: a row for each dtype, a column for the output and each gradient."""
  titles = ('output', 'gradient of query', 'gradient of key', 'gradient of value')
  figure, axes = plt.subplots(2, 4, figsize=(14, 6.4), sharex=True, sharey='row')
  names = [STANDARD, 'LASER, einsum', *OTHER_WAYS]
  for of_dtype, dtype in zip(axes, DTYPES, strict=True):
    for panel, what, title in zip(of_dtype, OUTPUTS, titles, strict=True):
      for name in names:
        shown = _chosen(rows, dtype=dtype, keys=512, logits='unit', way=name)
        points = [r[what] if r[what] is not None else np.nan for r in shown]
        is_ours = name in OUR_WAYS
        label = "LASER, 'exact' (ours)" if is_ours else name
        width = 2.6 if is_ours else 1.3
        panel.plot([r['scale'] for r in shown], points, label=label, linewidth=width, marker='.')
      panel.set(xscale='log', yscale='log', title=f'{dtype}: {title}')
      panel.grid(alpha=0.3)
    of_dtype[0].set_ylabel('relative error')
  for panel in axes[1]:
    panel.set_xlabel('standard deviation of V')
  figure.legend(*axes[0][0].get_legend_handles_labels(), loc='lower center', ncols=5)
  figure.suptitle('Error against float64; a line ends where a number is not finite')
  figure.tight_layout(rect=(0, 0.05, 1, 1))
  figure.savefig(path, dpi=110)


def plot_ratios(rows: list[dict], path: pathlib.Path) -> None:
  """Draws our errors over standard attention's, in bfloat16: a panel for each way and output."""
  figure, axes = plt.subplots(2, len(OUR_WAYS), figsize=(14, 6.4), sharex=True, sharey='row')
  for panels, whats, limit in zip(axes, (OUTPUTS[:1], OUTPUTS[1:]), (1.3, 1.5), strict=True):
    for panel, way in zip(panels, OUR_WAYS, strict=True):
      for keys in HEADS:
        for logits, line in (('unit', '-'), ('flat', ':')):
          found = ratios(rows, 'bfloat16', keys, logits, way)
          points = [max(ratio[what] for what in whats) for ratio in found.values()]
          panel.plot(list(found), points, line, label=f'{keys:,} keys, {logits} logits')
      panel.axhline(limit, color='grey', linewidth=0.8)
      panel.set(xscale='log', title=way)
      panel.grid(alpha=0.3)
  axes[0][0].set_ylabel("output's error over standard's")
  axes[1][0].set_ylabel("gradients' (the worst)")
  for panel in axes[1]:
    panel.set_xlabel('standard deviation of V')
  figure.legend(*axes[0][0].get_legend_handles_labels(), loc='lower center', ncols=6)
  figure.tight_layout(rect=(0, 0.05, 1, 1))
  figure.savefig(path, dpi=110)


def ratios(rows: list[dict], dtype: str, keys: int, logits: str, way: str) -> dict[float, dict]:
  """Returns, by scale, a way's errors over those of standard attention."""
  case = {'dtype': dtype, 'keys': keys, 'logits': logits}
  ours, theirs = (_chosen(rows, **case, way=name) for name in (way, STANDARD))
  return {
    row['scale']: {what: row[what] / other[what] for what in OUTPUTS}
    for row, other in zip(ours, theirs, strict=True)
  }


def _chosen(rows: list[dict], **fields) -> list[dict]:
  return [row for row in rows if all(row[name] == x for name, x in fields.items())]


def worst_table(rows: list[dict]) -> str:
  """Returns a table of our worst errors over all scales: in bfloat16 over standard attention's."""
  body = []
  measured = dict.fromkeys((r['dtype'], r['way'], r['keys'], r['logits']) for r in rows)
  for dtype, way, keys, logits in measured:
    if way not in OUR_WAYS:
      continue
    if dtype == 'bfloat16':
      found, form = list(ratios(rows, dtype, keys, logits, way).values()), '.2f'
    else:
      found, form = _chosen(rows, dtype=dtype, keys=keys, logits=logits, way=way), '.1e'
    worst = (f'{max(x[what] for x in found):{form}}' for what in OUTPUTS)
    body.append((dtype, way.removeprefix('LASER, '), f'{keys:,}', logits, *worst))
  return page.rows(('dtype', 'way', 'keys', 'logits', *OUTPUTS), body)


def main(lengths: str = ','.join(map(str, HEADS))) -> None:
  """Measures, keeps the raw figures, draws them, and writes the table of our worst ones.

  Args:
    lengths: Numbers of keys. Kept figures of other numbers stay as they are.
  """
  lengths = [int(x) for x in lengths.split(',')]
  rows = [
    row for row in map(json.loads, KEPT.read_text().splitlines()) if row['keys'] not in lengths
  ]
  for keys, logits, dtype in itertools.product(lengths, LOGITS, DTYPES):
    found = [row for scale in SCALES for row in errors(dtype, keys, logits, scale)]
    rows += found
    for row in found:
      print(*(f'{x:.2e}' if isinstance(x, float) else x for x in row.values()), flush=True)
  rows.sort(key=lambda row: row['keys'])
  KEPT.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  page.replace('numerics', worst_table(rows), page.DOCS / 'numerics.md')
  plot_ways(rows, page.DOCS / 'pictures' / 'numerics.png')
  plot_ratios(rows, page.DOCS / 'pictures' / 'numerics_ratios.png')


if __name__ == '__main__':
  typer.run(main)
