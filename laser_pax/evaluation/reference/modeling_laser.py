r"""The model of this folder for transformers: numpy_forward.py in PyTorch, with a cache.

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

    standard   O_th = sum_s p_ts v_sh
    LASER      O_th = log( sum_s p_ts exp(v_sh) )            p = softmax(cap(q k^T)), s <= t

Parameters have the names, and the layouts, of the files. A text's first input must be the id 0.

Shapes: B batch, T positions of the input, S positions of the keys, N heads, H head size, D model, F
hidden, V vocabulary.
"""

import math

import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

# A column of values in a narrower range than this cannot vanish in float32, exp(-80) = 2e-35.
_RANGE = 80.0


class LaserConfig(PretrainedConfig):
  """The contents of config.json, which has all of the fields."""

  model_type = 'laser_decoder'

  def __init__(
    self,
    attention: str = 'laser',
    num_hidden_layers: int = 1,
    hidden_size: int = 8,
    intermediate_size: int = 8,
    num_attention_heads: int = 1,
    head_dim: int = 8,
    vocab_size: int = 8,
    max_position_embeddings: int = 8,
    attention_logit_cap: float | None = None,
    logit_cap: float | None = None,
    **kwargs,
  ):
    """Takes the fields of a model."""
    self.attention = attention
    self.num_hidden_layers = num_hidden_layers
    self.hidden_size = hidden_size
    self.intermediate_size = intermediate_size
    self.num_attention_heads = num_attention_heads
    self.head_dim = head_dim
    self.vocab_size = vocab_size
    self.max_position_embeddings = max_position_embeddings
    self.attention_logit_cap = attention_logit_cap
    self.logit_cap = logit_cap
    # The embedding is one parameter; there are no two to tie.
    super().__init__(**{'tie_word_embeddings': False} | kwargs)


class Linear(nn.Module):
  """x w + b, with w of [inputs, outputs]; `Embedding` uses the same weights both ways."""

  def __init__(self, inputs: int, outputs: int):
    """Makes the parameters."""
    super().__init__()
    self.w = nn.Parameter(torch.zeros(inputs, outputs))
    self.b = nn.Parameter(torch.zeros(outputs))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Maps [..., inputs] to [..., outputs]."""
    return x @ self.w + self.b


class Norm(nn.Module):
  """Layer norm, with the factor 1 + scale."""

  def __init__(self, size: int):
    """Makes the parameters."""
    super().__init__()
    self.scale = nn.Parameter(torch.zeros(size))
    self.bias = nn.Parameter(torch.zeros(size))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Normalises the last axis."""
    return functional.layer_norm(x, x.shape[-1:], 1 + self.scale, self.bias, 1e-6)


class Projection(nn.Module):
  """A matrix between the model and its heads."""

  def __init__(self, *shape: int):
    """Makes the parameter."""
    super().__init__()
    self.w = nn.Parameter(torch.zeros(*shape))


class Attention(nn.Module):
  """Causal attention, standard or LASER."""

  def __init__(self, config: LaserConfig, layer: int):
    """Makes the parameters."""
    super().__init__()
    d, n, h = config.hidden_size, config.num_attention_heads, config.head_dim
    self.is_laser, self.logit_cap = config.attention == 'laser', config.attention_logit_cap
    self.layer = layer
    self.qkv = Projection(3, d, n, h)
    self.per_dim_scale = nn.Parameter(torch.zeros(h))
    self.out = Projection(d, n, h)

  def forward(self, x: torch.Tensor, mask: torch.Tensor, cache: Cache | None) -> torch.Tensor:
    """Returns the attention's output.

    Args:
      x: [B, T, D].
      mask: [B, 1, T, S] bool, True where a query sees a key.
      cache: Keys and values of earlier positions, to which these are added.

    Returns:
      [B, T, D].
    """
    q, k, v = torch.einsum('btd,cdnh->cbnth', x, self.qkv.w)
    if cache is not None:
      k, v = cache.update(k, v, self.layer)
    scale = functional.softplus(self.per_dim_scale) / (math.log(2) * math.sqrt(q.shape[-1]))
    logits = capped((q * scale) @ k.transpose(-1, -2), self.logit_cap).float()
    # A query that sees nothing, in padding, attends to all alike: -inf would give nan.
    logits = logits.masked_fill(~mask, torch.finfo(torch.float32).min)
    mix = mix_exponentials if self.is_laser else mix_values
    return torch.einsum('bnth,dnh->btd', mix(logits.log_softmax(-1), v).to(x.dtype), self.out.w)


def capped(logits: torch.Tensor, limit: float | None) -> torch.Tensor:
  """Keeps logits between -limit and limit."""
  return logits if limit is None else limit * torch.tanh(logits / limit)


