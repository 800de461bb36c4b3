"""The arithmetic of a stack of Transformer layers, for the rule of the layout."""

import dataclasses

from laser_pax import ops
from laser_pax.experiment import layouts
from laser_pax.experiment.layouts import Policy
from laser_pax.ops import blocks, fused


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerSizes:
  """The sizes of a causal Transformer over a vocabulary, with a tied embedding: `layouts.Sizes`.

  Attributes:
    num_layers: L.
    model_dims: D.
    hidden_dims: F, of the MLP.
    attention_dims: N x H.
    vocab_size: V.
    seq_len: T.
    global_batch_size: B.
    activation_bytes: a, of one activation.
    layers_per_block: Layers whose activations are computed again together: k.
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

  def layer_weights(self) -> int:
    """Returns the weights of one layer's matrices: 4 D N H + 2 D F."""
    return self.model_dims * (4 * self.attention_dims + 2 * self.hidden_dims)

  def weights(self) -> int:
    """Returns the weights of the model's matrices, whose embedding is tied."""
    return self.num_layers * self.layer_weights() + self.vocab_size * self.model_dims

  def kept(self, policy: Policy) -> int:
    """Returns what is kept of a token and layer: its share of a block's input, and what is saved.

    Queries, keys and values count five widths, not three: the compiler keeps some in two layouts.
    """
    return self.model_dims // self.layers_per_block + self._saved(policy)

  def computed_again(self, policy: Policy) -> int:
    """Returns what a block's backward pass computes again, of a token and layer."""
    return self.model_dims + self._activations() - self._saved(policy)

  def backward_width(self) -> int:
    """Returns 2 N H + F + D, a quarter of what one layer's backward pass holds of a token."""
    return 2 * self.attention_dims + self.hidden_dims + self.model_dims

  def head_bytes(self, tokens: int) -> int:
    """Returns ((4 + a) D + 8 C) V: W's gradient in float32, W, and logits of C tokens."""
    chunk = min(tokens, ops.TOKENS_PER_CHUNK)
    return ((4 + self.activation_bytes) * self.model_dims + 8 * chunk) * self.vocab_size

  def step_flops(self, policy: Policy, platform: str) -> int:
    """Returns a step's operations: 6 a weight and token, attention, and what is computed again."""
    weights = 6 * self.weights() * self._tokens()
    return weights + self.attention_flops(policy, platform) + self.recomputed_flops(policy)

  def attention_flops(self, policy: Policy, platform: str) -> int:
    """Returns the operations of the attention's products, with those that are computed again.

    A product over T positions takes 2 T N H a layer and token. There are two forward, and under a
    policy that does not keep what they give, the two are computed again. Backward there are five,
    as the logits are computed anew. On a TPU there are seven: each of the two fused kernels
    computes the logits and their gradient. Blocks wholly above the causal diagonal are left out.
    """
    on_tpu = platform == 'tpu'
    products = 2 + (7 if on_tpu else 5) + (2 if policy in layouts.POLICIES else 0)
    share = (fused if on_tpu else blocks).computed_share(self.seq_len)
    product = 2 * self._tokens() * self.num_layers * self.seq_len * self.attention_dims
    return round(share * products * product)

  def recomputed_flops(self, policy: Policy) -> int:
    """Returns the operations beside attention that are computed again.

    The MLP's second product is among them only in layers whose output the next of their block
    needs.
    """
    first = 2 * self.model_dims * self.hidden_dims
    second = first * (self.layers_per_block - 1) // self.layers_per_block
    projections = 8 * self.model_dims * self.attention_dims
    again = {
      Policy.SAVE_NOTHING: first + second + projections,
      Policy.SAVE_QKV_OUT_PROJ: first + second,
    }
    return self._tokens() * self.num_layers * again.get(policy, 0)

  def _tokens(self) -> int:
    return self.global_batch_size * self.seq_len

  def _saved(self, policy: Policy) -> int:
    """Returns the activations of a token and layer that the policy saves."""
    d, n, f = self.model_dims, self.attention_dims, self.hidden_dims
    saved = {
      Policy.SAVE_DOT_WITH_NO_BATCH_DIM: 5 * n + 2 * d + f,
      Policy.SAVE_QKV_OUT_PROJ: 5 * n + d,
      Policy.SAVE_NOTHING: 0,
    }
    return saved.get(policy, self._activations())

  def _activations(self) -> int:
    """Returns all activations of a token and layer but its input.

    Policies that the rule never chooses are taken to save them all.
    """
    return 6 * self.attention_dims + 2 * self.model_dims + self.hidden_dims
