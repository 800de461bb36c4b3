"""Decoder-only language models: PAX's own architecture, on packed text, trained by AdamW."""

import math

import fiddle
import jax
import jax.numpy as jnp
from paxml.tasks.lm import model_params
from praxis import layers, pax_fiddle, py_utils

from laser_pax.data import records, sources, text_lm
from laser_pax.data.datasets import C4
from laser_pax.experiment import base, checks, layouts, transformer
from laser_pax.experiment.optimizers import set_adamw
from laser_pax.layers import LeanSharedEmbeddingSoftmax, use_fused, use_rows_einsum
from laser_pax.ops import fused

# math.exp overflows above about this value.
_MAX_LOG_PERPLEXITY = 700.0


def _perplexity(log_perplexity: float) -> float:
  return math.exp(min(log_perplexity, _MAX_LOG_PERPLEXITY))


class DecoderLM(base.Experiment, model_params.TransformerLmSpmdAdafactor):
  """A decoder-only language model on packed text, trained by AdamW.

  The architecture is PAX's own TransformerLmSpmdAdafactor: pre-norm, sinusoidal positions, an MLP
  of two matrices with ReLU, and tied input and output embeddings. That class or `Experiment`
  defines the attributes that are not listed here. On a TPU a fused kernel computes the attention
  (docs/fused.md).

  Attributes:
    DATASET: Data set that the model trains on.
    DATA_DIR: Folder of the prepared data (`python -m laser_pax prepare c4`). None stands for
      LASER_PAX_DATA_DIR.
    VOCAB: SentencePiece model (`python -m laser_pax vocab`). None stands for LASER_PAX_VOCAB.
    SEQ_LEN: Tokens of one sequence, which is a row of the batch.
    NUM_TRAIN_STEPS: Steps of the training. The learning rate reaches zero at the last.
    WARMUP_STEPS: Steps of linear warm-up.
    LEARNING_RATE: Peak of the learning rate.
    WEIGHT_DECAY: Decoupled weight decay.
    DATA_SEED: Seed of the order of the training data.
    LAYERS_PER_BLOCK: Layers of one turn of the loop over layers. The backward pass computes again
      the activations that CHECKPOINT_POLICY does not keep, block by block, from the block's input.
      docs/pods.md shows where 2 layers take less memory than 1. A checkpoint stores layers by
      block, so it can only be restored with the same number.
  """

  METRIC = base.Metric(name='log_pplx', label='loss', derived={'perplexity': _perplexity})
  UNIT = 'tokens'

  DATASET = C4
  DATA_DIR: str | None = None
  VOCAB: str | None = None
  DATA_SEED = 0

  NUM_HEADS: int | None  # None stands for MODEL_DIMS / DIMS_PER_HEAD.

  GLOBAL_BATCH_SIZE = 1024  # [paper]
  SEQ_LEN = 1024  # [paper]
  NUM_TRAIN_STEPS = 160_000  # [paper]
  VOCAB_SIZE = 32_000  # [derived], see C4Standard300M

  LEARNING_RATE = 1e-3  # [ours]
  WARMUP_STEPS = 4_000  # [ours], PAX's default
  WEIGHT_DECAY = 0.1  # [ours]
  ADAM_BETA1 = 0.9  # [ours], PAX's default
  ADAM_BETA2 = 0.99  # [ours], PAX's default
  ADAM_EPSILON = 1e-8  # [ours]
  CLIP_GRADIENT_NORM_TO_VALUE = 1.0  # [ours]

  FPROP_DTYPE = jnp.bfloat16  # [ours], PAX's default; parameters are float32
  ATTEN_LOGIT_CAP = 50.0  # [ours], PAX's default
  SOFTMAX_CAP_LOGITS = 30.0  # [ours], PAX's default
  LAYERS_PER_BLOCK = 1  # [ours]

  def num_heads(self) -> int:
    """Returns the number of attention heads."""
    return self.NUM_HEADS or self.MODEL_DIMS // self.DIMS_PER_HEAD

  def task(self) -> base.Task:
    """Returns the task: PAX's decoder with AdamW and this experiment's schedule.

    Raises:
      UserError: The sizes do not fit each other.
    """
    self.check()
    layout = self.layout()
    task_p = super().task()
    model_params.set_sharding_annotations_v1(
      task_p,
      self.TRAINING_OPTIMIZED_SHARDING,
      list(layout.ici_mesh_shape),
      list(layout.dcn_mesh_shape),
    )
    self._set_layers(task_p.model.lm_tpl, layout)
    use_fused(task_p.model)
    set_adamw(
      task_p,
      learning_rate=self.LEARNING_RATE,
      weight_decay=self.WEIGHT_DECAY,
      beta1=self.ADAM_BETA1,
      beta2=self.ADAM_BETA2,
      epsilon=self.ADAM_EPSILON,
      clip_gradient_norm=self.CLIP_GRADIENT_NORM_TO_VALUE,
      warmup_steps=self.WARMUP_STEPS,
      num_train_steps=self.NUM_TRAIN_STEPS,
    )
    # A resumed run continues with the next batch.
    task_p.train.enable_input_checkpointing = True
    # Otherwise PAX evaluates one training batch at each evaluation, and nothing reads the result.
    task_p.train.eval_skip_train = True
    return task_p

  def _set_layers(self, lm: pax_fiddle.Config, layout: layouts.Layout) -> None:
    """Sets the lean loss, projections that are fast on a CPU, and the checkpoint policy."""
    softmax, stack = lm.softmax_tpl, lm.stacked_transformer_tpl
    if fiddle.get_callable(softmax) is layers.SharedEmbeddingSoftmax:
      pax_fiddle.update_callable(softmax, LeanSharedEmbeddingSoftmax)
      softmax.lookup_style = 'index'
    use_rows_einsum(stack)
    stack.checkpoint_policy = layout.checkpoint_policy
    if self.USE_REPEATED_LAYER:
      stack.block.num_layers = self.LAYERS_PER_BLOCK
      stack.x_times = self.NUM_LAYERS // self.LAYERS_PER_BLOCK
    else:  # Without a loop PAX ignores the policy unless remat is set.
      stack.remat = True

  def source(self) -> sources.Source:
    """Returns the data and the vocabulary of this experiment, after checking both.

    Raises:
      UserError: One is missing, or the vocabulary does not fit VOCAB_SIZE.
    """
    return sources.find_source(self.DATASET, self.DATA_DIR, self.VOCAB, self.VOCAB_SIZE)

  def datasets(self) -> base.Inputs:
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

  def input_specs(self, batch_size: int) -> py_utils.NestedMap:
    """Returns the shapes and dtypes of a batch of `batch_size` sequences."""
    return text_lm.batch_specs(batch_size, self.SEQ_LEN)

  def sizes(self) -> transformer.TransformerSizes:
    """Returns the sizes that the layout rule needs."""
    return transformer.TransformerSizes(
      num_layers=self.NUM_LAYERS,
      model_dims=self.MODEL_DIMS,
      hidden_dims=self.HIDDEN_DIMS,
      attention_dims=self.num_heads() * self.DIMS_PER_HEAD,
      vocab_size=self.VOCAB_SIZE,
      seq_len=self.SEQ_LEN,
      global_batch_size=self.GLOBAL_BATCH_SIZE,
      activation_bytes=jnp.dtype(self.FPROP_DTYPE).itemsize,
      layers_per_block=self.LAYERS_PER_BLOCK,
    )

  def units_per_step(self) -> int:
    """Returns the tokens of one step."""
    return self.GLOBAL_BATCH_SIZE * self.SEQ_LEN

  def model_flops(self, parameters: int) -> base.ModelFlops:
    """Returns the operations of one step, over all chips.

    They are 6 for each weight and token, and 12 T N H for each layer and token. Biases and scales,
    a thousandth of the whole, count as if they were matrices.
    """
    attention = 12 * self.SEQ_LEN * self.num_heads() * self.DIMS_PER_HEAD * self.NUM_LAYERS
    return base.ModelFlops(
      weights=self.units_per_step() * 6 * parameters,
      attention=self.units_per_step() * attention,
      attended_share=fused.computed_share(self.SEQ_LEN),
    )

  def describe(self) -> dict[str, str]:
    """Returns the rows of `show`: sizes, batch, optimiser."""
    return {
      'layers, width, MLP hidden': f'{self.NUM_LAYERS}, {self.MODEL_DIMS:,}, {self.HIDDEN_DIMS:,}',
      'heads': f'{self.num_heads()} of {self.DIMS_PER_HEAD}',
      'vocabulary': f'{self.VOCAB_SIZE:,}',
      'activations, parameters': f'{jnp.dtype(self.FPROP_DTYPE).name}, float32',
      'global batch': f'{self.GLOBAL_BATCH_SIZE:,} x {self.SEQ_LEN:,}',
      'optimiser': (
        f'AdamW, betas {self.ADAM_BETA1} and {self.ADAM_BETA2}, epsilon {self.ADAM_EPSILON}, '
        f'weight decay {self.WEIGHT_DECAY}, gradients clipped to {self.CLIP_GRADIENT_NORM_TO_VALUE}'
      ),
      'learning rate': (
        f'0 to {self.LEARNING_RATE} in {self.WARMUP_STEPS:,} steps, then by a cosine to 0 at step '
        f'{self.NUM_TRAIN_STEPS:,}'
      ),
    }

  def check(self) -> None:
    """Checks the sizes against each other.

    Raises:
      UserError: A size, head, mesh, block or schedule does not fit; the message has the fix.
    """
    sizes = ('NUM_LAYERS', 'MODEL_DIMS', 'HIDDEN_DIMS', 'DIMS_PER_HEAD', 'NUM_HEADS')
    checks.check_at_least(self, 1, (*sizes, 'SEQ_LEN', 'VOCAB_SIZE'))
    checks.check_at_least(self, 0, ('WEIGHT_DECAY', 'CLIP_GRADIENT_NORM_TO_VALUE', 'DROPOUT_PROB'))
    checks.check_adam(self.LEARNING_RATE, self.ADAM_BETA1, self.ADAM_BETA2, self.ADAM_EPSILON)
    checks.check_heads(self.MODEL_DIMS, self.num_heads(), self.DIMS_PER_HEAD)
    checks.check_block(self.LAYERS_PER_BLOCK, self.NUM_LAYERS, self.USE_REPEATED_LAYER)
    checks.check_schedule(self.WARMUP_STEPS, self.NUM_TRAIN_STEPS)
    self.check_layout(
      {
        'MODEL_DIMS': self.MODEL_DIMS,
        'NUM_HEADS': self.num_heads(),
        'HIDDEN_DIMS': self.HIDDEN_DIMS,
        'VOCAB_SIZE': self.VOCAB_SIZE,
      }
    )

  def check_data(self) -> None:
    """Checks that data and vocabulary exist, fit VOCAB_SIZE, and fill a row.

    Raises:
      UserError: One is missing or does not fit; the message has the command that makes it.
    """
    records.check_row(self.source(), self.DATASET, self.SEQ_LEN)
