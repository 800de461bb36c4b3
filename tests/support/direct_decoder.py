"""PAX's decoder in plain jax, with a number added to each attention logit: its own gradient.

Shapes: B batch, T positions, N heads, H head size, D model, L layers, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np

from laser_pax.evaluation.reference import numpy_forward

_LAYER = 'lm.transformer.repeat.sub.x_layers_0.'


def loss(weights, deltas, batch, form, attention_cap, softmax_cap):
  """Returns the mean loss, and the probabilities and values of each layer.

  Args:
    weights: The weights by PAX's dotted names; those of layers are [L, ...].
    deltas: [L, B, N, T, T], added to the logits of q k^T.
    batch: A batch of laser_pax/data/text_lm.py.
    form: 'standard' or 'LASER'.
    attention_cap: Cap of attention logits.
    softmax_cap: Cap of the vocabulary's logits.
  """
  embedding = weights['lm.softmax.logits_ffn.linear.w']
  dims = embedding.shape[0]
  x = np.sqrt(dims) * embedding.T[batch.ids]
  x += jnp.asarray(numpy_forward.positions(batch.ids.shape[1], dims))[batch.segment_pos]
  seen = (batch.segment_ids[:, :, None] == batch.segment_ids[:, None]) & np.tri(
    batch.ids.shape[1], dtype=bool
  )
  inner = []
  for i in range(deltas.shape[0]):
    w = {k.removeprefix(_LAYER): v[i] for k, v in weights.items() if k.startswith(_LAYER)}
    mixed, kept = _attention(w, _norm(w, 'layer_norm', x), deltas[i], seen, form, attention_cap)
    x = x + mixed
    hidden = _norm(w, 'ff_layer.layer_norm', x) @ w['ff_layer.ffn_layer1.linear.w']
    hidden = jax.nn.relu(hidden + w['ff_layer.ffn_layer1.bias.b'])
    x = x + hidden @ w['ff_layer.ffn_layer2.linear.w'] + w['ff_layer.ffn_layer2.bias.b']
    x = x * (1 - batch.paddings)[..., None]
    inner.append(kept)
  logits = _norm(weights, 'lm.final_ln', x) @ embedding + weights['lm.softmax.logits_ffn.bias.b']
  log_p = jax.nn.log_softmax(softmax_cap * jnp.tanh(logits / softmax_cap))
  xent = -jnp.take_along_axis(log_p, batch.labels[..., None], -1)[..., 0]
  return (xent * batch.weights).sum() / batch.weights.sum(), inner


def _norm(w, name, x):
  centred = x - x.mean(-1, keepdims=True)
  deviation = jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
  return centred / deviation * (1 + w[f'{name}.scale']) + w[f'{name}.bias']


def _attention(w, x, delta, seen, form, cap):
  q, k, v = jnp.einsum('btd,cdnh->cbtnh', x, w['self_attention.combined_qkv.w'])
  scale = jax.nn.softplus(w['self_attention.per_dim_scale.per_dim_scale']) / np.log(2)
  q = q * scale / np.sqrt(q.shape[-1])
  logits = jnp.einsum('btnh,bsnh->bnts', q, k) + delta
  logits = jnp.where(seen[:, None], cap * jnp.tanh(logits / cap), -1e30)
  probs = jax.nn.softmax(logits)
  if form == 'LASER':
    top = jax.lax.stop_gradient(v.max(1, keepdims=True))
    mixed = jnp.log(jnp.einsum('bnts,bsnh->btnh', probs, jnp.exp(v - top))) + top
  else:
    mixed = jnp.einsum('bnts,bsnh->btnh', probs, v)
  return jnp.einsum('btnh,dnh->btd', mixed, w['self_attention.post.w']), (probs, v)
