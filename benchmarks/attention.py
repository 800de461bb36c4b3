"""Times attention by blocks of queries beside attention that forms all logits, on this CPU.

`python benchmarks/attention.py` prints one row a length: forward and backward of one layer, causal,
packed, with PAX's cap, in float32; medians of runs in turn.
"""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import typer

from laser_pax.costs import timing
from laser_pax.costs.rounds import in_turns
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


def main(tokens: int = 4096, lengths: str = '128,256,512,1024,2048,4096', rounds: int = 9) -> None:
  """Prints milliseconds of both, and their ratio.

  Args:
    tokens: Of a step: the batch is tokens / length.
    lengths: Of a sequence.
    rounds: Turns of each.
  """
  attentions = {'all logits': plain, 'by blocks': by_blocks}
  programs = {name: jax.jit(timing.with_gradients(x)) for name, x in attentions.items()}
  print('| length | all logits, ms | by blocks, ms | ratio |\n|---|---|---|---|')
  for length in map(int, lengths.split(',')):
    shape = tokens // length, HEADS, length, SIZE
    rng = np.random.default_rng(0)
    given = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(4)]
    given.append(jnp.ones((shape[0], length), jnp.int32))
    calls = {name: functools.partial(program, *given) for name, program in programs.items()}
    for call in calls.values():
      timing.seconds(call, 1)  # Compiles.
    turns = {name: functools.partial(timing.seconds, call, 1) for name, call in calls.items()}
    taken = in_turns(turns, rounds)
    first, second = (1e3 * statistics.median(x) for x in taken.values())
    print(f'| {length:,} | {first:.0f} | {second:.0f} | {second / first:.2f} |', flush=True)


if __name__ == '__main__':
  typer.run(main)
