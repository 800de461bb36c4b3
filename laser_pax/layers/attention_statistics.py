r"""Statistics of attention: how small its probabilities are, and how far its values spread.

A layer with `summary_queries` writes them to TensorBoard, for a sample of queries of the batch's
first example. A fused kernel forms no probabilities, so the sample's are computed beside it.

Shapes: B batch, T query length, S key length, N heads, H head size, E thresholds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from praxis import base_layer, pytypes

from laser_pax.layers import segments

JTensor = pytypes.JTensor

# The paper's Figure 1 says how many probabilities are below these [paper].
SMALL = (1e-3, 1e-7)


class Spread(NamedTuple):
  """How far values spread over the positions of an example.

  Attributes:
    std: [N], standard deviation of a column, the mean over columns and examples.
    mean_range: [N], greatest value of a column less its least, the mean over both.
    max_range: [N], the greatest range.
  """

  std: JTensor
  mean_range: JTensor
  max_range: JTensor


def count_below(probs: JTensor, pairs: JTensor, thresholds: Sequence[float]) -> JTensor:
  """Returns how many probabilities of visible pairs are below each threshold, float32 [N, E].

  Args:
    probs: [B, N, T, S].
    pairs: [1|B, T, S] bool, the pairs that count.
    thresholds: E numbers.
  """
  probs, pairs = probs.astype(jnp.float32), pairs[:, None]
  counts = [
    jnp.sum((probs < threshold) & pairs, axis=(0, 2, 3), dtype=jnp.float32)
    for threshold in thresholds
  ]
  return jnp.stack(counts, axis=-1)


def spread(value: JTensor, is_real: JTensor) -> Spread:
  """Returns the spread of values by head, over real positions.

  Args:
    value: [B, S, N, H].
    is_real: [1|B, S] bool. An example without a real position does not count.
  """
  value = value.astype(jnp.float32)
  is_real = jnp.broadcast_to(is_real, value.shape[:2])[..., None, None]
  count = jnp.maximum(is_real.sum(1), 1)
  mean = jnp.where(is_real, value, 0).sum(1) / count
  deviation = jnp.where(is_real, value - mean[:, None], 0)
  std = jnp.sqrt((deviation**2).sum(1) / count)
  width = jnp.where(is_real, value, -jnp.inf).max(1) - jnp.where(is_real, value, jnp.inf).min(1)
  counts = is_real.any(1)  # [B, 1, 1]
  width = jnp.where(counts, width, 0)
  columns = jnp.maximum(counts.sum(), 1) * value.shape[-1]
  return Spread(std.sum((0, 2)) / columns, width.sum((0, 2)) / columns, width.max((0, 2)))


def sample(length: int, count: int) -> np.ndarray:
  """Returns at most `count` places of a sequence, evenly spread, the last one among them."""
  count = min(count, length)
  return (np.arange(count) + 1) * length // count - 1


def add_summaries(
  layer: base_layer.BaseLayer,
  queries: np.ndarray,
  logits: JTensor,
  value: JTensor,
  mask: segments.Mask,
  length: int,
) -> None:
  """Adds the summaries of a layer, of its batch's first example. No gradient flows through them.

  Args:
    layer: The attention.
    queries: Places of the sampled queries.
    logits: [1, N, T', S], their logits before the mask.
    value: [1, S, N, H].
    mask: The mask of this example.
    length: T, the number of queries of the mask.
  """
  visible = segments.visibility(mask, length, queries)
  logits, value = jax.lax.stop_gradient((logits.astype(jnp.float32), value))
  lowest = jnp.finfo(jnp.float32).min
  probs = jax.nn.softmax(jnp.where(visible.pairs[:, None], logits, lowest), axis=-1)
  below = count_below(probs, visible.pairs, SMALL).mean(0)
  shares = below / jnp.maximum(visible.pairs.sum(dtype=jnp.float32), 1.0)
  for threshold, share in zip(SMALL, shares, strict=True):
    layer.add_summary(f'probabilities_below_{threshold:g}', share)
  values = spread(value, visible.keys)
  layer.add_summary('value_std', values.std.mean())
  layer.add_summary('value_range', values.mean_range.mean())
