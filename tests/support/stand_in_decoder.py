"""Stand-ins for a restored decoder and its vocabulary, which cost nothing."""

import types

import numpy as np
from praxis import py_utils


class Characters:
  """A vocabulary of characters: each letter is a token, spaces at both ends are dropped."""

  def ids(self, text):
    return [3 + ord(c) % 120 for c in ' '.join(text.split())]

  def continuation(self, prompt, new_ids):
    del prompt
    return ''.join(chr(i) for i in new_ids)


class Decoder:
  """A model whose token costs label / 1,000 nats, and is the likeliest unless 7 divides it.

  Attributes:
    shapes: Shapes of the batches that it was given.
    batches_left: Number of batches after which it fails.
  """

  def __init__(self, seq_len, devices=1):
    self.experiment = types.SimpleNamespace(SEQ_LEN=seq_len)
    self.shapes, self.batches_left, self._devices = [], None, devices

  def data_parallel(self):
    return self._devices

  def run(self, step_fn, batch):
    del step_fn
    if self.batches_left == 0:
      raise KeyboardInterrupt
    if self.batches_left is not None:
      self.batches_left -= 1
    self.shapes.append(batch.labels.shape)
    assert (batch.ids[:, 0] == 0).all()
    is_next = batch.weights[:, 1:] == 1
    assert (batch.ids[:, 1:] == batch.labels[:, :-1])[is_next].all()
    best = np.where(batch.labels % 7, batch.labels, 0)
    nats = batch.labels.astype(np.float32) / 1000
    return py_utils.NestedMap(
      per_example_out=py_utils.NestedMap(per_example_xent=nats, per_example_argmax=best)
    )
