"""Measures how fast one core prepares batches of the sample: `python benchmarks/data.py`."""

import time

from laser_pax.data import sample, text_lm

SEQ_LEN, BATCH_SIZE, BATCHES = 1024, 64, 60


def tokens_per_core_second() -> float:
  """Returns the tokens a second that one core prepares of the sample, in rows of 1,024."""
  source = sample.prepare_sample()
  fields = dict(batch_size=BATCH_SIZE, seq_len=SEQ_LEN, seed=0)
  stream = text_lm.train_input(data_dir=source.data_dir, vocab=source.vocab, **fields).Instantiate()
  stream.get_next_padded()  # Fills the shuffle's buffer.
  start = time.process_time()
  for _ in range(BATCHES):
    stream.get_next_padded()
  return BATCHES * BATCH_SIZE * SEQ_LEN / (time.process_time() - start)


if __name__ == '__main__':
  print(f'{tokens_per_core_second():,.0f} tokens a second on one core')
