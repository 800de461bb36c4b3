"""Times attention by blocks of queries beside attention that forms all logits, on this CPU.

`python benchmarks/attention.py` prints one row a length: forward and backward of one layer, causal,
packed, with PAX's cap, in float32; medians of runs in turn.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import typer

from laser_pax.ops import blocks

HEADS, SIZE, CAP = 4, 64, 50.0


def plain(query, key, value, segment_ids):
  """As Praxis's attention: logits, mask and probabilities of all pairs, differentiated by jax."""
  logits = CAP * jnp.tanh(jnp.einsum('BNTH,BNSH->BNTS', query, key) / CAP)
  seen = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
  logits = jnp.where(seen & jnp.tri(query.shape[2], dtype=bool), logits, -1e30)
  return jnp.einsum('BNTS,BNSH->BNTH', jax.nn.softmax(logits), value)


def by_blocks(query, key, value, segment_ids):
  """As the layers have it on a CPU."""
  spec = blocks.AttentionSpec(is_causal=True, logit_cap=CAP)
  return blocks.attention_by_blocks(query, key, value, segment_ids, segment_ids, spec)


def with_gradients(attention):
  """Returns output and gradients, compiled."""

  def run(query, key, value, cotangent, segment_ids):
    output, pull = jax.vjp(lambda *qkv: attention(*qkv, segment_ids), query, key, value)
    return output, *pull(cotangent)

  return jax.jit(run)


def main(tokens: int = 4096, lengths: str = '128,256,512,1024,2048,4096', rounds: int = 9) -> None:
  """Prints milliseconds of both, and their ratio.

  Args:
    tokens: Of a step: the batch is tokens / length.
    lengths: Of a sequence.
    rounds: Turns of each.
  """
  runs = {'all logits': with_gradients(plain), 'by blocks': with_gradients(by_blocks)}
  print('| length | all logits, ms | by blocks, ms | ratio |\n|---|---|---|---|')
  for length in map(int, lengths.split(',')):
    shape = tokens // length, HEADS, length, SIZE
    rng = np.random.default_rng(0)
    given = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(4)]
    given.append(jnp.ones((shape[0], length), jnp.int32))
    took = {name: [] for name in runs}
    for _ in range(rounds + 1):  # The first compiles.
      for name, run in runs.items():
        start = time.perf_counter()
        jax.block_until_ready(run(*given))
        took[name].append(1e3 * (time.perf_counter() - start))
    first, second = (statistics.median(t[1:]) for t in took.values())
    print(f'| {length:,} | {first:.0f} | {second:.0f} | {second / first:.2f} |', flush=True)


if __name__ == '__main__':
  typer.run(main)
