r"""A model whose attentions can be looked at: probabilities, spread of values, gradients.

`observe` gives each attention of a config two things. A layer of the same fields and variables adds
statistics of its probabilities and values to Praxis's summaries. A `Probe` computes the logits, and
has a variable that is 0. The gradient with respect to that variable is defined to be

    sum over B, T, S of (d loss / d logit_btns)^2         for each head n

so one backward pass gives the gradients of all layers, and no T x T gradient is kept. A fused layer
takes its plain path under a `Probe`, because a kernel forms neither probabilities nor logits.

Shapes: B batch, T query length, S key length, N heads, E thresholds, L turns of a loop over layers.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import fiddle
import jax
import jax.numpy as jnp
from fiddle import daglish
from praxis import base_layer, pax_fiddle, pytypes
from praxis.layers import attentions, base_ops

from laser_pax import layers
from laser_pax.errors import UserError
from laser_pax.layers import attention_statistics, segments, swap

JTensor = pytypes.JTensor

# The probabilities' distribution is known at these: 1 and 3 of each decade.
THRESHOLDS = tuple(float(f'{digit}e{power}') for power in range(-12, 0) for digit in (1, 3))
# The variable of a `Probe`, under the attention's own path.
PROBE, SQUARES = 'qk_einsum', 'squares'
_PREFIX = 'observed_'
_OBSERVABLE = (
  attentions.DotProductAttention,
  attentions.DotProductAttentionXL,
  layers.FusedDotProductAttention,
  layers.LaserDotProductAttention,
  layers.LaserDotProductAttentionXL,
  layers.LaserFusedDotProductAttention,
)


@jax.custom_vjp
def _probed(logits: JTensor, squares: JTensor) -> JTensor:
  """Returns the logits. The cotangent of `squares` is the squared norm of theirs, by head."""
  del squares
  return logits


def _probed_forward(logits, squares):
  return _probed(logits, squares), None


def _probed_backward(_, cotangent):
  squares = jnp.sum(jnp.square(cotangent.astype(jnp.float32)), axis=(0, 2, 3))
  return cotangent, squares


_probed.defvjp(_probed_forward, _probed_backward)


class Probe(base_ops.EinsumOp):
  """Praxis's einsum of queries and keys, whose gradient is measured by head.

  Attributes:
    num_heads: N. The attention sets it.
  """

  num_heads: int = 0

  def setup(self) -> None:
    """Makes the variable, in float32 whatever the precision of the model."""
    collections = base_layer.WeightHParamsCollection
    hparams = base_layer.WeightHParams(
      shape=[self.num_heads],
      init=base_layer.WeightInit.Constant(0.0),
      mesh_shape=self.mesh_shape,
      collections=[collections.DISALLOW_BFLOAT16_CONVERSION],
    )
    self.create_variable(SQUARES, hparams)

  def __call__(self, equation: str, *args: JTensor) -> JTensor:
    """Returns the logits, [B, N, T, S]."""
    return _probed(super().__call__(equation, *args), self.theta[SQUARES])


class _Observed:
  """A base before an attention, which summarises what it attends with."""

  def create_child(self, name: str, params: pax_fiddle.Config, **kwargs) -> base_layer.BaseLayer:
    """Creates a child as the base does; the probe learns the number of heads."""
    if name == PROBE:
      params.num_heads = self.num_heads
    return super().create_child(name, params, **kwargs)

  def _dot_atten(
    self,
    query: JTensor,
    key: JTensor,
    value: JTensor,
    atten_mask: segments.Mask,
    relative_bias: JTensor | None = None,
  ) -> tuple[JTensor, JTensor]:
    encoded, probs = super()._dot_atten(query, key, value, atten_mask, relative_bias)
    visible = segments.visibility(atten_mask, query.shape[1])
    pairs = jnp.broadcast_to(visible.pairs, (query.shape[0], *visible.pairs.shape[1:]))
    fixed_probs, fixed_value = jax.lax.stop_gradient((probs, value))
    spread = attention_statistics.spread(fixed_value, visible.keys)
    statistics = {
      'below': attention_statistics.count_below(fixed_probs, pairs, THRESHOLDS),
      'pairs': pairs.sum(dtype=jnp.float32),
      'value_std': spread.std,
      'value_range': spread.mean_range,
      'value_range_max': spread.max_range,
    }
    for name, x in statistics.items():
      self.add_summary(f'{_PREFIX}{name}', x)
    return encoded, probs


@functools.cache
def _observed(attention: type) -> type:
  """Returns the class of an attention that is observed."""
  return type(f'Observed{attention.__name__}', (_Observed, attention), {'__module__': __name__})


def observe(config: fiddle.Buildable) -> None:
  """Makes each attention of a config observable, in place.

  Raises:
    UserError: The config has no attention, or one whose probabilities this cannot read.
  """
  nodes = [(node, swap.attention_class(node)) for node, _ in daglish.iterate(config)]
  nodes = [(node, attention) for node, attention in nodes if attention is not None]
  if not nodes:
    raise UserError('there is nothing to analyse: this model has no attention')
  for _, attention in nodes:
    if attention not in _OBSERVABLE:
      known = ', '.join(cls.__name__ for cls in _OBSERVABLE)
      raise UserError(
        f'cannot analyse {attention.__name__}: expected attentions whose probabilities are all '
        f'pairs of positions, {known}'
      )
  for node, attention in nodes:
    pax_fiddle.update_callable(node, _observed(attention))
    node.qk_einsum_tpl = pax_fiddle.Config(Probe)


def statistics(summaries: Mapping[str, JTensor]) -> dict[str, dict[str, JTensor]]:
  """Returns the statistics of each attention, by its path and their names.

  Args:
    summaries: Praxis's summaries. In a loop over layers it gives an array for each turn, or one
      for all: here it is one.
  """
  suffix = base_layer.get_summary_type_suffix(base_layer.SummaryType.SCALAR)
  pattern = re.compile(rf'(.+)/{_PREFIX}([a-z_]+?)(?:_(\d+))?{suffix}')
  by_turn: dict[tuple[str, str], dict[int | None, JTensor]] = {}
  for name, x in summaries.items():
    if match := pattern.fullmatch(name):
      path, statistic, turn = match.groups()
      turns = by_turn.setdefault((path, statistic), {})
      turns[None if turn is None else int(turn)] = x
  result: dict[str, dict[str, JTensor]] = {}
  for (path, statistic), turns in by_turn.items():
    whole = turns.get(None)
    if whole is None:
      whole = jnp.concatenate([turns[turn] for turn in sorted(turns)])
    result.setdefault(path, {})[statistic] = whole
  return result


def gradient_norms(gradients: Mapping[str, Any], path: str) -> dict[str, JTensor]:
  """Returns norms of gradients of one attention: `logits` [L, N]; `query`, `key`, `value` [L].

  Without a loop over layers there is no L.

  Args:
    gradients: The gradients of all weights, as a tree.
    path: The attention's path.

  Raises:
    UserError: The attention has other projections.
  """
  node = gradients
  for part in path.split('/'):
    node = node[part]
  squares = node[PROBE][SQUARES]
  loops = squares.ndim - 1
  if 'combined_qkv' in node:
    parts = jnp.moveaxis(node['combined_qkv']['w'], loops, 0)
  elif {'query', 'key', 'value'} <= set(node):
    parts = [node[name]['w'] for name in ('query', 'key', 'value')]
  else:
    raise UserError(f'{path}: expected projections named query, key and value, or combined_qkv')
  norms = {
    name: jnp.sqrt(jnp.sum(jnp.square(w.astype(jnp.float32)), axis=tuple(range(loops, w.ndim))))
    for name, w in zip(('query', 'key', 'value'), parts, strict=True)
  }
  return {'logits': jnp.sqrt(squares), **norms}
