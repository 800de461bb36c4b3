r"""Softmax cross entropy of a large vocabulary, without logits of all tokens.

With x_t the input of token t, y_t its label, a_t its weight, c the cap and e the smoothing:

    z_tv   = c tanh((x_t W + b)_v / c)                        logits
    lse_t  = log sum_v exp(z_tv)
    xent_t = lse_t - (1 - e - o) z_ty - o sum_v z_tv          o = e / (V - 1)
    total  = sum_t a_t xent_t

Logits are computed a chunk of tokens at a time, and forgotten. The total is a weighted sum, and its
weights are known beforehand. Where a gradient is wanted, the forward pass therefore computes it
from the same logits, but for the factor that reaches the total:

    d total / d z_tv = a_t (exp(z_tv - lse_t) - (1 - e - o) [v = y_t] - o) (1 - (z_tv / c)^2)

That takes three matrix products, as if the logits of all tokens were kept. A backward pass that
computes logits again takes four. The gradient itself is kept: as large as x, W and b.

Shapes: N tokens (of a device), C tokens of a chunk, D model dims, V words. Logits of a chunk are
[V, C] and W is transposed once. On a CPU, XLA's products are then twice as fast as for [C, V], and
sums over words are sums over rows, which vectorise. A TPU chooses its own layouts.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec

from laser_pax.ops import devices
from laser_pax.ops.devices import Axes, TokenSharding

Array = jax.Array

# With 32,000 words, 512 tokens have 62 MiB of logits. Each chunk reads and writes the sum of W's
# gradient, so that small chunks take longer. Large ones need more memory. A CPU's caches hold less.
TOKENS_PER_CHUNK = 512
_TOKENS_PER_CHUNK_ON_CPU = 256


class CrossEntropy(NamedTuple):
  """What `cross_entropy` returns.

  Attributes:
    total: Weighted sum over tokens, float32 [].
    per_token: Cross entropy, float32, shaped as the labels.
    argmax: The likeliest word, the first among equals, int32, shaped as the labels; no gradient.
  """

  total: Array
  per_token: Array
  argmax: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Options:
  cap: float
  smoothing: float
  tokens_per_chunk: int | None
  sharding: TokenSharding | None

  @property
  def words(self) -> Axes:
    return self.sharding.words if self.sharding else ()


def cross_entropy(
  inputs: Array,
  w: Array,
  bias: Array | None,
  labels: Array,
  weights: Array,
  *,
  cap: float = 0.0,
  smoothing: float = 0.0,
  tokens_per_chunk: int | None = None,
  sharding: TokenSharding | None = None,
) -> CrossEntropy:
  r"""Softmax cross entropy of `inputs @ w + bias`, a chunk of tokens at a time.

  Products take operands in the dtype that inputs and w promote to, and accumulate in float32.
  Logits, softmax, and the sums over tokens are float32. `total` is meant to be differentiated by
  inputs, w, bias and weights. To differentiate `per_token` costs all logits once more.

  Args:
    inputs: [..., D], float.
    w: [D, V], float.
    bias: [V], float, or None.
    labels: [...], int32. A label outside 0 ... V - 1 has logit 0.
    weights: [...], float.
    cap: Logits become cap tanh(logits / cap); 0: they stay as they are.
    smoothing: The probability that is taken from the label and spread evenly over other words.
    tokens_per_chunk: The greatest C, of one device. None: 256 on a CPU, 512 elsewhere.
    sharding: How the arrays lie on a mesh. None: all on one device, or as XLA decides.

  Returns:
    The total, and each token's cross entropy and likeliest word.

  Raises:
    ValueError: the shapes do not fit each other, or the mesh; or a chunk would have no token.

  Source: the order of computation is ours [ours]; the loss is that of Praxis's FullSoftmax.
  """
  options = _Options(
    cap=float(cap), smoothing=float(smoothing), tokens_per_chunk=tokens_per_chunk, sharding=sharding
  )
  _check(options, inputs, w, bias, labels, weights)
  return _cross_entropy(options, inputs, w, bias, labels, weights)


def _check(options: _Options, inputs, w, bias, labels, weights) -> None:
  shapes = f'inputs {inputs.shape}, w {w.shape}, labels {labels.shape}, weights {weights.shape}'
  if inputs.shape[-1:] != w.shape[:1] or w.ndim != 2:
    raise ValueError(f'expected inputs [..., D] and w [D, V]; got {shapes}')
  if not inputs.shape[:-1] == labels.shape == weights.shape:
    raise ValueError(f'expected labels and weights shaped as inputs without D; got {shapes}')
  if bias is not None and bias.shape != w.shape[1:]:
    raise ValueError(f'expected a bias of {w.shape[1:]}; got {bias.shape}')
  if options.tokens_per_chunk is not None and options.tokens_per_chunk < 1:
    raise ValueError(f'tokens_per_chunk must be at least 1; got {options.tokens_per_chunk}')
  if options.sharding is not None and not options.sharding.fits(inputs.shape, w.shape):
    raise ValueError(f'{shapes} cannot be sharded as {options.sharding}')


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(options: _Options, *arrays: Array | None) -> CrossEntropy:
  return _losses(options, *arrays)


def _forward(options: _Options, *primals: Any) -> tuple[CrossEntropy, Any]:
  """Returns the losses, and as residuals the gradients of the total."""
  arrays = jax.tree.map(lambda p: p.value, primals, is_leaf=lambda p: hasattr(p, 'value'))
  losses, gradients = _losses_and_gradients(options, *arrays)
  if options.sharding:
    # Whoever asks for the inputs' gradient waits for w's sum over the devices. Put off, that sum
    # would occupy float32 [V, D] of each device all through the layers' backward pass.
    gradients = lax.optimization_barrier(gradients)
  return losses, (arrays, losses.per_token, gradients)


def _backward(options: _Options, residuals: Any, cotangents: CrossEntropy) -> tuple[Any, ...]:
  """Scales the gradients of the total; computes them anew where single tokens have cotangents."""
  (inputs, w, bias, labels, weights), per_token, gradients = residuals
  d_total, d_per_token, _ = cotangents
  factor = 0.0 if isinstance(d_total, SymbolicZero) else d_total
  if isinstance(d_per_token, SymbolicZero):
    scaled = jax.tree.map(lambda g: (factor * g.astype(jnp.float32)).astype(g.dtype), gradients)
  else:
    token_weights = d_per_token + factor * weights.astype(jnp.float32)
    _, scaled = _losses_and_gradients(options, inputs, w, bias, labels, token_weights)
  return (*scaled, None, (factor * per_token).astype(weights.dtype))


_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)


class _Gradients(NamedTuple):
  """The gradients of the total, shaped as inputs, w and bias."""

  inputs: Array
  w: Array
  bias: Array | None


def _losses(options: _Options, *arrays: Array | None) -> CrossEntropy:
  """Computes the losses of inputs, w, bias, labels and weights."""
  local, sharding = functools.partial(_losses_on_device, options), options.sharding
  if sharding is None:
    return local(*arrays)
  return sharding.map(local, _array_specs(sharding), _loss_specs(sharding))(*arrays)


def _losses_and_gradients(
  options: _Options, *arrays: Array | None
) -> tuple[CrossEntropy, _Gradients]:
  """Computes the losses, and the gradients of the total, in one pass."""
  local, sharding = functools.partial(_losses_and_gradients_on_device, options), options.sharding
  if sharding is None:
    return local(*arrays)
  gradients = _Gradients(sharding.inputs_spec, sharding.w_spec, sharding.bias_spec)
  results = (_loss_specs(sharding), gradients)
  return sharding.map(local, _array_specs(sharding), results)(*arrays)


def _array_specs(sharding: TokenSharding) -> tuple[PartitionSpec, ...]:
  """The sharding of inputs, w, bias, labels and weights."""
  tokens = sharding.tokens_spec
  return sharding.inputs_spec, sharding.w_spec, sharding.bias_spec, tokens, tokens


def _loss_specs(sharding: TokenSharding) -> CrossEntropy:
  return CrossEntropy(PartitionSpec(), sharding.tokens_spec, sharding.tokens_spec)


# All functions below run on one device, with its share of the arrays.


def _losses_on_device(
  options: _Options, inputs: Array, w: Array, bias: Array | None, labels: Array, weights: Array
) -> CrossEntropy:
  w_VxD = _whole_w(options, inputs, w)

  def step(_, chunk):
    softmax = _softmax(options, w_VxD, bias, chunk)
    return None, (softmax.per_token, softmax.argmax)

  _, (per_token, argmax) = _scan_chunks(options, step, None, inputs, labels, weights)
  return _with_total(options, per_token, argmax, weights)


def _losses_and_gradients_on_device(
  options: _Options, inputs: Array, w: Array, bias: Array | None, labels: Array, weights: Array
) -> tuple[CrossEntropy, _Gradients]:
  w_VxD = _whole_w(options, inputs, w)

  def step(sums, chunk):
    softmax = _softmax(options, w_VxD, bias, chunk)
    gradients = _gradients(options, softmax, w_VxD, chunk)
    sums = jax.tree.map(jnp.add, sums, (gradients.w, gradients.bias))
    return sums, (softmax.per_token, softmax.argmax, gradients.inputs)

  sums = jnp.zeros(w_VxD.shape, jnp.float32), jnp.zeros(w_VxD.shape[0], jnp.float32)
  (d_w_VxD, d_bias), (per_token, argmax, d_inputs) = _scan_chunks(
    options, step, sums, inputs, labels, weights
  )
  losses = _with_total(options, per_token, argmax, weights)
  d_inputs = _over(lax.psum, d_inputs, options.words)
  d_w = d_w_VxD.astype(w.dtype).T
  d_bias = None if bias is None else d_bias.astype(bias.dtype)
  if options.sharding:
    d_w = options.sharding.reduce(d_w)
    d_bias = None if bias is None else lax.psum(d_bias, options.sharding.token_axes)
  return losses, _Gradients(d_inputs, d_w, d_bias)


def _whole_w(options: _Options, inputs: Array, w: Array) -> Array:
  """Returns W transposed, [V, D], with all of D, in the dtype of the products."""
  if options.sharding:
    w = options.sharding.gather(w)
  return w.astype(jnp.result_type(inputs, w)).T


def _with_total(options: _Options, per_token: Array, argmax: Array, weights: Array) -> CrossEntropy:
  total = jnp.sum(per_token * weights.astype(jnp.float32))
  total = lax.psum(total, options.sharding.token_axes) if options.sharding else total
  return CrossEntropy(total, per_token, argmax)


class _Chunk(NamedTuple):
  """C tokens: inputs [C, D], labels [C] and weights [C]."""

  inputs: Array
  labels: Array
  weights: Array


def _scan_chunks(
  options: _Options,
  step: Callable[[Any, _Chunk], tuple[Any, Any]],
  sums: Any,
  inputs: Array,
  labels: Array,
  weights: Array,
) -> tuple[Any, Any]:
  """Scans step(sums, chunk) -> (sums, results [C, ...]) over all tokens; joins their results."""
  arrays = _Chunk(inputs.reshape(-1, inputs.shape[-1]), labels.reshape(-1), weights.reshape(-1))
  n = arrays.labels.size
  chunks = max(1, -(-n // _tokens_per_chunk(options)))
  size = -(-n // chunks)

  def cut(x):
    x = jnp.pad(x, [(0, chunks * size - n)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(chunks, size, *x.shape[1:])

  def join(x):
    return x.reshape(chunks * size, *x.shape[2:])[:n].reshape(*labels.shape, *x.shape[2:])

  sums, results = lax.scan(step, sums, jax.tree.map(cut, arrays))
  return sums, jax.tree.map(join, results)


def _tokens_per_chunk(options: _Options) -> int:
  """Returns the greatest C, as asked for or by the device."""
  if options.tokens_per_chunk is not None:
    return options.tokens_per_chunk
  mesh = options.sharding.mesh if options.sharding else None
  return _TOKENS_PER_CHUNK_ON_CPU if devices.platform(mesh) == 'cpu' else TOKENS_PER_CHUNK


def _over(reduce: Callable[[Array, Axes], Array], x: Array, axes: Axes) -> Array:
  """Reduces over mesh axes, if there are any."""
  return reduce(x, axes) if axes else x


class _Softmax(NamedTuple):
  """The logits of a chunk and what follows from them.

  Attributes:
    logits: z [V, C].
    is_label: [v = y_t], [V, C].
    exponentials: exp(z) over that of the greatest logit of the token, [V, C].
    total: Their sum over all words, [C].
    per_token: Cross entropy, [C].
    argmax: The likeliest word, [C].
    zero: [C].
  """

  logits: Array
  is_label: Array
  exponentials: Array
  total: Array
  per_token: Array
  argmax: Array
  zero: Array


def _softmax(options: _Options, w_VxD: Array, bias: Array | None, chunk: _Chunk) -> _Softmax:
  """Computes the logits and the cross entropy of a chunk: one product."""
  axes, cap = options.words, options.cap
  v = w_VxD.shape[0]
  logits = _product(w_VxD, chunk.inputs.astype(w_VxD.dtype), 1, 1)
  if bias is not None:
    logits = logits + bias.astype(jnp.float32)[:, None]
  if cap:
    logits = cap * jnp.tanh(logits / cap)
  # jax makes what is constant in a loop's body before the loop: here [V, C] arrays that each chunk
  # would then read. Zeros made from this chunk's labels are not constant.
  labels = chunk.labels.astype(jnp.int32)
  zero_id = 0 * labels
  zero = zero_id.astype(jnp.float32)
  words = jnp.arange(v, dtype=jnp.int32)[:, None] + zero_id
  first = lax.axis_index(axes) * v if axes else 0
  is_label = words == labels - first

  greatest = _over(lax.pmax, logits.max(0), axes)
  last_word = _vocabulary_size(options, w_VxD) - 1
  argmax = jnp.where(logits == greatest, words + first, zero_id + last_word).min(0)
  exponentials = jnp.exp(logits - greatest)
  total = _over(lax.psum, exponentials.sum(0), axes)
  per_token = greatest + jnp.log(total)
  label_share, word_share = _shares(options, w_VxD)
  per_token -= label_share * _over(lax.psum, jnp.where(is_label, logits, zero).sum(0), axes)
  if word_share:
    per_token -= word_share * _over(lax.psum, logits.sum(0), axes)
  argmax = _over(lax.pmin, argmax, axes)
  return _Softmax(logits, is_label, exponentials, total, per_token, argmax, zero)


def _gradients(options: _Options, softmax: _Softmax, w_VxD: Array, chunk: _Chunk) -> _Gradients:
  """Computes the chunk's terms of the total's gradients, w's as [V, D]: two products."""
  inputs, weights = chunk.inputs.astype(w_VxD.dtype), chunk.weights.astype(jnp.float32)
  label_share, word_share = _shares(options, w_VxD)
  d_logits = softmax.exponentials * (weights / softmax.total)
  d_logits -= jnp.where(softmax.is_label, label_share * weights, softmax.zero)
  if word_share:
    d_logits -= word_share * weights
  if options.cap:
    d_logits *= 1.0 - jnp.square(softmax.logits / options.cap)
  d_bias = d_logits.sum(1)
  d_logits = d_logits.astype(w_VxD.dtype)
  d_inputs = _product(w_VxD, d_logits, 0, 0).T
  return _Gradients(d_inputs.astype(inputs.dtype), _product(d_logits, inputs, 1, 0), d_bias)


def _vocabulary_size(options: _Options, w_VxD: Array) -> int:
  """Returns the words of all devices."""
  shards = options.sharding.size(options.words) if options.sharding else 1
  return w_VxD.shape[0] * shards


def _shares(options: _Options, w_VxD: Array) -> tuple[float, float]:
  """Returns the label's share 1 - e - o of the wanted probability, and o, each word's."""
  if not options.smoothing:
    return 1.0, 0.0
  word_share = options.smoothing / (_vocabulary_size(options, w_VxD) - 1)
  return 1.0 - options.smoothing - word_share, word_share


def _product(a: Array, b: Array, contract_a: int, contract_b: int) -> Array:
  """A product of two matrices, in float32."""
  dimensions = (((contract_a,), (contract_b,)), ((), ()))
  return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)
