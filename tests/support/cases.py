"""Every LASER layer in a form that a user could pick, and how to run it beside its reference."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from praxis import base_layer, pax_fiddle, py_utils

from laser_pax import layers
from tests.support.programs import compiled as compiled

B, T, S, N, H = 2, 10, 7, 4, 8  # S: keys of cross attention; of self attention, T.
D = N * H
STANDARD = {  # Of each LASER class the standard one.
  cls: next(base for base in cls.__mro__ if base.__module__.startswith('praxis.'))
  for cls in (getattr(layers, name) for name in layers.__all__ if name.startswith('Laser'))
}
LARGE_NEGATIVE = py_utils.get_large_negative_number(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Case:
  """A LASER layer with the fields under test.

  Attributes:
    laser: The class.
    fields: Of its config, beside the sizes.
    causal: Whether the mask is causal.
    window: (left, right) context that the layer sees on its own, the position itself in left.
    decodes: Whether the layer has extend_step.
    cross: Whether keys and values come from another sequence.
  """

  laser: type
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)
  causal: bool = True
  window: tuple[int, int] | None = None
  decodes: bool = True
  cross: bool = False

  def __hash__(self):
    return id(self)

  def config(self, cls=None, **fields):
    sizes = {'input_dim': D, 'num_heads': N, 'dim_per_head': H, 'hidden_dim': D}
    return pax_fiddle.Config(cls or self.laser, name='atten', **(sizes | self.fields | fields))


def windowed(left, right, **fields):
  return {
    'fields': {'left_context': left, 'right_context': right, **fields},
    'window': (left, right),
  }


_XL = {'rel_pos_emb_dim': D}
_ROPE = {'use_rotary_position_emb': True}
CASES = {
  'multi_head': Case(layers.LaserDotProductAttention, {'atten_logit_cap': 5.0}),
  'fused': Case(layers.LaserFusedDotProductAttention, {'atten_logit_cap': 5.0}),
  'combined_qkv': Case(layers.LaserDotProductAttention, {'combine_qkv': True}),
  'rotary': Case(layers.LaserDotProductAttention, _ROPE | {'dconv_qkv': True}),
  'cross': Case(layers.LaserDotProductAttention, causal=False, cross=True),
  'xl': Case(layers.LaserDotProductAttentionXL, _XL),
  'context': Case(layers.LaserDotProductAttentionWithContext, **windowed(3, 0)),
  'context_xl': Case(layers.LaserDotProductAttentionWithContextXL, **windowed(3, 0, **_XL)),
  'local': Case(layers.LaserLocalSelfAttention, **windowed(3, 0, block_size=4)),
  'local_simulated': Case(layers.LaserLocalSelfAttention, **windowed(3, 0, simulated=True)),
  'local_two_sided': Case(
    layers.LaserLocalSelfAttention, **windowed(3, 2), causal=False, decodes=False
  ),
  'local_xl': Case(
    layers.LaserLocalSelfAttentionXL, **windowed(3, 1, block_size=4, **_XL), decodes=False
  ),
  'local_relative_bias': Case(
    layers.LaserLocalSelfAttentionRelativeBias, **windowed(3, 1, block_size=4), decodes=False
  ),
  'local_alibi': Case(
    layers.LaserLocalSelfAttentionAlibi, **windowed(3, 1, block_size=4), decodes=False
  ),
  'multi_query': Case(layers.LaserMultiQueryDotProductAttention, _ROPE),
  'multi_query_2_kv_heads': Case(layers.LaserMultiQueryDotProductAttention, {'num_kv_heads': 2}),
  'grouped_query': Case(layers.LaserGroupedQueryAttention, {'num_kv_heads': 2}),
  'grouped_query_1_kv_head': Case(
    layers.LaserGroupedQueryAttention, {'rope_min_max_timescales': (1, 100)}
  ),
}


def context(do_eval=True):
  """The JaxContext in which layers run."""
  hparams = base_layer.JaxContext.HParams(do_eval=do_eval)
  return base_layer.JaxContext.new_context(hparams=hparams)


@functools.cache
def visibility(case, kind):
  """Returns booleans [B, T, S], True where a query may see a key; 'padding' or 'packing'."""
  keys = S if case.cross else T
  if kind == 'padding':  # At the end; in front, where causal rows then see nothing.
    real = np.ones((B, keys), bool)
    real[0, -3:] = real[1, :2] = False
    seen = np.broadcast_to(real[:, None], (B, T, keys)).copy()
  else:
    queries = np.array([[0] * 4 + [1] * 6, [0] + [1] * 7 + [2] * 2])
    seen = queries[:, :, None] == queries[:, None, :keys]
  distance = np.arange(T)[:, None] - np.arange(keys)
  if case.causal:
    seen &= distance >= 0
  if case.window is not None:
    seen &= (distance < case.window[0]) & (distance >= -case.window[1])
  return seen


def to_mask(case, seen):
  """Returns the mask of booleans seen [..., T, S] as the layer wants it, [..., 1, T, S]."""
  mask = jnp.expand_dims(seen, -3)
  if case.laser is layers.LaserGroupedQueryAttention:
    return ~mask
  return jnp.where(mask, 0.0, LARGE_NEGATIVE)


def layer_of(case, standard=False, **fields):
  """Returns the layer, or its standard twin."""
  cls = STANDARD[case.laser] if standard else case.laser
  return base_layer.instantiate(case.config(cls, **fields))


@functools.cache
def _shapes(case, standard, **fields):
  layer, inputs = layer_of(case, standard, **fields), arguments(case, *draw(case))
  with context():
    return jax.eval_shape(lambda: layer.init(jax.random.PRNGKey(0), *inputs))


def build(case, standard=False, **fields):
  """Returns the layer, or its standard twin, and variables that leave nothing at zero."""
  shaping = {k: v for k, v in fields.items() if k != 'fprop_dtype'}  # Variables are float32.
  return layer_of(case, standard, **fields), fill(_shapes(case, standard, **shaping))


def fill(shapes):
  """Returns a tree of arrays of these shapes, all normal with standard deviation 0.3."""
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: np.float32(0.3 * rng.standard_normal(x.shape)), shapes)


def draw(case, dtype=np.float32):
  """Returns the input of the queries and that of the keys and values."""
  rng = np.random.default_rng(2)
  query, memory = (rng.standard_normal((B, length, D)).astype(dtype) for length in (T, S))
  return query, memory if case.cross else query


def arguments(case, query, memory, seen=None):
  """Returns what the layer's __call__ takes; `seen` as `visibility` gives it."""
  seen = visibility(case, 'packing') if seen is None else seen
  positions = [np.broadcast_to(np.arange(x.shape[1]), x.shape[:2]) for x in (query, memory)]
  return query, memory, memory, to_mask(case, seen), *positions


