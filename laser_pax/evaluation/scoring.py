"""Log-likelihoods of tokens under a decoder, in few compiled shapes.

A row is as in training: its ids are its tokens, moved right by one, with 0 first. So the first
token of a text is predicted from 0, and the log-likelihood of a text is minus its training loss:

    log p(t_1 .. t_n) = sum over i of log p(t_i | 0, t_1 .. t_{i-1})

Rows are padded to few lengths: the powers of two from `SHORTEST`, up to SEQ_LEN. A batch of each
length has about `TOKENS_PER_DEVICE` tokens on each device. So at most log2(SEQ_LEN / SHORTEST) + 2
programs are compiled, for any number of rows: 6 at 1,024 tokens.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from paxml import trainer_lib
from praxis import py_utils

from laser_pax.experiment.decoder import DecoderLM

SHORTEST = 32
TOKENS_PER_DEVICE = 4_096


class Row(NamedTuple):
  """Tokens, of which the last ones are scored.

  Attributes:
    tokens: Token ids, without the 0 that is put first.
    start: Place of the first token to score. The tokens before it are context.
  """

  tokens: Sequence[int]
  start: int

  def cut(self, length: int) -> 'Row':
    """Returns the row of the last `length` tokens."""
    dropped = max(0, len(self.tokens) - length)
    return Row(self.tokens[dropped:], max(0, self.start - dropped))


class Score(NamedTuple):
  """What a model says about the scored tokens of a row.

  Attributes:
    log_likelihood: Sum of their log-probabilities, in nats.
    is_greedy: Whether each of them is the likeliest at its place.
  """

  log_likelihood: float
  is_greedy: bool


class Model(Protocol):
  """The members of `Restored` that scoring uses."""

  experiment: DecoderLM

  def data_parallel(self) -> int:
    """Returns a number of rows that the devices can share equally."""

  def run(self, step_fn, batch: py_utils.NestedMap):
    """Runs one of PAX's evaluation steps on a batch."""


class Scorer:
  """Scores rows by PAX's own evaluation step, a batch of like lengths after another."""

  def __init__(self, model: Model):
    """Takes the model, such as a `Restored`."""
    self._model = model

  def padded(self, length: int) -> int:
    """Returns the length that a row of so many tokens is padded to."""
    power = 1 << (max(length, SHORTEST) - 1).bit_length()
    return min(power, self._model.experiment.SEQ_LEN)

  def batch_rows(self, length: int) -> int:
    """Returns the rows of a batch of this length, a multiple of what the devices share."""
    return max(1, TOKENS_PER_DEVICE // length) * self._model.data_parallel()

  def score(self, rows: Sequence[Row]) -> Iterator[tuple[int, Score]]:
    """Yields the place of each row and its score, the longest rows first.

    Args:
      rows: The rows. None has more than SEQ_LEN tokens.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].tokens))
    while order:
      length = self.padded(len(rows[order[0]].tokens))
      count = self.batch_rows(length)
      places, order = order[:count], order[count:]
      batch = _batch([rows[i].tokens for i in places], count, length)
      output = self._model.run(trainer_lib.eval_step_single_learner, batch).per_example_out
      is_best = output.per_example_argmax == batch.labels
      for row, i in enumerate(places):
        scored = slice(rows[i].start, len(rows[i].tokens))
        nats = output.per_example_xent[row, scored].sum(dtype=np.float64)
        yield i, Score(-float(nats), bool(is_best[row, scored].all()))


def _batch(rows: Sequence[Sequence[int]], count: int, length: int) -> py_utils.NestedMap:
  """Returns rows as a batch of laser_pax/data/text_lm.py, of shape [count, length]."""
  labels = np.zeros((count, length), np.int32)
  weights = np.zeros((count, length), np.float32)
  for i, tokens in enumerate(rows):
    labels[i, : len(tokens)], weights[i, : len(tokens)] = tokens, 1
  is_token = weights.astype(np.int32)
  return py_utils.NestedMap(
    ids=np.pad(labels, ((0, 0), (1, 0)))[:, :-1] * is_token,
    labels=labels,
    weights=weights,
    paddings=1 - weights,
    segment_ids=is_token,
    segment_pos=np.arange(length, dtype=np.int32) * is_token,
  )
