"""A language model that makes no T x T mask, and a call that gives any config fused attention."""

import fiddle
import flax.linen as nn
import jax.numpy as jnp
from fiddle import daglish
from praxis import base_layer, pax_fiddle, py_utils, pytypes
from praxis.layers import attentions, transformer_models, transformers

from laser_pax.layers.attentions import LaserDotProductAttention
from laser_pax.layers.fused_attention import (
  FusedDotProductAttention,
  FusedMixin,
  LaserFusedDotProductAttention,
)
from laser_pax.layers.segments import Segments

JTensor = pytypes.JTensor


class SegmentedTransformerLm(transformer_models.TransformerLm):
  """TransformerLm that hands segment ids to fused attentions, in place of a T x T mask.

  A mask of 32,768 positions takes 2 GiB an example, and is kept for the backward pass. If the model
  is neither causal nor bidirectional, or an attention is not fused, this is TransformerLm.
  """

  @nn.nowrap
  def create_child(self, name: str, params: pax_fiddle.Config, **kwargs) -> base_layer.BaseLayer:
    """Creates a child as the base does; a stack that is given segments makes no causal mask."""
    if name == 'transformer' and self._hands_on_segments():
      _block(params).mask_self_attention = False
    return super().create_child(name, params, **kwargs)

  def __call__(
    self,
    inputs: JTensor,
    paddings: JTensor,
    labels: py_utils.NestedMap | None = None,
    segment_ids: JTensor | None = None,
    segment_pos: JTensor | None = None,
    causal_attention_mask: JTensor | None = None,
    segment_mask: JTensor | None = None,
    **kwargs,
  ) -> py_utils.NestedMap:
    """Computes what TransformerLm computes."""
    if self._hands_on_segments():
      is_causal = self.model_type == transformer_models.LanguageModelType.CAUSAL
      if segment_mask is None:
        if segment_ids is None:  # The base, too, makes padding a segment.
          segment_ids = jnp.asarray(1 - paddings, jnp.int32)
        segment_mask = Segments(segment_ids.astype(jnp.int32), is_causal)
      elif is_causal:
        causal = attentions.causal_mask(jnp.zeros((*inputs.shape, 1), segment_mask.dtype))
        segment_mask = attentions.merge_masks(segment_mask, causal)
    return super().__call__(
      inputs,
      paddings,
      labels,
      segment_ids,
      segment_pos,
      causal_attention_mask,
      segment_mask=segment_mask,
      **kwargs,
    )

  def _hands_on_segments(self) -> bool:
    """Whether all attentions understand segment ids, and the stack hands them on."""
    block = _block(self.stacked_transformer_tpl)
    kinds = transformer_models.LanguageModelType
    if self.model_type not in (kinds.CAUSAL, kinds.BIDIRECTIONAL) or block is None:
      return False
    layers = block.transformer_layer_params_tpl
    layers = layers if isinstance(layers, (list, tuple)) else [layers]
    return all(issubclass(fiddle.get_callable(x.tr_atten_tpl), FusedMixin) for x in layers)


def _block(stack: pax_fiddle.Config) -> pax_fiddle.Config | None:
  """Returns the StackedTransformer of a stack, repeated or not; None for other stacks."""
  cls = fiddle.get_callable(stack)
  if cls is transformers.StackedTransformerRepeated:
    return _block(stack.block)
  return stack if cls is transformers.StackedTransformer else None


_FUSED = {
  attentions.DotProductAttention: FusedDotProductAttention,
  LaserDotProductAttention: LaserFusedDotProductAttention,
  transformer_models.TransformerLm: SegmentedTransformerLm,
}


def use_fused(
  config: fiddle.Buildable, kernel: str | None = None, summary_queries: int | None = None
) -> None:
  """Gives every DotProductAttention of a config, in place, a fused kernel where one serves.

  Language models become `SegmentedTransformerLm`. Fields and variables stay, and so does every
  attention of another class. It may be called before or after `use_laser`.

  Args:
    config: A Fiddle config of a task, a model, a stack of layers or an attention.
    kernel: The kernel that all its fused attentions ask for, as `fused_attention` takes it; None
      leaves their own.
    summary_queries: Queries whose attention they all summarise; None leaves their own.
  """
  for node, _ in list(daglish.iterate(config)):
    if not isinstance(node, fiddle.Buildable):
      continue
    if fiddle.get_callable(node) in _FUSED:
      pax_fiddle.update_callable(node, _FUSED[fiddle.get_callable(node)])
    if not _is_fused(fiddle.get_callable(node)):
      continue
    if kernel is not None:
      node.kernel = kernel
    if summary_queries is not None:
      node.summary_queries = summary_queries


def _is_fused(built: object) -> bool:
  return isinstance(built, type) and issubclass(built, FusedMixin)
