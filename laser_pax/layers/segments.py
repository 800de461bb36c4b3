"""Masks that are segment ids, and which keys a mask of either form lets a query see.

Shapes: B batch, T query length, S key length.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from praxis import py_utils, pytypes
from praxis.layers import attentions

JTensor = pytypes.JTensor


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segments:
  """A mask: a position sees the positions of its own segment.

  Attributes:
    segment_ids: [B, T] int32. Padding is a segment too, with the id 0.
    is_causal: Whether it sees, of these, only itself and earlier ones.
  """

  segment_ids: JTensor
  is_causal: bool = dataclasses.field(metadata={'static': True})

  def dense(self, dtype: jnp.dtype) -> JTensor:
    """Returns Praxis's form of the mask: [B, 1, T, T], large negative numbers where masked."""
    make = attentions.causal_segment_mask if self.is_causal else attentions.segment_mask
    return make(self.segment_ids, dtype=dtype)


# Praxis's layers take arrays; fused ones take segments too.
Mask = JTensor | Segments


class Visibility(NamedTuple):
  """What a mask says about pairs and positions. Padding is left out.

  Attributes:
    pairs: [1|B, T, S] bool: the query is real and sees the key.
    keys: [1|B, S] bool: the position is real.
  """

  pairs: JTensor
  keys: JTensor


def visibility(mask: Mask, length: int, queries: np.ndarray | None = None) -> Visibility:
  """Returns which pairs of a query and a key count in a statistic.

  A position of segment 0 is padding. Under an array, a position of self-attention is padding if it
  does not see itself.

  Args:
    mask: Segments; or [1|B, 1, 1|T, S], large negative numbers where masked.
    length: T, the number of queries of the mask.
    queries: Places of the queries to return pairs for. None stands for all.
  """
  queries = np.arange(length) if queries is None else queries
  if isinstance(mask, Segments):
    ids = mask.segment_ids
    shown = ids[:, queries, None] == ids[:, None, :]
    if mask.is_causal:
      shown &= queries[:, None] >= np.arange(length)
    is_real = ids > 0
  else:
    shown = mask[:, 0] >= py_utils.get_large_negative_number(jnp.float32) / 2
    is_real = shown.any(1)
    if shown.shape[1] == shown.shape[2]:
      is_real = jnp.diagonal(shown, axis1=1, axis2=2)
    shown = shown if shown.shape[1] == 1 else shown[:, queries]
    shown = jnp.broadcast_to(shown, (shown.shape[0], len(queries), shown.shape[2]))
  if is_real.shape[1] == length:  # Self-attention: a query is a position of the keys.
    shown &= is_real[:, queries, None]
  return Visibility(shown, is_real)
