"""Transformers over text, trained by AdamW or LAMB: what the families of text share."""

from typing import Literal, get_args

import fiddle
import jax.numpy as jnp
from paxml.tasks.lm import model_params
from praxis import layers, pax_fiddle
from praxis.layers import normalizations
from praxis.layers.transformer_models import LanguageModelType

from laser_pax.data.datasets import DatasetSpec
from laser_pax.experiment import base, checks, family, layouts, transformer
from laser_pax.experiment.optimizers import Hyperparameters, set_adamw, set_lamb
from laser_pax.layers import (
  DifferentialAttention,
  LeanSharedEmbeddingSoftmax,
  differential,
  use_fused,
  use_rows_einsum,
)
from laser_pax.ops import fused

Attention = Literal['softmax', 'differential']
Optimizer = Literal['adamw', 'lamb']
_OPTIMIZERS = {'adamw': ('AdamW', set_adamw), 'lamb': ('LAMB', set_lamb)}


class TextTransformer(base.Experiment, model_params.TransformerLmSpmdAdafactor):
  """A Transformer over rows of tokens, trained by AdamW or LAMB.

  The architecture is PAX's own TransformerLmSpmdAdafactor: pre-norm, sinusoidal positions, an MLP
  of two matrices with ReLU, and tied input and output embeddings. That class or `Experiment`
  defines the attributes that are not listed here. On a TPU a fused kernel computes the attention
  (docs/fused.md). A family adds its data, its metric, and what its model needs.

  Attributes:
    DATASET: Data set that the model trains on.
    DATA_DIR: Folder of the prepared data (`python -m laser_pax prepare`). None stands for
      LASER_PAX_DATA_DIR.
    SEQ_LEN: Tokens of one sequence, which is a row of the batch.
    NUM_TRAIN_STEPS: Steps of the training. The learning rate reaches zero at the last.
    WARMUP_STEPS: Steps of linear warm-up.
    LEARNING_RATE: Peak of the learning rate.
    WEIGHT_DECAY: Decoupled weight decay.
    DATA_SEED: Seed of the order of the training data.
    OPTIMIZER: 'adamw', or 'lamb' (docs/ablations.md). Both take the attributes named after Adam.
    IS_CAUSAL: Whether a position sees itself and earlier ones alone.
    ATTENTION: 'softmax', or 'differential' for the difference of two softmax maps: each takes half
      of a head of DIMS_PER_HEAD (docs/ablations.md). Either has a LASER form.
    PER_DIM_SCALE: Whether each dimension of queries has a learned scale, PAX's per-dim scale. If
      not, queries are divided by the root of DIMS_PER_HEAD.
    QK_NORM: Whether layer norms of each head normalise queries and keys.
    LAYERS_PER_BLOCK: Layers of one turn of the loop over layers. The backward pass computes again
      the activations that CHECKPOINT_POLICY does not keep, block by block, from the block's input.
      docs/pods.md shows where 2 layers take less memory than 1. A checkpoint stores layers by
      block, so it can only be restored with the same number.
  """

  UNIT = 'tokens'
  IS_CAUSAL: bool

  DATASET: DatasetSpec
  DATA_DIR: str | None = None
  DATA_SEED = 0

  NUM_HEADS: int | None  # None stands for MODEL_DIMS / DIMS_PER_HEAD.
  SEQ_LEN: int

  LEARNING_RATE = 1e-3  # [ours]
  WARMUP_STEPS = 4_000  # [ours], PAX's default
  WEIGHT_DECAY = 0.1  # [ours]
  ADAM_BETA1 = 0.9  # [ours], PAX's default
  ADAM_BETA2 = 0.99  # [ours], PAX's default
  ADAM_EPSILON = 1e-8  # [ours]
  CLIP_GRADIENT_NORM_TO_VALUE = 1.0  # [ours]
  OPTIMIZER: Optimizer = 'adamw'  # [paper], of decoders

  ATTENTION: Attention = 'softmax'
  PER_DIM_SCALE = True  # [ours], PAX's default
  QK_NORM = False

  FPROP_DTYPE = jnp.bfloat16  # [ours], PAX's default; parameters are float32
  ATTEN_LOGIT_CAP = 50.0  # [ours], PAX's default
  SOFTMAX_CAP_LOGITS = 30.0  # [ours], PAX's default
  LAYERS_PER_BLOCK = 1  # [ours]

  def num_heads(self) -> int:
    """Returns the number of attention heads."""
    return self.NUM_HEADS or self.MODEL_DIMS // self.DIMS_PER_HEAD

  def task(self) -> family.Task:
    """Returns the task: PAX's model with its optimiser and this experiment's schedule.

    Raises:
      UserError: The sizes do not fit each other.
    """
    self.check()
    layout = self.layout()
    task_p = super().task()
    task_p.model.lm_tpl.model_type = (
      LanguageModelType.CAUSAL if self.IS_CAUSAL else LanguageModelType.BIDIRECTIONAL
    )
    model_params.set_sharding_annotations_v1(
      task_p,
      self.TRAINING_OPTIMIZED_SHARDING,
      list(layout.ici_mesh_shape),
      list(layout.dcn_mesh_shape),
    )
    self._set_layers(task_p.model.lm_tpl, layout)
    use_fused(task_p.model, self.ATTENTION_KERNEL, self.ATTENTION_SUMMARY_QUERIES)
    self._set_attention(task_p.model.lm_tpl.stacked_transformer_tpl)
    _, set_optimizer = _OPTIMIZERS[self.OPTIMIZER]
    set_optimizer(task_p, Hyperparameters.of(self))
    self.set_intervals(task_p)
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

  def _set_attention(self, stack: pax_fiddle.Config) -> None:
    """Sets what differs from PAX's attention: its class, its scale and its norms."""
    block = stack.block if self.USE_REPEATED_LAYER else stack
    attention = block.transformer_layer_params_tpl.tr_atten_tpl
    if self.ATTENTION == 'differential':
      pax_fiddle.update_callable(attention, DifferentialAttention)
    if not self.PER_DIM_SCALE:
      attention.internal_enable_per_dim_scale = False
    if self.QK_NORM:
      attention.ln_tpl = pax_fiddle.Config(
        normalizations.LayerNorm, direct_scale=True, epsilon=1e-6
      )

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
      is_causal=self.IS_CAUSAL,
    )

  def units_per_step(self) -> int:
    """Returns the tokens of one step."""
    return self.GLOBAL_BATCH_SIZE * self.SEQ_LEN

  def model_flops(self, parameters: int) -> family.ModelFlops:
    """Returns the operations of one step, over all chips.

    They are 6 for each weight and token, and 12 T N H for each layer and token; with differential
    attention, whose two maps each mix all values, 18. Biases and scales, a thousandth of the whole,
    count as if they were matrices.
    """
    products = 18 if self.ATTENTION == 'differential' else 12
    attention = products * self.SEQ_LEN * self.num_heads() * self.DIMS_PER_HEAD * self.NUM_LAYERS
    return family.ModelFlops(
      weights=self.units_per_step() * 6 * parameters,
      attention=self.units_per_step() * attention,
      attended_share=fused.computed_share(self.SEQ_LEN) if self.IS_CAUSAL else 1.0,
    )

  def describe(self) -> dict[str, str]:
    """Returns the rows of `show`: sizes, batch, optimiser."""
    return {
      'layers, width, MLP hidden': f'{self.NUM_LAYERS}, {self.MODEL_DIMS:,}, {self.HIDDEN_DIMS:,}',
      'heads': f'{self.num_heads()} of {self.DIMS_PER_HEAD}{self._describe_heads()}',
      'vocabulary': f'{self.VOCAB_SIZE:,}',
      'activations, parameters': f'{jnp.dtype(self.FPROP_DTYPE).name}, float32',
      'global batch': f'{self.GLOBAL_BATCH_SIZE:,} x {self.SEQ_LEN:,}',
      'optimiser': (
        f'{_OPTIMIZERS[self.OPTIMIZER][0]}, betas {self.ADAM_BETA1} and {self.ADAM_BETA2}, '
        f'epsilon {self.ADAM_EPSILON}, weight decay {self.WEIGHT_DECAY}, '
        f'gradients clipped to {self.CLIP_GRADIENT_NORM_TO_VALUE}'
      ),
      'learning rate': (
        f'0 to {self.LEARNING_RATE} in {self.WARMUP_STEPS:,} steps, then by a cosine to 0 at step '
        f'{self.NUM_TRAIN_STEPS:,}'
      ),
    }

  def _describe_heads(self) -> str:
    """Returns what is said of heads that are not PAX's."""
    words = {
      ', the difference of two maps': self.ATTENTION == 'differential',
      ', queries and keys normalised': self.QK_NORM,
      ', one scale for all dimensions': not self.PER_DIM_SCALE,
    }
    return ''.join(word for word, is_said in words.items() if is_said)

  def check(self) -> None:
    """Checks the sizes against each other.

    Raises:
      UserError: A size, head, mesh, block or schedule does not fit, or an attention or optimiser
        is not known; the message has the fix.
    """
    checks.check_choice(self, 'ATTENTION', get_args(Attention))
    checks.check_choice(self, 'OPTIMIZER', get_args(Optimizer))
    sizes = ('NUM_LAYERS', 'MODEL_DIMS', 'HIDDEN_DIMS', 'DIMS_PER_HEAD', 'NUM_HEADS')
    checks.check_at_least(self, 1, (*sizes, 'SEQ_LEN', 'VOCAB_SIZE'))
    checks.check_at_least(self, 0, ('WEIGHT_DECAY', 'CLIP_GRADIENT_NORM_TO_VALUE', 'DROPOUT_PROB'))
    checks.check_adam(self.LEARNING_RATE, self.ADAM_BETA1, self.ADAM_BETA2, self.ADAM_EPSILON)
    checks.check_heads(self.MODEL_DIMS, self.num_heads(), self.DIMS_PER_HEAD)
    if self.ATTENTION == 'differential':
      is_rotary = self.USE_ROTARY_POSITION_EMB
      differential.check(self.DIMS_PER_HEAD, is_rotary=is_rotary, is_normed=self.QK_NORM)
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


class TinyText:
  """Sizes and steps for laptops, before the base of a family [ours]."""

  NUM_LAYERS = 4
  MODEL_DIMS = 128
  HIDDEN_DIMS = 256
  DIMS_PER_HEAD = 32
  VOCAB_SIZE = 4_096
  FPROP_DTYPE = jnp.float32
  # The fastest on a CPU, where writing and reading kept activations takes time.
  CHECKPOINT_POLICY = layers.AutodiffCheckpointType.SAVE_DOT_ONLY

  NUM_TRAIN_STEPS = 600
  WARMUP_STEPS = 60
  SUMMARY_INTERVAL_STEPS = 10
  ATTENTION_SUMMARY_QUERIES = 16
  EVAL_INTERVAL_STEPS = 300
  CHECKPOINT_EVERY_N_STEPS = 300
