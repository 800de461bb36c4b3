"""Measures how fast one core prepares batches of the sample: `python benchmarks/data.py`."""

import time

from laser_pax.data import sample, text_lm, text_mlm
from laser_pax.data.datasets import C4, WIKIPEDIA
from laser_pax.data.inputs import GlobalStreamInput, Input

BATCHES = 60


def c4_input() -> Input:
  """Returns the input of the decoders, in rows of 1,024 tokens."""
  source = sample.prepare_sample()
  fields = dict(batch_size=64, seq_len=1024, seed=0)
  return text_lm.train_input(data_dir=source.data_dir, vocab=source.vocab, **fields)


def wikipedia_input() -> Input:
  """Returns BERT's input, in rows of 512 tokens."""
  fields = dict(batch_size=64, seq_len=512, vocab_size=4096, seed=0)
  return text_mlm.train_input(sample.prepare_records(), **fields)


INPUTS = {C4: c4_input, WIKIPEDIA: wikipedia_input}


def rates(stream: GlobalStreamInput) -> tuple[float, float]:
  """Returns the tokens and the documents that one core prepares in a second.

  Documents are counted by their segments. For BERT they are records.
  """
  stream.get_next_padded()  # Fills the shuffle's buffer.
  tokens = documents = 0
  start = time.process_time()
  for _ in range(BATCHES):
    batch = stream.get_next_padded()
    tokens += batch.labels.size
    documents += int(batch.segment_ids.max(1).sum())
  seconds = time.process_time() - start
  return tokens / seconds, documents / seconds


if __name__ == '__main__':
  for dataset, make in INPUTS.items():
    per_second = rates(make().Instantiate())
    print(
      '{}: {:,.0f} tokens and {:,.0f} segments a second on one core'.format(
        dataset.name, *per_second
      )
    )
