"""LASER swapped into a config that somebody else wrote."""

import dataclasses
from typing import get_args

import fiddle
from fiddle import daglish
from praxis import pax_fiddle
from praxis.layers import attentions, conformers, grouped_query_attention, multi_query_attention

from laser_pax import ops
from laser_pax.errors import UserError
from laser_pax.layers.attentions import (
  BiasByBlocks,
  LaserDotProductAttention,
  LaserDotProductAttentionWithContext,
  LaserDotProductAttentionWithContextXL,
  LaserDotProductAttentionXL,
  LaserGroupedQueryAttention,
  LaserLocalSelfAttention,
  LaserLocalSelfAttentionAlibi,
  LaserLocalSelfAttentionRelativeBias,
  LaserLocalSelfAttentionXL,
  LaserMultiQueryDotProductAttention,
  changed_template,
)
from laser_pax.layers.beta import PAPERS_HAS_NONE, template
from laser_pax.layers.differential import DifferentialAttention, LaserDifferentialAttention
from laser_pax.layers.fused_attention import (
  FusedDotProductAttention,
  LaserFusedDotProductAttention,
)

_TWINS = {
  attentions.DotProductAttention: LaserDotProductAttention,
  FusedDotProductAttention: LaserFusedDotProductAttention,
  DifferentialAttention: LaserDifferentialAttention,
  attentions.DotProductAttentionXL: LaserDotProductAttentionXL,
  conformers.DotProductAttentionWithContext: LaserDotProductAttentionWithContext,
  conformers.DotProductAttentionWithContextXL: LaserDotProductAttentionWithContextXL,
  attentions.LocalSelfAttention: LaserLocalSelfAttention,
  attentions.LocalSelfAttentionXL: LaserLocalSelfAttentionXL,
  attentions.LocalSelfAttentionRelativeBias: LaserLocalSelfAttentionRelativeBias,
  attentions.LocalSelfAttentionAlibi: LaserLocalSelfAttentionAlibi,
  multi_query_attention.MultiQueryDotProductAttention: LaserMultiQueryDotProductAttention,
  grouped_query_attention.GroupedQueryAttention: LaserGroupedQueryAttention,
}
_LASERS = tuple(_TWINS.values())
_STANDARDS = {laser: standard for standard, laser in _TWINS.items()}
_FAMILIES = (
  attentions.DotProductAttention,
  multi_query_attention.MultiQueryDotProductAttention,
  grouped_query_attention.GroupedQueryAttention,
)

_LAZY_PREFIX = (
  'lazy prefix broadcast decodes a chunk of the cache at a time and adds the results up, and a sum '
  'of logarithms is no logarithm of a sum. Use {base} instead: it decodes without the sharing'
)
_REASONS = {  # The keys are beginnings of a class's full name.
  'praxis.layers.attentions.DotProductAttentionWithLPB': _LAZY_PREFIX.format(
    base='DotProductAttention'
  ),
  'praxis.layers.multi_query_attention.MultiQueryDotProductAttentionLPB': _LAZY_PREFIX.format(
    base='MultiQueryDotProductAttention'
  ),
  'praxis.layers.gpu_fast_attention.': (
    'its fused kernel mixes the values without ever forming the probabilities. Use the class that '
    'it derives from instead'
  ),
  'praxis.layers.quantization.': (
    'it quantizes the product of probabilities and values, for which the exponential of a value '
    'has too wide a range. Use the class that it derives from instead'
  ),
}


@dataclasses.dataclass(frozen=True)
class Change:
  """One attention that `use_laser` turned into LASER.

  Attributes:
    path: Its place in the config: 'model.lm_tpl.stacked_transformer_tpl.block'; '' is the root.
    before: The standard class.
    after: The LASER class.
  """

  path: str
  before: type
  after: type

  def __str__(self) -> str:
    change = f'{self.before.__name__} -> {self.after.__name__}'
    limit = '' if self.decodes else ' (whole sequences only: it refuses to decode step by step)'
    return f'{self.path or "(the config itself)"}: {change}{limit}'

  @property
  def decodes(self) -> bool:
    """Whether the LASER class can decode: for three classes Praxis has no correct step."""
    return not issubclass(self.after, BiasByBlocks)


