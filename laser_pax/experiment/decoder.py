"""Decoder-only language models on packed text."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from praxis import decoder_hparams, pax_fiddle, py_utils

from laser_pax.data import records, sources, text_lm, vocabulary
from laser_pax.data.datasets import C4
from laser_pax.experiment import family
from laser_pax.experiment.text import TextTransformer

# PAX's modes that decode continue at least so many rows of the validation split, over all hosts.
_DECODED_ROWS = 16

# math.exp overflows above about this value.
_MAX_LOG_PERPLEXITY = 700.0


def _perplexity(log_perplexity: float) -> float:
  return math.exp(min(log_perplexity, _MAX_LOG_PERPLEXITY))


class DecoderLM(TextTransformer):
  """A decoder-only language model on packed text.

  Attributes:
    VOCAB: SentencePiece model (`python -m laser_pax vocab`). None stands for LASER_PAX_VOCAB.
  """

  METRIC = family.Metric(name='log_pplx', label='loss', derived={'perplexity': _perplexity})
  SCORES_TEXT = True
  IS_CAUSAL = True

  DATASET = C4
  VOCAB: str | None = None

  GLOBAL_BATCH_SIZE = 1024  # [paper]
  SEQ_LEN = 1024  # [paper]
  NUM_TRAIN_STEPS = 160_000  # [paper]
  VOCAB_SIZE = 32_000  # [derived], see C4Standard300M

  def task(self) -> family.Task:
    """Returns the task. Its model decodes greedily, for `decode_datasets`.

    Raises:
      UserError: The sizes do not fit each other.
    """
    task_p = super().task()
    task_p.model.decoder_tpl = pax_fiddle.Config(
      decoder_hparams.GreedyDecoderHParams,
      seqlen=self.SEQ_LEN,
      max_decode_steps=self.SEQ_LEN - self._prefix_len(),
      fprop_for_prefix=True,
      eos_id=vocabulary.EOS_ID,
    )
    return task_p

  def source(self) -> sources.Source:
    """Returns the data and the vocabulary of this experiment, after checking both.

    Raises:
      UserError: One is missing, or the vocabulary does not fit VOCAB_SIZE.
    """
    return sources.find_source(self.DATASET, self.DATA_DIR, self.VOCAB, self.VOCAB_SIZE)

  def vocabulary(self) -> str:
    """Returns the SentencePiece model."""
    return self.source().vocab

  def datasets(self) -> family.Inputs:
    """Returns the inputs of the training split and of the whole validation split.

    Raises:
      UserError: As for `source`.
    """
    source, processes = self.source(), jax.process_count()
    common = dict(
      dataset=self.DATASET, data_dir=source.data_dir, vocab=source.vocab, seq_len=self.SEQ_LEN
    )
    return [
      text_lm.train_input(
        **common, batch_size=self.GLOBAL_BATCH_SIZE // processes, seed=self.DATA_SEED
      ),
      text_lm.validation_input(**common, batch_size=self.eval_batch_size() // processes),
    ]

  def decode_datasets(self) -> family.Inputs:
    """Returns the input of half rows of the validation split, which the model continues.

    Raises:
      UserError: As for `source`.
    """
    source = self.source()
    return [
      text_lm.prefix_input(
        dataset=self.DATASET,
        data_dir=source.data_dir,
        vocab=source.vocab,
        rows=jax.local_device_count() * -(-_DECODED_ROWS // jax.device_count()),
        prefix_len=self._prefix_len(),
        name='continuations',
      )
    ]

  def _prefix_len(self) -> int:
    return max(1, self.SEQ_LEN // 2)

  def prompt_ids(self, ids: Sequence[int]) -> list[int]:
    """Returns a prompt as the model was trained to read one.

    Args:
      ids: Token ids of the prompt's text.
    """
    return list(ids)

  def input_specs(self, batch_size: int) -> py_utils.NestedMap:
    """Returns the shapes and dtypes of a batch of `batch_size` sequences."""
    return text_lm.batch_specs(batch_size, self.SEQ_LEN)

  def random_batch(self, rng: np.random.Generator, batch_size: int) -> py_utils.NestedMap:
    """Returns a batch of random tokens, without padding."""
    return text_lm.random_batch(rng, batch_size, self.SEQ_LEN, self.VOCAB_SIZE)

  def chance(self) -> family.Chance:
    """Returns the unigram entropy, in nats a token."""
    return family.Chance('unigram entropy', records.unigram_entropy(self.source(), self.DATASET))

  def check_data(self) -> None:
    """Checks that data and vocabulary exist, are whole, fit VOCAB_SIZE, and fill a row.

    Raises:
      UserError: One is missing, broken or does not fit; the message has the command that makes it.
    """
    source = self.source()
    text_lm.check_files(source.data_dir, self.DATASET)
    records.check_row(source, self.DATASET, self.SEQ_LEN)
