"""A Conformer that writes down what it hears: AlgoPerf's model, of Praxis's layers.

    log-mel spectrogram -> SpecAugment -> two convolutions of stride 2 -> Conformer blocks -> CTC

The blocks are Praxis's: x += FF(x) / 2; x += attention(x); x += convolution(x); x += FF(x) / 2;
x = LN(x). Praxis lacks the convolutions before them, and a model with the CTC loss.

Shapes: B batch, S samples, T frames, F bins, D model dim, L labels, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from praxis import base_input, base_layer, base_model, pax_fiddle, py_utils, pytypes
from praxis.layers import (
  activations,
  attentions,
  conformers,
  convolutions,
  embedding_softmax,
  linears,
  normalizations,
  repeats,
  spectrum_augmenter,
  stochastics,
)

from laser_pax.layers import log_mel

JTensor = pytypes.JTensor
NestedMap = py_utils.NestedMap
LayerTpl = pax_fiddle.Config[base_layer.BaseLayer]
AutodiffCheckpointType = repeats.AutodiffCheckpointType

# The label that says nothing. It is the padding of a vocabulary of T5's layout.
BLANK = 0

_XAVIER = base_layer.WeightInit.Xavier(1.0)


class Subsampling(base_layer.BaseLayer):
  """Makes a sequence four times shorter by two convolutions of 3 x 3 and stride 2, with ReLU.

  Padded frames are zero before each convolution and after it, so that they change no other.

  Attributes:
    model_dims: D, the number of channels, and the width of the result.
    conv_tpl: Template of the convolutions.
    linear_tpl: Template of the projection.
  """

  model_dims: int = 0
  conv_tpl: LayerTpl = base_layer.template_field(convolutions.Conv2D)
  linear_tpl: LayerTpl = base_layer.template_field(linears.FeedForward)

  def setup(self) -> None:
    """Creates the convolutions and the projection."""
    bins = log_mel.BINS
    for i, channels in enumerate((1, self.model_dims)):
      conv = self.conv_tpl.clone().set(
        filter_shape=(3, 3, channels, self.model_dims),
        filter_stride=(2, 2),
        bias=True,
        tf_equivalent_padding=True,
      )
      self.create_child(f'conv_{i}', conv)
      bins = -(-bins // 2)
    linear = self.linear_tpl.clone().set(
      input_dims=bins * self.model_dims,
      output_dims=self.model_dims,
      activation_tpl=pax_fiddle.Config(activations.Identity),
    )
    self.create_child('linear', linear)

  def __call__(self, inputs: JTensor, paddings: JTensor) -> tuple[JTensor, JTensor]:
    """Returns the shorter sequence [B, T / 4, D] and its paddings [B, T / 4].

    Args:
      inputs: [B, T, F].
      paddings: [B, T].
    """
    x = inputs[..., None] * (1 - paddings)[:, :, None, None]
    for conv in (self.conv_0, self.conv_1):
      paddings = paddings[:, ::2]
      x = jax.nn.relu(conv(x)) * (1 - paddings)[:, :, None, None]
    return self.linear(x.reshape(*x.shape[:2], -1)), paddings


class ConformerEncoder(base_layer.BaseLayer):
  """Subsampling, fixed positions, and a stack of Conformer blocks.

  Attributes:
    model_dims: D.
    num_layers: Number of blocks.
    input_dropout_prob: Dropout of what the first block reads.
    subsampling_tpl: Template of the convolutions before the blocks.
    position_tpl: Template of the positions: sines and cosines of 1 to 10,000 frames.
    dropout_tpl: Template of the dropout.
    block_tpl: Template of one block. The blocks run in a loop, which is compiled once for all.
    checkpoint_policy: The activations that blocks keep for the backward pass.
  """

  model_dims: int = 0
  num_layers: int = 0
  input_dropout_prob: float = 0.0
  subsampling_tpl: LayerTpl = base_layer.template_field(Subsampling)
  position_tpl: LayerTpl = base_layer.template_field(embedding_softmax.PositionalEmbedding)
  dropout_tpl: LayerTpl = base_layer.template_field(stochastics.Dropout)
  block_tpl: LayerTpl = base_layer.template_field(conformers.Conformer)
  checkpoint_policy: AutodiffCheckpointType = AutodiffCheckpointType.SAVE_EVERYTHING

  def setup(self) -> None:
    """Creates the children."""
    dims = self.model_dims
    self.create_child('subsampling', self.subsampling_tpl.clone().set(model_dims=dims))
    self.create_child('position', self.position_tpl.clone().set(embedding_dims=dims))
    dropout = self.dropout_tpl.clone().set(keep_prob=1 - self.input_dropout_prob)
    self.create_child('dropout', dropout)
    blocks = pax_fiddle.Config(
      repeats.Repeat,
      sub_tpl=self.block_tpl.clone().set(input_dims=dims, model_dims=dims),
      x_times=self.num_layers,
      checkpoint_policy=self.checkpoint_policy,
    )
    self.create_child('blocks', blocks)

  def __call__(self, inputs: JTensor, paddings: JTensor) -> tuple[JTensor, JTensor]:
    """Returns the encoded frames [B, T / 4, D] and their paddings [B, T / 4].

    Args:
      inputs: [B, T, F].
      paddings: [B, T].
    """
    x, paddings = self.subsampling(inputs, paddings)
    x = self.dropout(x + self.position(x.shape[1]))
    return self.blocks(x, paddings), paddings


def conformer_block(
  *,
  num_heads: int,
  hidden_factor: int,
  kernel_size: int,
  dropout_prob: float,
  batch_norm_decay: float,
) -> LayerTpl:
  """Returns the template of AlgoPerf's Conformer block, made of Praxis's.

  Dropout follows the attention and the feed-forward layers, as AlgoPerf had it until 2025. The
  positions are those that the input has: no relative ones.

  Args:
    num_heads: N, the heads of attention.
    hidden_factor: Width of the hidden layers, as a multiple of D.
    kernel_size: Frames of the depthwise convolution.
    dropout_prob: Probability of dropout.
    batch_norm_decay: Decay of the moving statistics of the batch norm.
  """
  block = pax_fiddle.Config(
    conformers.Conformer,
    kernel_size=kernel_size,
    ffn_dim_multiplier=hidden_factor,
    atten_num_heads=num_heads,
    atten_residual_dropout=dropout_prob,
    ffn_residual_dropout=dropout_prob,
  )
  attention = pax_fiddle.Config(attentions.DotProductAttention)
  attention.proj_tpl.explicit_fan_in_fan_out_axes = True
  attention.proj_tpl.params_init = _XAVIER
  block.trans_atten_tpl.self_atten_tpl = attention
  block.lconv_tpl.linear_start_tpl.weight_init = _XAVIER
  block.lconv_tpl.linear_end_tpl.weight_init = _XAVIER
  block.lconv_tpl.conv_norm_layer_tpl.decay = batch_norm_decay
  return block


class CtcModel(base_model.BaseModel):
  """A model of speech with the CTC loss, which decodes greedily.

  data/librispeech.py lists the fields of a batch.

  Attributes:
    vocab_size: V, the number of labels, the blank included.
    model_dims: D.
    augmenter_tpl: Template of SpecAugment.
    encoder_tpl: Template of the encoder.
    norm_tpl: Template of the norm before the logits.
    logits_tpl: Template of the projection to the logits.
  """

  vocab_size: int = 0
  model_dims: int = 0
  augmenter_tpl: LayerTpl = base_layer.template_field(spectrum_augmenter.SpectrumAugmenter)
  encoder_tpl: LayerTpl = base_layer.template_field(ConformerEncoder)
  norm_tpl: LayerTpl = base_layer.template_field(normalizations.LayerNorm)
  logits_tpl: LayerTpl = base_layer.template_field(linears.FeedForward)

  def setup(self) -> None:
    """Creates the children."""
    self.create_child('augmenter', self.augmenter_tpl)
    self.create_child('encoder', self.encoder_tpl.clone().set(model_dims=self.model_dims))
    self.create_child('norm', self.norm_tpl.clone().set(dim=self.model_dims))
    logits = self.logits_tpl.clone().set(
      input_dims=self.model_dims,
      output_dims=self.vocab_size,
      activation_tpl=pax_fiddle.Config(activations.Identity),
    )
    self.create_child('logits', logits)

  def compute_predictions(self, input_batch: NestedMap) -> NestedMap:
    """Returns `logits`, [B, T / 4, V], and their `paddings`, [B, T / 4]."""
    features = log_mel.log_mel(input_batch.speech)
    paddings = log_mel.frame_paddings(input_batch.num_samples, features.shape[1])
    features, _ = self.augmenter(features, paddings)
    encoded, paddings = self.encoder(features, paddings)
    return NestedMap(logits=self.logits(self.norm(encoded)), paddings=paddings)

  def compute_loss(
    self, predictions: NestedMap, input_batch: NestedMap
  ) -> tuple[NestedMap, NestedMap]:
    """Returns the CTC loss over all labels, as (value, weight), and the loss of each row.

        total_loss = sum over rows -log p(labels | speech) / number of labels

    Args:
      predictions: What `compute_predictions` returned.
      input_batch: The batch.
    """
    paddings = input_batch.label_paddings
    losses = optax.ctc_loss(
      predictions.logits.astype(jnp.float32),
      predictions.paddings,
      input_batch.labels,
      paddings,
      blank_id=BLANK,
    )
    weights = _row_weights(input_batch)
    num_labels = jnp.sum((1 - paddings) * weights[:, None])
    loss = jnp.sum(losses * weights) / jnp.maximum(num_labels, 1)
    rows = jnp.sum(weights)
    metrics = NestedMap(total_loss=(loss, num_labels), num_predictions=(num_labels, rows))
    return metrics, NestedMap(ctc_loss=losses)

  def decode(self, input_batch: NestedMap) -> tuple[NestedMap, NestedMap, NestedMap]:
    """Returns the likeliest label of each frame, and what `process_decode_out` needs."""
    predictions = self.compute_predictions(input_batch)
    best = jnp.argmax(predictions.logits, -1).astype(jnp.int32)
    decoded = NestedMap(
      frame_labels=jnp.where(predictions.paddings > 0, BLANK, best),
      labels=input_batch.labels,
      label_paddings=input_batch.label_paddings,
      weights=_row_weights(input_batch),
    )
    return NestedMap(num_decoded=(jnp.sum(decoded.weights), jnp.float32(1))), decoded, NestedMap()

  def process_decode_out(
    self, input_obj: base_input.BaseInput, decode_out: NestedMap
  ) -> tuple[NestedMap, list[tuple[str, dict]], NestedMap]:
    """Returns the word error rate of a batch, weighted by its words, and each row's texts.

    Args:
      input_obj: The input, which has the vocabulary.
      decode_out: What `decode` returned, as arrays of numpy.
    """
    import jiwer

    hypotheses, references = [], []
    for i in np.flatnonzero(decode_out.weights):
      is_label = decode_out.label_paddings[i] == 0
      texts = collapse(decode_out.frame_labels[i]), decode_out.labels[i][is_label]
      for ids, kept in zip(texts, (hypotheses, references), strict=True):
        kept.extend(input_obj.ids_to_strings(np.array([ids], np.int64), [len(ids)], 'labels'))
    words = sum(len(text.split()) for text in references)
    if not words:
      return NestedMap(wer=(jnp.float32(0), jnp.float32(0))), [], NestedMap()
    counts = jiwer.process_words(references, hypotheses)
    errors = counts.substitutions + counts.deletions + counts.insertions
    rows = [
      (str(i), {'hypothesis': hypothesis, 'reference': reference})
      for i, (hypothesis, reference) in enumerate(zip(hypotheses, references, strict=True))
    ]
    return NestedMap(wer=(jnp.float32(errors / words), jnp.float32(words))), rows, NestedMap()


def collapse(frame_labels: np.ndarray) -> np.ndarray:
  """Returns the labels of a path: repetitions are merged, and then blanks are dropped.

  Args:
    frame_labels: [T] integers, the label of each frame.
  """
  is_new = np.diff(frame_labels, prepend=BLANK) != 0
  return frame_labels[is_new & (frame_labels != BLANK)]


def _row_weights(input_batch: NestedMap) -> JTensor:
  """Returns 0 for rows that only fill the last batch of an evaluation, else 1: [B]."""
  weights = input_batch.get('weight')
  return jnp.ones(len(input_batch.labels), jnp.float32) if weights is None else weights
