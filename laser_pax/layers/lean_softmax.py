"""Praxis's SharedEmbeddingSoftmax, without logits of all tokens and without one-hot words."""

import fiddle
import jax.numpy as jnp
from praxis import base_layer, py_utils, pytypes
from praxis.layers import base_ops, embedding_softmax, linears

from laser_pax import ops
from laser_pax.ops import devices

JTensor = pytypes.JTensor
NestedMap = py_utils.NestedMap


class LeanSharedEmbeddingSoftmax(embedding_softmax.SharedEmbeddingSoftmax):
  """SharedEmbeddingSoftmax whose loss is computed a chunk of tokens at a time: docs/loss.md.

  Fields and variables are those of the base. So are the results, but a loss has no `logits` and no
  `log_probs`: they are None, as with the base's own `chunk_size`. `get_logits`, and so decoding,
  are the base's. The base also computes what the chunks do not cover: class probabilities, a
  bi-tempered loss, z-loss, `chunk_size`, and templates that are not Praxis's plain ones.

  Attributes:
    tokens_per_chunk: How many tokens of one device have their logits computed at a time. None: 256
      on a CPU, 512 elsewhere.
    lookup_style: 'index' looks up by indices, with a gradient summed in float32; 'matmul' takes the
      base's lookup.
  """

  tokens_per_chunk: int | None = None

  def __call__(
    self,
    inputs: JTensor,
    class_weights: JTensor,
    class_ids: JTensor | None = None,
    class_probabilities: JTensor | None = None,
    input_ids: JTensor | None = None,
  ) -> NestedMap:
    if class_ids is None or class_probabilities is not None or not self._is_plain():
      return super().__call__(inputs, class_weights, class_ids, class_probabilities, input_ids)
    if self.scale_before_logits:
      inputs *= self.input_dims**-0.5
    is_smoothed = not self.do_eval or self.label_smoothing_apply_for_eval
    xent = ops.cross_entropy(
      inputs,
      self.logits_ffn.linear.theta.w,
      self.logits_ffn.bias.theta.b if self.feed_forward_tpl.has_bias else None,
      jnp.squeeze(class_ids, -1),
      jnp.squeeze(class_weights, -1),
      cap=self.soft_cap_logits or 0.0,
      smoothing=self.label_smoothing_prob if is_smoothed else 0.0,
      tokens_per_chunk=self.tokens_per_chunk,
      sharding=self._sharding(inputs.shape),
    )
    total_weight = jnp.sum(class_weights, dtype=jnp.float32)
    hits = (xent.argmax[..., jnp.newaxis] == class_ids) * class_weights
    return NestedMap(
      logits=None,
      log_probs=None,
      per_example_argmax=xent.argmax,
      per_example_xent=xent.per_token,
      total_xent=xent.total,
      total_weight=total_weight,
      avg_xent=xent.total / (total_weight + 1e-6),
      accuracy=jnp.sum(hits) / total_weight,
    )

  def emb_lookup(self, ids: JTensor) -> JTensor:
    is_plain = fiddle.get_callable(self.array_lookup_tpl) is base_ops.ArrayLookup
    if self.lookup_style != 'index' or not is_plain:
      return super().emb_lookup(ids)
    sharding = self._sharding((*ids.shape, self.input_dims))
    embs = ops.lookup(sharding, self.logits_ffn.linear.theta.w, ids)
    if self.scale_sqrt_depth:
      embs *= self.input_dims**0.5
    return base_layer.maybe_shard(
      embs,
      self.activation_split_dims_mapping.emb_out_split_dims_mapping,
      self.mesh_axis_names,
    )

  def _is_plain(self) -> bool:
    """Whether the loss is the cross entropy of inputs @ w + b, computed as Praxis's layers do."""
    feed_forward = self.feed_forward_tpl
    if self.bi_tempered_loss_tpl or self.z_loss_weight or self.chunk_size or feed_forward is None:
      return False
    templates = (
      (feed_forward, linears.FeedForward),
      (feed_forward.linear_tpl, linears.Linear),
      (feed_forward.linear_tpl.einsum_tpl, base_ops.EinsumOp),
      (feed_forward.bias_tpl, linears.Bias),
    )
    return all(fiddle.get_callable(template) is plain for template, plain in templates)

  def _sharding(self, shape: tuple[int, ...]) -> ops.TokenSharding | None:
    """Returns how inputs of this shape, and w, are sharded over the mesh in context, if any."""
    mesh = devices.current_mesh()
    out, w = self.activation_split_dims_mapping.out, self.weight_split_dims_mapping.wt
    if mesh is None or mesh.size == 1 or not (out and w and self.mesh_axis_names):
      return None

    def axes(mapping):
      spec = base_layer.to_partition_spec(mapping, self.mesh_axis_names)
      spec = base_layer.maybe_transpose_mesh_axes(spec)
      named = [(a,) if isinstance(a, str) else tuple(a or ()) for a in spec]
      return [tuple(a for a in names if mesh.shape[a] > 1) for names in named]

    (dims, words), tokens = axes(w), axes(out)[:-1]
    sharding = ops.TokenSharding(mesh=mesh, tokens=tuple(tokens), dims=dims, words=words)
    return sharding if sharding.fits(shape, (self.input_dims, self.num_classes)) else None
