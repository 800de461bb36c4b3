r"""Softmax cross entropy of a large vocabulary, without logits of all tokens.

With x_t the input of token t, y_t its label, a_t its weight, c the cap and e the smoothing:

    z_tv   = c tanh((x_t W + b)_v / c)                        logits
    lse_t  = log sum_v exp(z_tv)
    xent_t = lse_t - (1 - e - o) z_ty - o sum_v z_tv          o = e / (V - 1)
    total  = sum_t a_t xent_t

Logits are computed a chunk of tokens at a time, and forgotten. The total is a weighted sum whose
weights are known beforehand, so where a gradient is wanted the forward pass computes it with the
same logits, up to the factor that reaches the total:

    d total / d z_tv = a_t (exp(z_tv - lse_t) - (1 - e - o) [v = y_t] - o) (1 - (z_tv / c)^2)

That takes three matrix products, as if the logits of all tokens were kept; a backward pass that
computes logits again takes four. What is kept is the gradient itself: as large as x, W and b.

Shapes: N tokens (of a device), C tokens of a chunk, D model dims, V words. Logits of a chunk are
[V, C] and W is transposed once: XLA's products on the CPU are twice as fast as for [C, V], and sums
over words are sums over rows, which vectorise. A TPU lays arrays out as it likes.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec

from laser_pax.ops import devices
from laser_pax.ops.devices import Axes, TokenSharding

Array = jax.Array

# With 32,000 words, 512 tokens have 62 MiB of logits. Fewer: each chunk reads and writes the sum of
# W's gradient, and has less to do meanwhile. More: more memory. A CPU's caches hold less.
TOKENS_PER_CHUNK = 512
_TOKENS_PER_CHUNK_ON_CPU = 256


class CrossEntropy(NamedTuple):
  """What `cross_entropy` returns.

  Attributes:
    total: Weighted sum over tokens, float32 [].
    per_token: Cross entropy, float32, shaped as the labels.
    argmax: The likeliest word, the first of equals, int32, shaped as the labels; no gradient.
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

  Products are in the dtype that inputs and w promote to and are accumulated in float32; logits,
  softmax, and the sums over tokens are float32. `total` is meant to be differentiated, by inputs,
  w, bias and weights; `per_token` may be, at the cost of computing all logits once more.

  Args:
    inputs: [..., D], float.
    w: [D, V], float.
    bias: [V], float, or None.
    labels: [...], int32. A label outside 0 ... V - 1 has logit 0.
    weights: [...], float.
    cap: Logits are cap tanh(logits / cap); 0: as they are.
    smoothing: Probability that is taken from the label and spread evenly over the other words.
    tokens_per_chunk: The greatest C, of one device. None: 256 on a CPU, 512 elsewhere.
    sharding: How the arrays lie on a mesh. None: all on one device, or as XLA decides.

  Returns:
    The total, and each token's cross entropy and likeliest word.

  Raises:
    ValueError: the shapes do not fit each other, or the mesh; or the chunk is none.

  Source: the order of computation is ours [ours]; the loss is that of Praxis's FullSoftmax.
  """
  shapes = f'inputs {inputs.shape}, w {w.shape}, labels {labels.shape}, weights {weights.shape}'
  if inputs.shape[-1:] != w.shape[:1] or w.ndim != 2:
    raise ValueError(f'expected inputs [..., D] and w [D, V]; got {shapes}')
  if not inputs.shape[:-1] == labels.shape == weights.shape:
    raise ValueError(f'expected labels and weights shaped as inputs without D; got {shapes}')
  if bias is not None and bias.shape != w.shape[1:]:
    raise ValueError(f'expected a bias of {w.shape[1:]}; got {bias.shape}')
  if tokens_per_chunk is not None and tokens_per_chunk < 1:
    raise ValueError(f'tokens_per_chunk must be at least 1; got {tokens_per_chunk}')
  if sharding is not None and not sharding.fits(inputs.shape, w.shape):
    raise ValueError(f'{shapes} cannot be sharded as {sharding}')
  options = _Options(
    cap=float(cap), smoothing=float(smoothing), tokens_per_chunk=tokens_per_chunk, sharding=sharding
  )
  return CrossEntropy(*_cross_entropy(options, inputs, w, bias, labels, weights))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(options: _Options, *arrays: Array | None) -> tuple[Array, Array, Array]:
  return _compute(options, False, *arrays)[0]


def _forward(options: _Options, *primals: Any) -> tuple[tuple[Array, Array, Array], Any]:
  """The results, and as residuals the gradient of the total."""
  arrays = jax.tree.map(lambda p: p.value, primals, is_leaf=lambda p: hasattr(p, 'value'))
  results, gradients = _compute(options, True, *arrays)
  if options.sharding:
    # Whoever asks for the inputs' gradient waits for w's sum over the devices: put off, it would
    # occupy float32 [V, D] of each device all through the layers' backward pass.
    gradients = lax.optimization_barrier(gradients)
  return results, (arrays, results[1], gradients)


def _backward(options: _Options, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
  """Scales the gradient of the total; computes it anew only where single tokens have cotangents."""
  (inputs, w, bias, labels, weights), per_token, gradients = residuals
  by_total, by_token, _ = cotangents
  factor = 0.0 if isinstance(by_total, SymbolicZero) else by_total
  if not isinstance(by_token, SymbolicZero):
    token_weights = by_token + factor * weights.astype(jnp.float32)
    _, gradients = _compute(options, True, inputs, w, bias, labels, token_weights)
    scaled = gradients
  else:
    scaled = jax.tree.map(lambda g: (factor * g.astype(jnp.float32)).astype(g.dtype), gradients)
  return (*scaled, None, (factor * per_token).astype(weights.dtype))


_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)


def _compute(options: _Options, with_gradient: bool, *arrays: Array | None) -> tuple[Any, Any]:
  """Returns (total, per token, argmax) and, with it, the gradients of inputs, w and bias."""
  sharding = options.sharding
  local = functools.partial(_on_device, options, with_gradient)
  if sharding is None:
    return local(*arrays)
  tokens, inputs, w, bias = (
    sharding.tokens_spec,
    sharding.inputs_spec,
    sharding.w_spec,
    sharding.bias_spec,
  )
  results = (PartitionSpec(), tokens, tokens)
  gradients = (inputs, w, bias) if with_gradient else None
  return sharding.map(local, (inputs, w, bias, tokens, tokens), (results, gradients))(*arrays)


def _on_device(
  options: _Options,
  with_gradient: bool,
  inputs: Array,
  w: Array,
  bias: Array | None,
  labels: Array,
  weights: Array,
) -> tuple[Any, Any]:
  """As `_compute`, of the tokens of one device."""
  sharding = options.sharding
  if sharding:
    w = sharding.gather(w)
  flat = (inputs.reshape(-1, inputs.shape[-1]), labels.reshape(-1), weights.reshape(-1))
  (per_token, argmax, d_inputs), d_weights = _all_chunks(options, with_gradient, w, bias, *flat)
  per_token, argmax = per_token.reshape(labels.shape), argmax.reshape(labels.shape)
  total = jnp.sum(per_token * weights.astype(jnp.float32))
  total = lax.psum(total, sharding.token_axes) if sharding else total
  if not with_gradient:
    return (total, per_token, argmax), None
  d_inputs = _over(lax.psum, d_inputs.reshape(inputs.shape), options.words)
  return (total, per_token, argmax), (d_inputs, *_reduce(sharding, d_weights, w, bias))


def _reduce(
  sharding: TokenSharding | None, sums: tuple[Array, Array], w: Array, bias: Array | None
) -> tuple[Array, Array | None]:
  """Sums the gradients [V, D] of w and [V] of bias over the devices, each device its share."""
  d_w = sums[0].astype(w.dtype).T
  d_bias = None if bias is None else sums[1].astype(bias.dtype)
  if sharding:
    d_w = sharding.reduce(d_w)
    d_bias = None if bias is None else lax.psum(d_bias, sharding.token_axes)
  return d_w, d_bias


def _all_chunks(
  options: _Options,
  with_gradient: bool,
  w: Array,
  bias: Array | None,
  inputs: Array,
  labels: Array,
  weights: Array,
) -> tuple[Any, Any]:
  """Returns, of N tokens, (cross entropy, argmax, gradient of inputs), and sums for w and bias."""
  (n, d), v = inputs.shape, w.shape[1]
  chunks = max(1, -(-n // _tokens_per_chunk(options)))
  size = -(-n // chunks)

  def cut(x):
    x = jnp.pad(x, [(0, chunks * size - n)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(chunks, size, *x.shape[1:])

  def join(x):
    return x.reshape(chunks * size, *x.shape[2:])[:n]

  dtype = jnp.result_type(inputs, w)
  one = functools.partial(_chunk, options, with_gradient, w.astype(dtype).T, bias)

  def step(sums, chunk):
    per_chunk, terms = one(*chunk)
    return jax.tree.map(jnp.add, sums, terms), per_chunk

  zeros = (jnp.zeros((v, d), jnp.float32), jnp.zeros(v, jnp.float32)) if with_gradient else None
  sums, of_chunks = lax.scan(step, zeros, jax.tree.map(cut, (inputs, labels, weights)))
  return jax.tree.map(join, of_chunks), sums


def _tokens_per_chunk(options: _Options) -> int:
  """Returns the greatest C, as asked for or by the device."""
  if options.tokens_per_chunk is not None:
    return options.tokens_per_chunk
  mesh = options.sharding.mesh if options.sharding else None
  return _TOKENS_PER_CHUNK_ON_CPU if devices.platform(mesh) == 'cpu' else TOKENS_PER_CHUNK


def _over(reduce: Any, x: Array, axes: Axes) -> Array:
  """Reduces over mesh axes, if there are any."""
  return reduce(x, axes) if axes else x


def _chunk(
  options: _Options,
  with_gradient: bool,
  w_VxD: Array,
  bias: Array | None,
  inputs: Array,
  labels: Array,
  weights: Array,
) -> tuple[Any, Any]:
  """Returns, of C tokens, what `_all_chunks` returns; the terms of its sums in their place."""
  axes, cap = options.words, options.cap
  v = w_VxD.shape[0]
  all_words = v * (options.sharding.size(axes) if options.sharding else 1)
  inputs = inputs.astype(w_VxD.dtype)
  logits = _product(w_VxD, inputs, 1, 1)
  if bias is not None:
    logits = logits + bias.astype(jnp.float32)[:, None]
  if cap:
    logits = cap * jnp.tanh(logits / cap)
  # Zeros made of this chunk's labels: what a loop's body makes of constants alone jax makes before
  # the loop, as [V, C] arrays that every chunk then reads.
  labels = labels.astype(jnp.int32)
  nothing = 0 * labels
  zero = nothing.astype(jnp.float32)
  words = jnp.arange(v, dtype=jnp.int32)[:, None] + nothing
  first = lax.axis_index(axes) * v if axes else 0
  is_label = words == labels - first

  greatest = _over(lax.pmax, logits.max(0), axes)
  likeliest = jnp.where(logits == greatest, words + first, nothing + (all_words - 1)).min(0)
  exponentials = jnp.exp(logits - greatest)
  total = _over(lax.psum, exponentials.sum(0), axes)
  per_token = greatest + jnp.log(total)
  # What each other word, and the label on top of that, is to have of the probability.
  other = options.smoothing / (all_words - 1) if options.smoothing else 0.0
  own = 1.0 - options.smoothing - other
  per_token -= own * _over(lax.psum, jnp.where(is_label, logits, zero).sum(0), axes)
  if other:
    per_token -= other * _over(lax.psum, logits.sum(0), axes)
  likeliest = _over(lax.pmin, likeliest, axes)
  if not with_gradient:
    return (per_token, likeliest, None), None

  weights = weights.astype(jnp.float32)
  by_logit = exponentials * (weights / total) - jnp.where(is_label, own * weights, zero)
  if other:
    by_logit -= other * weights
  if cap:
    by_logit *= 1.0 - jnp.square(logits / cap)
  by_bias = by_logit.sum(1)
  by_logit = by_logit.astype(w_VxD.dtype)
  by_input = _product(w_VxD, by_logit, 0, 0).T
  return (per_token, likeliest, by_input.astype(inputs.dtype)), (
    _product(by_logit, inputs, 1, 0),
    by_bias,
  )


def _product(a: Array, b: Array, contract_a: int, contract_b: int) -> Array:
  """A product of two matrices, in float32."""
  dimensions = (((contract_a,), (contract_b,)), ((), ()))
  return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)
