"""The sizes of a stack of Transformer layers, for the layout rule."""

import dataclasses

from laser_pax import ops
from laser_pax.experiment import layouts
from laser_pax.experiment.layouts import Policy
from laser_pax.ops import blocks, fused


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerSizes:
  """The sizes of a causal Transformer over a vocabulary, with a tied embedding: `layouts.Sizes`.

  Attributes:
    num_layers: L, the number of layers.
    model_dims: D, the width of the model.
    hidden_dims: F, the width of the MLP's hidden layer.
    attention_dims: N H, the width of all heads together.
    vocab_size: V, the size of the vocabulary.
    seq_len: T, the positions of one row.
    global_batch_size: B, the rows of one step.
    activation_bytes: a, the bytes of one activation.
    layers_per_block: k, the layers whose activations are computed again together.
    is_causal: Whether a position sees itself and earlier ones alone.
  """

  num_layers: int
  model_dims: int
  hidden_dims: int
  attention_dims: int
  vocab_size: int
  seq_len: int
  global_batch_size: int
  activation_bytes: int
  layers_per_block: int = 1
  is_causal: bool = True

  def layer_weights(self) -> int:
    """Returns the number of weights of one layer's matrices: 4 D N H + 2 D F."""
    return self.model_dims * (4 * self.attention_dims + 2 * self.hidden_dims)

  def weights(self) -> int:
    """Returns the number of weights of all matrices. The tied embedding counts once."""
    return self.num_layers * self.layer_weights() + self.vocab_size * self.model_dims

  def kept_activations(self, policy: Policy) -> int:
    """Returns how many activations are kept for the backward pass, per token and layer.

    They are a layer's share of its block's input, and those that the policy saves.
    """
    return self.model_dims // self.layers_per_block + self._saved(policy)

  def recomputed_activations(self, policy: Policy) -> int:
    """Returns how many activations a block's backward pass recomputes, per token and layer."""
    return self.model_dims + self._activations() - self._saved(policy)

  def backward_width(self) -> int:
    """Returns a quarter of the activations per token that a layer's backward pass holds.

    It is 2 N H + F + D.
    """
    return 2 * self.attention_dims + self.hidden_dims + self.model_dims

  def head_bytes(self, tokens: int) -> int:
    """Returns the bytes that the loss holds for `tokens` tokens: ((4 + a) D + 8 C) V.

    They are the embedding's gradient in float32, the embedding, and the logits of C tokens. C is
    the chunk of tokens that the loss computes at once.
    """
    chunk = min(tokens, ops.TOKENS_PER_CHUNK)
    return ((4 + self.activation_bytes) * self.model_dims + 8 * chunk) * self.vocab_size

  def step_flops(self, policy: Policy, platform: str) -> int:
    """Returns the operations of one step.

    They are 6 for each weight and token, those of attention, and those that are computed again.

    Args:
      policy: Checkpoint policy of the layers.
      platform: Platform of jax. On 'tpu' a fused kernel computes the attention.
    """
    weights = 6 * self.weights() * self._tokens()
    return weights + self.attention_flops(policy, platform) + self.recomputed_flops(policy)

  def attention_flops(self, policy: Policy, platform: str) -> int:
    """Returns the operations of attention's products, including those that are computed again.

    A product over T positions takes 2 T N H for each layer and token. The forward pass has two
    products. Policies that do not keep their results compute these two again. The backward pass has
    five, because it computes the logits anew. On a TPU it has seven: both of its fused kernels
    compute the logits and their gradient. Blocks wholly above a causal diagonal are left out.
    """
    on_tpu = platform == 'tpu'
    products = 2 + (7 if on_tpu else 5) + (2 if policy in layouts.POLICIES else 0)
    share = (fused if on_tpu else blocks).computed_share(self.seq_len) if self.is_causal else 1.0
    product = 2 * self._tokens() * self.num_layers * self.seq_len * self.attention_dims
    return round(share * products * product)

  def recomputed_flops(self, policy: Policy) -> int:
    """Returns the operations outside attention that are computed again.

    The MLP's second product is computed again only in layers whose output the next layer of their
    block needs.
    """
    first = 2 * self.model_dims * self.hidden_dims
    second = first * (self.layers_per_block - 1) // self.layers_per_block
    projections = 8 * self.model_dims * self.attention_dims
    recomputed = {
      Policy.SAVE_NOTHING: first + second + projections,
      Policy.SAVE_QKV_OUT_PROJ: first + second,
    }
    return self._tokens() * self.num_layers * recomputed.get(policy, 0)

  def _tokens(self) -> int:
    return self.global_batch_size * self.seq_len

  def _saved(self, policy: Policy) -> int:
    """Returns how many activations the policy saves, per token and layer.

    Queries, keys and values count five widths, not three: the compiler keeps some in two layouts.
    """
    d, n, f = self.model_dims, self.attention_dims, self.hidden_dims
    saved = {
      Policy.SAVE_DOT_WITH_NO_BATCH_DIM: 5 * n + 2 * d + f,
      Policy.SAVE_QKV_OUT_PROJ: 5 * n + d,
      Policy.SAVE_NOTHING: 0,
    }
    return saved.get(policy, self._activations())

  def _activations(self) -> int:
    """Returns how many activations a layer has per token, without its input.

    For policies that the layout rule never chooses, the estimate assumes that all are saved.
    """
    return 6 * self.attention_dims + 2 * self.model_dims + self.hidden_dims


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionSizes(TransformerSizes):
  """The sizes of a Vision Transformer: `layouts.Sizes`. The classes take the vocabulary's place.

  Attributes:
    patch_values: Numbers of one patch.
  """

  patch_values: int

  def position_weights(self) -> int:
    """Returns the number of weights that each position uses: patches and layers."""
    return self.num_layers * self.layer_weights() + self.patch_values * self.model_dims

  def weights(self) -> int:
    """Returns the number of weights of all matrices."""
    return self.position_weights() + (self.model_dims + self.vocab_size) * self.model_dims

  def head_bytes(self, tokens: int) -> int:
    """Returns the bytes of images, and of logits with their gradient, for `tokens` positions."""
    return 4 * tokens * self.patch_values + 8 * tokens // self.seq_len * self.vocab_size

  def step_flops(self, policy: Policy, platform: str) -> int:
    """Returns the operations of one step, as the base; an image uses the head once."""
    images = self.global_batch_size
    head = 6 * images * (self.weights() - self.position_weights())
    body = 6 * images * self.seq_len * self.position_weights()
    return head + body + self.attention_flops(policy, platform) + self.recomputed_flops(policy)