def use_laser(
  config: fiddle.Buildable, numerics: str = 'exact', beta: float | str | None = None
) -> list[Change]:
  r"""Turns every attention in a config into LASER, in place; fields and variables stay.

      O_th = log( sum_s p_ts exp(V_sh) )
      O_th = log( sum_s p_ts exp(beta_h V_sh) ) / beta_h      where beta is given

  The config may hold anything: a task, a model, a stacked, repeated or pipelined transformer, or an
  attention itself. All attentions are checked first: if one is refused, none is changed. A LASER
  attention stays as it is, so that a second call changes nothing.

  Args:
    config: A Fiddle config, from Praxis's `pax_fiddle.Config(...)` or an experiment's `task()`.
    numerics: The form that the changed layers take: 'exact', 'paper' for Algorithm 1, or
      'unshifted' for Algorithm 1 without its shift.
    beta: The beta of the changed layers: None for LASER; a finite number (0 is standard attention);
      or 'learned', which adds a variable [N, H] to each layer, at 1 to begin with.

  Returns:
    One `Change` for each attention changed, in the order of the config. Its `str` is a line for a
    person to read. Empty if all were LASER already.

  Raises:
    UserError: an attention cannot be LASER, with the reason; or the config has no attention; or
      numerics is not known; or beta is no such number, or comes with the paper's numerics, or is
      not that of an attention that is LASER already.

  Example:
    task = super().task()
    use_laser(task)
  """
  if numerics not in (known := get_args(ops.Numerics)):
    raise UserError(f'numerics must be {" or ".join(known)}; got {numerics!r}')
  beta_tpl = template(beta)
  if beta_tpl is not None and numerics != 'exact':
    raise UserError(f'{PAPERS_HAS_NONE}; got numerics={numerics!r} with beta={beta!r}')
  swaps, refusals = [], []
  for node, path, attention in _attentions(config):
    change = Change(daglish.path_str(path).lstrip('.'), attention, _TWINS.get(attention))
    if issubclass(attention, _LASERS):
      if beta_tpl is not None and node.beta_tpl != beta_tpl:
        refusals.append(f'{_place(change)}: it is LASER already, with another beta or none')
      continue
    reason = _refusal(node, attention)
    if reason is None:
      swaps.append((node, change))
    else:
      refusals.append(f'{_place(change)}: {attention.__qualname__}: {reason}')
  if refusals:
    raise UserError('LASER is refused, and nothing was changed:\n  ' + '\n  '.join(refusals))
  for node, change in swaps:
    pax_fiddle.update_callable(node, change.after)
    if numerics != 'exact':
      node.numerics = numerics
    if beta_tpl is not None:
      node.beta_tpl = beta_tpl.clone()
  return [change for _, change in swaps]


def use_standard(config: fiddle.Buildable) -> list[Change]:
  """Turns every LASER attention in a config into its standard twin: `use_laser` in reverse.

  Variables stay, and so do the fields that both twins have.

  Args:
    config: As for `use_laser`.

  Returns:
    One `Change` for each attention changed, in the order of the config.

  Raises:
    UserError: The config has no attention, or one derives from a LASER class; nothing was changed.
  """
  swaps = []
  for node, path, attention in _attentions(config):
    if not issubclass(attention, _LASERS):
      continue
    if attention not in _STANDARDS:
      raise UserError(
        f'{attention.__qualname__} has no standard twin that laser_pax knows: expected one of '
        f'{", ".join(cls.__name__ for cls in _LASERS)}'
      )
    change = Change(daglish.path_str(path).lstrip('.'), attention, _STANDARDS[attention])
    swaps.append((node, change))
  for node, change in swaps:
    pax_fiddle.update_callable(node, change.after, drop_invalid_args=True)
  return [change for _, change in swaps]


def _place(change: Change) -> str:
  return change.path or 'the config itself'


def _attentions(config: fiddle.Buildable) -> list[tuple[fiddle.Buildable, daglish.Path, type]]:
  """Returns every attention in a config: the node, its path, and its class."""
  nodes = [(node, path, attention_class(node)) for node, path in daglish.iterate(config)]
  attentions_in_config = [x for x in nodes if x[2] is not None]
  if not attentions_in_config:
    raise UserError(
      f'found no attention in {_describe(config)}: expected a config that holds one of '
      f'{", ".join(cls.__name__ for cls in _FAMILIES)} or a class derived from them'
    )
  return attentions_in_config


def attention_class(node) -> type | None:
  """Returns the attention class that the node builds, or None if it builds something else."""
  if not isinstance(node, fiddle.Buildable):
    return None
  cls = fiddle.get_callable(node)
  return cls if isinstance(cls, type) and issubclass(cls, _FAMILIES) else None


def _refusal(config: fiddle.Buildable, attention: type) -> str | None:
  """Returns why the attention cannot be LASER, or None."""
  if attention in _TWINS:
    return changed_template(config)
  for cls in attention.__mro__:
    full_name = f'{cls.__module__}.{cls.__qualname__}'
    for prefix, reason in _REASONS.items():
      if full_name.startswith(prefix):
        return reason
  return (
    'a class that laser_pax does not know may mix values in a way of its own. Derive it from '
    f'{_nearest(attention).__name__} instead, if it leaves the mixing to its base'
  )


def _nearest(attention: type) -> type:
  """Returns the LASER twin of the nearest ancestor that has one."""
  return next(_TWINS[cls] for cls in attention.__mro__ if cls in _TWINS)


def _describe(config) -> str:
  if isinstance(config, fiddle.Buildable):
    return f'the config of {fiddle.get_callable(config).__qualname__}'
  return f'a {type(config).__name__}'
