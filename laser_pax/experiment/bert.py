"""BERT: masked language models, on MLPerf's records."""

import jax
import numpy as np
from praxis import py_utils
from praxis.layers import models

from laser_pax.data import sources, text_mlm, wordpiece
from laser_pax.data.datasets import WIKIPEDIA
from laser_pax.errors import UserError
from laser_pax.experiment import checks, family
from laser_pax.experiment.text import TextTransformer


class BertMLM(TextTransformer):
  """A bidirectional Transformer that predicts masked tokens, and nothing else.

  DATA_DIR may also be a folder of MLPerf's own records: part-00000-of-00500 and so on, eval_10k.

  Attributes:
    MAX_TIMESCALE: The slowest of the sinusoids of positions turns by one radian in so many tokens.
  """

  MODEL_CLASS = models.BertModel
  METRIC = family.Metric(
    name='fraction_of_correct_preds',
    label='accuracy',
    better='higher',
    derived={'wrong': lambda x: 1 - x},
  )
  IS_CAUSAL = False

  DATASET = WIKIPEDIA
  VOCAB_SIZE = 30_522  # MLPerf's vocabulary
  SEQ_LEN = 512  # MLPerf's records
  MAX_TIMESCALE = 10_000  # PAX's default

  def task(self) -> family.Task:
    """Returns the task: PAX's BertModel with AdamW and this experiment's schedule.

    Raises:
      UserError: The sizes do not fit each other.
    """
    task_p = super().task()
    task_p.model.mask_token_id = wordpiece.MASK
    lm = task_p.model.lm_tpl
    lm.position_emb_tpl.max_timescale = self.MAX_TIMESCALE
    stack = lm.stacked_transformer_tpl
    block = stack.block if self.USE_REPEATED_LAYER else stack
    attention = block.transformer_layer_params_tpl.tr_atten_tpl
    # Otherwise PAX starts these matrices at a seventh of Xavier's size and less. A masked model
    # learns little before its attention does, so it begins later (docs/bert.md) [ours].
    for projection in (attention.proj_tpl, attention.combined_qkv_proj_tpl):
      projection.explicit_fan_in_fan_out_axes = True
    return task_p

  def folder(self) -> str:
    """Returns the folder of the records.

    Raises:
      UserError: There are none; the message has the command that makes them.
    """
    data = sources.find_data_dir(self.DATA_DIR)
    folder = self.DATASET.find(data.path)
    if folder is None:
      raise UserError(
        f'no records for BERT: looked for part-*-of-* and {text_mlm.EVAL_FILE} in {data.path} and '
        f'in its {self.DATASET.folder} (named by {data.named_by}); make them with: '
        f'{self._prepare_command(data.path)}'
      )
    return folder

  def _prepare_command(self, data_dir: str) -> str:
    return f'{self.DATASET.prepare_command(data_dir)} --vocab vocab.txt'

  def datasets(self) -> family.Inputs:
    """Returns the inputs of the training split and of the whole evaluation split.

    Raises:
      UserError: As for `folder`.
    """
    folder, processes = self.folder(), jax.process_count()
    return [
      text_mlm.train_input(
        folder,
        batch_size=self.GLOBAL_BATCH_SIZE // processes,
        seq_len=self.SEQ_LEN,
        vocab_size=self.VOCAB_SIZE,
        seed=self.DATA_SEED,
      ),
      text_mlm.eval_input(
        folder,
        batch_size=self.eval_batch_size() // processes,
        seq_len=self.SEQ_LEN,
        vocab_size=self.VOCAB_SIZE,
      ),
    ]

  def input_specs(self, batch_size: int) -> py_utils.NestedMap:
    """Returns the shapes and dtypes of a batch of `batch_size` rows."""
    return text_mlm.batch_specs(batch_size, self.SEQ_LEN)

  def random_batch(self, rng: np.random.Generator, batch_size: int) -> py_utils.NestedMap:
    """Returns a batch of random tokens, without padding."""
    return text_mlm.random_batch(rng, batch_size, self.SEQ_LEN, self.VOCAB_SIZE)

  def chance(self) -> family.Chance:
    """Returns the accuracy of repeating what is read, and for [MASK] the commonest token."""
    accuracy = text_mlm.accuracy_by_frequency(self.folder())
    return family.Chance('by frequency', accuracy)

  def check(self) -> None:
    """Checks the sizes against each other.

    Raises:
      UserError: They do not fit, or MAX_TIMESCALE is below 1; the message has the fix.
    """
    super().check()
    checks.check_at_least(self, 1, ('MAX_TIMESCALE',))

  def check_data(self) -> None:
    """Checks that the records exist and are whole, and that their vocabulary fits VOCAB_SIZE.

    Raises:
      UserError: They do not; the message has the fix.
    """
    folder = self.folder()
    vocab = f'{folder}/vocab.txt'
    size = text_mlm.vocab_size(vocab)
    if size is not None and size != self.VOCAB_SIZE:
      raise UserError(
        f'{vocab} has {size} pieces, but the model has VOCAB_SIZE = {self.VOCAB_SIZE}: set '
        f'VOCAB_SIZE = {size}, or prepare the data with another vocabulary'
      )
    data_dir = sources.find_data_dir(self.DATA_DIR).path
    text_mlm.check_records(folder, self.VOCAB_SIZE, self._prepare_command(data_dir))