def full_pass(case, layer, variables, query, memory, seen):
  """Returns output and probabilities of the whole sequence."""
  with context():
    return layer.apply(variables, *arguments(case, query, memory, seen))


def step_by_step(case, layer, variables, query, memory, seen):
  """Returns the output that extend_step gives, position by position."""
  mask = to_mask(case, seen)

  def step(state, inputs):
    x, mask, time = inputs
    output, state = layer.apply(
      variables | state,
      x,
      atten_mask=mask,
      time_step=time,
      segment_pos=None,
      is_cross_attention=case.cross,
      method=layer.extend_step,
      mutable=[base_layer.DECODE_CACHE],
    )
    return state, output

  with context():
    # The pass that makes the cache; of self attention its contents are noise, to be overwritten.
    noise = 9 + 0 * query
    prefill = arguments(case, noise, memory if case.cross else noise, seen)
    _, state = layer.apply(variables, *prefill, mutable=[base_layer.DECODE_CACHE])
    inputs = query.swapaxes(0, 1), jnp.moveaxis(mask, 2, 0), jnp.arange(T)
    return jax.lax.scan(step, state, inputs)[1].swapaxes(0, 1)


def dense(case, probs, keys):
  """Returns the probabilities that a layer gives back as [B, N, T, keys], whatever its layout."""
  if probs.ndim == 5 and case.window is not None:  # B, N, U, W, C: put blocks in their place.
    u, w, c = probs.shape[2:]
    left = case.window[0] - 1
    rows = [jnp.pad(probs[:, :, i], ((0, 0),) * 3 + ((i * w, (u - 1 - i) * w),)) for i in range(u)]
    return jnp.concatenate(rows, 2)[:, :, :T, left : left + keys]
  # Grouped, and multi-query with several key/value heads, are in this order whatever their shape.
  return probs.reshape(B, N, T, keys)


def reference(case, layer, variables, probs, memory):
  """Returns the output of LASER for given probabilities, by a log-sum-exp over every row itself."""

  def values(layer, x):
    return layer.combined_qkv(x)[2] if case.fields.get('combine_qkv') else value_of(layer, x)

  def value_of(layer, x):
    value = layer.value(x)
    return layer.dconv_v(value, axis=1) if case.fields.get('dconv_qkv') else value

  with context():
    value = layer.apply(variables, memory, method=values).astype(jnp.float32)
    value = value.reshape(*memory.shape[:2], -1, H)
    value = jnp.repeat(value, N // value.shape[2], 2).transpose(0, 2, 1, 3)[:, :, None]
    probs = dense(case, probs, memory.shape[1]).astype(jnp.float32)
    beta = _betas(layer, variables)
    encoded = jax.scipy.special.logsumexp(beta[..., None, :] * value, axis=3, b=probs[..., None])
    encoded = (encoded / beta).transpose(0, 2, 1, 3).astype(memory.dtype)
    return layer.apply(variables, encoded, method=lambda layer, x: layer.post(x))


def _betas(layer, variables):
  """Returns each query head's beta, [N, 1, H]; 1 of a layer that has none."""
  if layer.beta_tpl is None:
    return jnp.ones((N, 1, H))
  beta = jnp.atleast_2d(layer.apply(variables, method=lambda layer: layer.beta())) * jnp.ones(H)
  return jnp.repeat(beta, N // len(beta), 0)[:, None]


def rms_error(x, reference):
  """The root mean square of the error over that of the reference."""
  x, reference = np.asarray(x, np.float64), np.asarray(reference, np.float64)
  return np.sqrt(np.mean((x - reference) ** 2) / np.mean(reference**2))
