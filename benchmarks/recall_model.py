"""Associative recall: the task, a small transformer in float32, and its training.

A row has P pairs of a key and a value, then the same keys in another order:

    ids [3P] = k1 v1 k2 v2 ... kP vP q1 ... qP        answers [P]: the value of each q

Only the queries are answered. No answer stands in the row, so each is looked up among the pairs.
Attention mixes V by probabilities P as

    O = (1 / beta) log(P exp(beta V))

LASER has beta 1; standard attention, O = P V, is the limit beta = 0. [ours], but for LASER.

Shapes: B rows, T and S positions, N heads, H head size, D model dimension, L layers.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from laser_pax import ops

Array = jax.Array
Params = dict[str, Array]

STANDARD, LASER, LEARNED = 'standard', 'LASER', 'learned beta'
# The variants, and the beta of each. The learned one has a beta for each channel, 1 at the start.
BETAS = {STANDARD: None, 'beta 0.5': 0.5, LASER: 1.0, 'beta 2': 2.0, LEARNED: None}
TWINS = (STANDARD, LASER)
SMALL = 1e-3  # A probability below this is small [paper].
HELD_OUT_SEED = 1_000_000
NOT_DECAYED = ('bias', 'beta')


@dataclasses.dataclass(frozen=True)
class Setting:
  """All sizes of the task, of the model and of its training.

  Attributes:
    pairs: Pairs of a row, P.
    keys: Keys from which a row draws, without repetition.
    values: Values from which a row draws, with repetition. Chance is one in so many.
    layers: Layers of the transformer, L.
    dims: Model dimension, D.
    heads: Attention heads, N, of D / N channels each.
    hidden: Hidden units of the MLP.
    batch: Rows of a step. They are new in each step.
    steps: The last step of a run that does not solve the task.
    warmup: Steps in which the learning rate rises linearly. It is constant after that.
    decay: AdamW's weight decay, of all matrices.
    every: Steps from one evaluation to the next.
    held_out: Rows of an evaluation, the same in all runs.
    solved: Accuracy at which the task is solved, and the run ends.
  """

  pairs: int = 8
  keys: int = 64
  values: int = 64
  layers: int = 2
  dims: int = 32
  heads: int = 2
  hidden: int = 64
  batch: int = 32
  steps: int = 4000
  warmup: int = 100
  decay: float = 0.01
  every: int = 50
  held_out: int = 256
  solved: float = 0.99

  @property
  def length(self) -> int:
    """Positions of a row."""
    return 3 * self.pairs


class Rows(NamedTuple):
  """Rows of the task: ids [B, 3P], values numbered after the keys, and answers [B, P]."""

  ids: Array
  answers: Array


def draw(setting: Setting, key: Array, rows: int) -> Rows:
  """Draws rows of the task."""
  for_keys, for_values, for_order = jax.random.split(key, 3)
  shape = rows, setting.pairs
  shuffled = jnp.argsort(jax.random.uniform(for_keys, (rows, setting.keys)))
  keys = shuffled[:, : setting.pairs]
  values = jax.random.randint(for_values, shape, 0, setting.values)
  order = jnp.argsort(jax.random.uniform(for_order, shape))
  pairs = jnp.stack([keys, setting.keys + values], axis=2).reshape(rows, -1)
  queries, answers = (jnp.take_along_axis(x, order, axis=1) for x in (keys, values))
  return Rows(jnp.concatenate([pairs, queries], axis=1), answers)


def initial(setting: Setting, key: Array) -> Params:
  """Draws weights: embeddings of variance 1, matrices of 1 / inputs; bias is 0, beta 1."""
  dims, hidden, layers = setting.dims, setting.hidden, setting.layers
  shapes = {
    'ids': (setting.keys + setting.values, dims),
    'positions': (setting.length, dims),
    'query': (layers, dims, dims),
    'key': (layers, dims, dims),
    'value': (layers, dims, dims),
    'mixed': (layers, dims, dims),
    'in': (layers, dims, hidden),
    'out': (layers, hidden, dims),
    'answer': (dims, setting.values),
  }
  params = {'bias': jnp.zeros((layers, hidden)), 'beta': jnp.ones((layers, dims))}
  for (name, shape), key_of in zip(shapes.items(), jax.random.split(key, len(shapes)), strict=True):
    size = 1.0 if name in ('ids', 'positions') else shape[-2] ** -0.5
    params[name] = size * jax.random.normal(key_of, shape)
  return params


class Attended(NamedTuple):
  """What one layer's attention mixes: probabilities [B, N, T, S] as logits, and values."""

  logits: Array
  values: Array
  beta: Array