def mix_values(log_p: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
  """Standard attention: sum_s p_ts v_sh, of [B, N, T, S] and [B, N, S, H]."""
  return log_p.exp() @ v.float()


def mix_exponentials(log_p: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
  """LASER: log( sum_s p_ts exp(v_sh) ), in float32, for any finite v.

  One product serves where no exponential can vanish beside the greatest of its column. Else each
  query takes its own greatest term out of the sum.

  Args:
    log_p: [B, N, T, S], logarithms of the probabilities.
    v: [B, N, S, H].

  Returns:
    [B, N, T, H] float32.
  """
  v = v.float()
  greatest = v.amax(-2, keepdim=True)
  if (greatest - v.amin(-2, keepdim=True)).max() < _RANGE:
    return greatest + torch.log(log_p.exp() @ torch.exp(v - greatest))
  rows = [torch.logsumexp(row[..., None] + v, dim=-2) for row in log_p.unbind(-2)]
  return torch.stack(rows, dim=-2)


class Mlp(nn.Module):
  """Two matrices with a ReLU between them."""

  def __init__(self, config: LaserConfig):
    """Makes the parameters."""
    super().__init__()
    self.up = Linear(config.hidden_size, config.intermediate_size)
    self.down = Linear(config.intermediate_size, config.hidden_size)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Maps [B, T, D] to [B, T, D]."""
    return self.down(functional.relu(self.up(x)))


class Layer(nn.Module):
  """Attention and MLP, each after a norm and beside a shortcut."""

  def __init__(self, config: LaserConfig, layer: int):
    """Makes the parameters."""
    super().__init__()
    self.attention_norm = Norm(config.hidden_size)
    self.attention = Attention(config, layer)
    self.mlp_norm = Norm(config.hidden_size)
    self.mlp = Mlp(config)

  def forward(self, x: torch.Tensor, mask: torch.Tensor, cache: Cache | None) -> torch.Tensor:
    """Maps [B, T, D] to [B, T, D]; see `Attention`."""
    x = x + self.attention(self.attention_norm(x), mask, cache)
    return x + self.mlp(self.mlp_norm(x))


class LaserForCausalLM(PreTrainedModel, GenerationMixin):
  """The language model."""

  config_class = LaserConfig
  _no_split_modules = ['Layer']

  def __init__(self, config: LaserConfig):
    """Makes the parameters: zeros, to be read from the files."""
    super().__init__(config)
    self.embedding = Linear(config.hidden_size, config.vocab_size)
    self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
    self.final_norm = Norm(config.hidden_size)
    self.post_init()

  def _init_weights(self, module: nn.Module) -> None:
    """Leaves parameters as they are made."""

  def forward(
    self,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    past_key_values: Cache | None = None,
    use_cache: bool | None = None,
    **kwargs,
  ) -> CausalLMOutputWithPast:
    """Returns the logits of the token after each position.

    Args:
      input_ids: [B, T].
      attention_mask: [B, S], 0 for padding, which may be on the left; None: there is none.
      position_ids: [B, T]; None: they are counted from the first id that is no padding.
      past_key_values: Keys and values of earlier positions.
      use_cache: Whether to return keys and values.
      **kwargs: What transformers adds for other models.

    Returns:
      Logits [B, T, V], and the cache.
    """
    if use_cache and past_key_values is None:
      past_key_values = DynamicCache()
    past = past_key_values.get_seq_length() if past_key_values is not None else 0
    batch, length = input_ids.shape
    if attention_mask is None:
      attention_mask = input_ids.new_ones(batch, past + length)
    if position_ids is None:
      position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
    causal = attention_mask.new_ones(past + length, past + length).tril().bool()[past:]
    mask = causal & attention_mask[:, None, None, :].bool()
    x = self.embedding.w.T[input_ids] * math.sqrt(self.config.hidden_size)
    x = x + positions(position_ids, self.config.hidden_size).to(x.dtype)
    for layer in self.layers:
      x = layer(x, mask, past_key_values)
    logits = capped(self.embedding(self.final_norm(x)), self.config.logit_cap)
    return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)


def positions(position_ids: torch.Tensor, size: int) -> torch.Tensor:
  """Returns sines and cosines of positions: [B, T, D] of [B, T]."""
  half = size // 2
  steps = torch.arange(half, dtype=torch.float32, device=position_ids.device)
  rates = torch.exp(steps * -math.log(10_000) / max(half - 1, 1))
  angles = position_ids[..., None] * rates
  return functional.pad(torch.cat([angles.sin(), angles.cos()], -1), (0, size % 2))
