"""QK-norm that decodes: Praxis normalises queries and keys of whole sequences, and of no step."""

import flax.linen as nn
from praxis import pytypes

JTensor = pytypes.JTensor


class NormedStepsMixin(nn.Module):
  """A base before a DotProductAttention: with `ln_tpl`, single steps are normalised too.

  Praxis caches keys as they are before `ln_tpl`, and `extend_step` leaves it out, so that decoding
  would not match training. Here the cache that steps attend to holds normalised keys. Without
  `ln_tpl` nothing changes.
  """

  @nn.nowrap
  def _fprop_update_decode_state(self, name: str, value: JTensor) -> None:
    super()._fprop_update_decode_state(name, self._normed_if_attended(name, value))

  @nn.nowrap
  def extend_decode_state(
    self, name: str, value: JTensor, time_step: JTensor, time_dim: int
  ) -> JTensor:
    """Extends a cache as the base does; the keys that steps attend to are normalised."""
    value = self._normed_if_attended(name, value)
    return super().extend_decode_state(name, value, time_step, time_dim)

  def _normed_if_attended(self, name: str, value: JTensor) -> JTensor:
    """Returns the value, normalised if this is the cache of the keys that steps attend to."""
    if self.ln_tpl is None or name != self._attended_keys():
      return value
    return self.layer_norm_k(value)

  def _attended_keys(self) -> str:
    """Returns the name of the last cache that Praxis writes keys to."""
    if self.use_rotary_position_emb and not self.consolidate_rope_key_state:
      return 'key_post_rotary_pos_emb'
    return 'key_post_dconv' if self.dconv_qkv else 'key_state'

  def _normed_query(self, query: JTensor) -> JTensor:
    """Returns the query of a single step, normalised if the layer normalises queries."""
    return query if self.ln_tpl is None else self.layer_norm_q(query)

  def _dot_atten_one_step(self, query: JTensor, *args, **kwargs) -> tuple[JTensor, JTensor]:
    return super()._dot_atten_one_step(self._normed_query(query), *args, **kwargs)