def mix(variant: str, attended: Attended) -> Array:
  """Mixes values by the softmax of logits: [B, T, N, H]."""
  weights, values = jax.nn.softmax(attended.logits), attended.values
  equation = 'BNTS,BSNH->BTNH'
  if variant == STANDARD:
    return jnp.einsum(equation, weights, values)
  beta = attended.beta.reshape(values.shape[2:]) if variant == LEARNED else BETAS[variant]
  return ops.log_weighted_sum_exp(equation, weights, beta * values) / beta


def forward(
  setting: Setting, variant: str, params: Params, ids: Array, nudges: list[Array] | None = None
) -> tuple[Array, list[Attended]]:
  """Runs the transformer: pre-norm, causal, with learned positions.

  The last layer runs at the queries alone, as nothing reads its other positions.

  Args:
    setting: The sizes.
    variant: Of BETAS.
    params: As `initial` draws them.
    ids: [B, T].
    nudges: For each layer what is added to its mixed values. Their gradient is that of the mixture.

  Returns:
    The answers' logits [B, P, values], and what each layer's attention mixed.
  """
  x = params['ids'][ids] + params['positions']
  seen = jnp.tri(setting.length, dtype=bool)
  attended = []
  for layer in range(setting.layers):
    this = {name: params[name][layer] for name in _OF_LAYERS}
    asked = setting.pairs if layer == setting.layers - 1 else setting.length
    normed, x = norm(x), x[:, -asked:]
    query, key, value = (
      dense(y, this[name]).reshape(*y.shape[:2], setting.heads, -1)
      for name, y in (('query', normed[:, -asked:]), ('key', normed), ('value', normed))
    )
    logits = jnp.einsum('BTNH,BSNH->BNTS', query, key) * query.shape[-1] ** -0.5
    attended.append(Attended(jnp.where(seen[-asked:], logits, -1e30), value, this['beta']))
    mixed = mix(variant, attended[-1])
    if nudges is not None:
      mixed += nudges[layer]
    x += dense(mixed.reshape(x.shape), this['mixed'])
    x += dense(jax.nn.relu(dense(norm(x), this['in']) + this['bias']), this['out'])
  return dense(norm(x), params['answer']), attended


_OF_LAYERS = ('query', 'key', 'value', 'mixed', 'in', 'bias', 'out', 'beta')


def norm(x: Array) -> Array:
  """Layer norm without weights."""
  return jax.nn.standardize(x, axis=-1)


def dense(x: Array, matrix: Array) -> Array:
  """Multiplies all rows of x [B, T, D] as one matrix, which a CPU does fastest."""
  return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], -1)


def loss(logits: Array, answers: Array) -> Array:
  """Returns the mean cross entropy of the answers, in nats."""
  return optax.softmax_cross_entropy_with_integer_labels(logits, answers).mean()


class State(NamedTuple):
  """A run between two steps."""

  params: Params
  optimizer: optax.OptState
  step: Array


def adamw(setting: Setting) -> optax.GradientTransformation:
  """Returns AdamW at learning rate 1, so that one program serves all rates."""
  is_decayed = lambda params: {name: name not in NOT_DECAYED for name in params}  # noqa: E731
  return optax.adamw(1.0, weight_decay=setting.decay, mask=is_decayed)


def start(setting: Setting, seed: int) -> State:
  """Returns the state before the first step."""
  params = initial(setting, jax.random.fold_in(jax.random.key(seed), 0))
  return State(params, adamw(setting).init(params), jnp.int32(0))


