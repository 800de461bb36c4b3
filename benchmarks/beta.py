"""Error of the family between standard attention and LASER against float64, by beta.

`python -m benchmarks.beta` (some five minutes on two cores) writes docs/results/beta.jsonl and the
table of docs/numerics.md, "Between standard attention and LASER".

Attention is causal, over 512 keys, with unit logits and values of standard deviation 1. Errors are
relative root mean squares over several heads, of the very inputs that were given.
"""

import functools
import itertools
import json
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
import typer

from benchmarks import numerics, page
from laser_pax import ops
from tests.support import float64, interpreted

KEPT = page.RESULTS / 'beta.jsonl'
KEYS, HEADS = 512, 16
BETAS = (0.0, 1e-3, 0.1, 0.5, 1.0, 2.0, 10.0, 100.0, -1.0)
OUTPUTS = (*numerics.OUTPUTS, 'gradient of beta')

Array = jax.Array
Way = Callable[[Array, Array, Array, Array], Array]  # (beta [H], query, key, value) -> output.


def by_einsum(beta: Array, *qkv: Array) -> Array:
  """Computes what the plain layers do."""
  mix = functools.partial(ops.log_weighted_sum_exp, 'TS,SH->TH', beta=beta)
  return numerics.by_weights(mix)(*qkv)


def by_blocks(beta: Array, *qkv: Array) -> Array:
  """Computes what fused layers do on a CPU."""
  attend = functools.partial(ops.fused_attention_by_heads, is_causal=True)
  return numerics.by_heads_first(functools.partial(ops.laser_by_heads(attend), beta=beta))(*qkv)


def by_kernel(beta: Array, *qkv: Array) -> Array:
  """Computes what fused layers do on a TPU, whose kernel is interpreted."""
  with interpreted.kernels():
    return by_blocks(beta, *qkv)


WAYS = {'einsum': by_einsum, 'blocks': by_blocks, 'kernel': by_kernel}


@functools.partial(jax.jit, static_argnums=0)
def run(way: Way, beta: Array, arrays: list[Array]) -> list[Array]:
  """Returns outputs [N, T, H], and gradients, of queries, keys, values and cotangents [N, T, H]."""

  def of_head(arrays):
    *qkv, cotangent = arrays
    output, pull = jax.vjp(lambda *x: way(*x).astype(qkv[2].dtype), beta, *qkv)
    d_beta, *gradients = pull(cotangent)
    return [output, *gradients, d_beta]

  return jax.lax.map(of_head, arrays)


def errors(dtype: str, ways: Iterable[str] = WAYS, betas: Iterable[float] = BETAS) -> list[dict]:
  """Returns, of each way and beta, the error in each output; first that of standard attention."""
  arrays = [x[:HEADS] for x in numerics.draw(dtype, KEYS, 'unit', 1.0)]
  in_float64 = [np.asarray(x, np.float64) for x in arrays]

  def row(way, beta, found):
    attention = functools.partial(float64.family, beta=beta)
    result = {'dtype': dtype, 'way': way, 'beta': beta}
    for what, x, exact in zip(OUTPUTS, found, numerics.exact(attention, in_float64), strict=False):
      result[what] = float(
        np.linalg.norm(np.asarray(x, np.float64) - exact) / np.linalg.norm(exact)
      )
    return result

  standard = numerics.run(numerics.WAYS[numerics.STANDARD], arrays)
  rows = [row(numerics.STANDARD, 0.0, standard)]
  for way, beta in itertools.product(ways, betas):
    columns = jnp.full(numerics.HEAD_SIZE, beta, jnp.float32)
    rows.append(row(way, beta, run(WAYS[way], columns, arrays)))
    print(*(f'{x:.2e}' if isinstance(x, float) else x for x in rows[-1].values()), flush=True)
  return rows


def table(rows: list[dict]) -> str:
  """Returns the table: in bfloat16 the first four over standard attention's, and else errors."""
  body = []
  for row in rows:
    if row['way'] == numerics.STANDARD:
      standard = row
      continue
    if row['dtype'] == 'bfloat16':
      cells = [f'{row[what] / standard[what]:.2f}' for what in numerics.OUTPUTS]
    else:
      cells = [f'{row[what]:.1e}' for what in numerics.OUTPUTS]
    body.append((row['dtype'], row['way'], f'{row["beta"]:g}', *cells, f'{row[OUTPUTS[-1]]:.1e}'))
  return page.rows(('dtype', 'way', 'beta', *OUTPUTS), body)


def main() -> None:
  """Measures, keeps the raw figures, and writes the table."""
  rows = [row for dtype in numerics.DTYPES for row in errors(dtype)]
  KEPT.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  page.replace('beta', table(rows), page.DOCS / 'numerics.md')


if __name__ == '__main__':
  typer.run(main)