@functools.partial(jax.jit, static_argnums=(0, 1))
def train(
  setting: Setting, variant: str, state: State, seed: Array, rate: Array
) -> tuple[State, Array]:
  """Takes `every` steps. Returns the state and the mean loss of these steps."""
  rows_key = jax.random.fold_in(jax.random.key(seed), 1)

  def one_step(state: State, _) -> tuple[State, Array]:
    rows = draw(setting, jax.random.fold_in(rows_key, state.step), setting.batch)
    loss_of = lambda p: loss(forward(setting, variant, p, rows.ids)[0], rows.answers)  # noqa: E731
    value, gradients = jax.value_and_grad(loss_of)(state.params)
    updates, optimizer = adamw(setting).update(gradients, state.optimizer, state.params)
    step = state.step + 1
    rate_now = rate * jnp.minimum(1.0, step / setting.warmup)
    params = jax.tree.map(lambda p, update: p + rate_now * update, state.params, updates)
    return State(params, optimizer, step), value

  state, losses = jax.lax.scan(one_step, state, length=setting.every)
  return state, losses.mean()


@functools.partial(jax.jit, static_argnums=(0, 1))
def evaluate(setting: Setting, variant: str, params: Params) -> dict[str, Array]:
  """Returns the accuracy on the held-out rows, and what `explain` does of the first of them."""
  rows = draw(setting, jax.random.key(HELD_OUT_SEED), setting.held_out)
  logits, _ = forward(setting, variant, params, rows.ids)
  few = Rows(*(x[: setting.batch] for x in rows))
  return {
    'accuracy': (logits.argmax(-1) == rows.answers).mean(),
    **explain(setting, variant, params, few),
  }


def explain(setting: Setting, variant: str, params: Params, rows: Rows) -> dict[str, Array]:
  """Returns, for each layer, how small probabilities are and what gradient reaches the logits.

  The gradient that arrives at a layer's mixed values is that of the variant. It is taken on to
  the logits twice: through standard attention and through LASER, with probabilities and values
  unchanged. The last layer has the queries alone, the others have all positions.

  Returns, each [L]:
    small: The share of probabilities below SMALL among the keys that a query may see.
    spread: The standard deviation of values within a channel, by root mean square.
    gradient of standard, gradient of LASER: Norms over all logits of the layer.
    small gradient of standard, small gradient of LASER: Those over logits whose probability is
      below SMALL.
  """

  def of_nudges(nudges: list[Array]) -> tuple[Array, list[Attended]]:
    logits, attended = forward(setting, variant, params, rows.ids, nudges)
    return loss(logits, rows.answers), attended

  shapes = jax.eval_shape(lambda: forward(setting, variant, params, rows.ids)[1])
  nudges = [jnp.zeros(mixed_shape(x)) for x in shapes]
  cotangents, attended = jax.grad(of_nudges, has_aux=True)(nudges)
  layers = [_explain_layer(x, g) for x, g in zip(attended, cotangents, strict=True)]
  return {name: jnp.stack([layer[name] for layer in layers]) for name in layers[0]}


def mixed_shape(attended: Attended) -> tuple[int, ...]:
  """Returns the shape of mixed values, [B, T, N, H]."""
  batch, heads, length, _ = attended.logits.shape
  return batch, length, heads, attended.values.shape[-1]


def _explain_layer(attended: Attended, cotangent: Array) -> dict[str, Array]:
  is_small = jax.nn.softmax(attended.logits) < SMALL
  found = {
    'small': jnp.mean(is_small, where=attended.logits > -1e29),
    'spread': jnp.sqrt(jnp.var(attended.values, axis=1).mean()),
  }
  for twin in TWINS:
    _, pull = jax.vjp(functools.partial(mix, twin), attended)
    gradient = pull(cotangent)[0].logits
    found[f'gradient of {twin}'] = jnp.linalg.norm(gradient.ravel())
    found[f'small gradient of {twin}'] = jnp.linalg.norm(jnp.where(is_small, gradient, 0).ravel())
  return found


def run(setting: Setting, variant: str, rate: float, seed: int) -> Iterator[dict]:
  """Trains until the task is solved, or to the last step. Yields one dict an evaluation.

  Each has the step, the mean loss since the evaluation before, and what `evaluate` returns.
  """
  state = start(setting, seed)
  for step in range(setting.every, setting.steps + 1, setting.every):
    state, value = train(setting, variant, state, jnp.uint32(seed), jnp.float32(rate))
    found = evaluate(setting, variant, state.params)
    yield {'step': step, 'loss': value, **found}
    if found['accuracy'] >= setting.solved or not jnp.isfinite(value):
      return
