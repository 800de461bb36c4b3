"""Cross entropy in chunks, and the lookup, against the straightforward forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from laser_pax import ops
from laser_pax.costs.jaxprs import inner_jaxprs
from tests.support.programs import compiled

B, T, D, V = 3, 10, 16, 70


def arrays(dtype=jnp.float32):
  """Returns inputs, w, bias, labels, weights; some weights are zero."""
  keys = jax.random.split(jax.random.PRNGKey(0), 5)
  inputs = jax.random.normal(keys[0], (B, T, D))
  w, bias = jax.random.normal(keys[1], (D, V)), jax.random.normal(keys[2], (V,))
  labels = jax.random.randint(keys[3], (B, T), 0, V)
  weights = jnp.where(jax.random.uniform(keys[4], (B, T)) < 0.3, 0.0, 0.5 + jnp.arange(T) / T)
  return *(x.astype(dtype) for x in (inputs, w, bias)), labels, weights


def plain(inputs, w, bias, labels, weights, cap=0.0, smoothing=0.0):
  """All logits at once, in float32, with one-hot labels."""
  inputs, w, bias = (x.astype(jnp.float32) for x in (inputs, w, bias))
  logits = inputs @ w + bias
  logits = cap * jnp.tanh(logits / cap) if cap else logits
  own = jax.nn.one_hot(labels, V)
  probabilities = (1 - smoothing) * own + smoothing / (V - 1) * (1 - own)
  per_token = -jnp.sum(jax.nn.log_softmax(logits) * probabilities, -1)
  return ops.CrossEntropy(jnp.sum(per_token * weights), per_token, logits.argmax(-1))


def gradients(function, inputs, w, bias, labels, weights):
  """Returns those of a function by inputs, w, bias and weights."""
  of_weights = lambda i, w, b, a: function(i, w, b, labels, a)  # noqa: E731
  return jax.grad(of_weights, argnums=(0, 1, 2, 3))(inputs, w, bias, weights)


def value_and_gradients(function, *given):
  """Returns what a function gives, and the gradients of its total, from one compilation."""
  both = lambda *a: (function(*a), gradients(lambda *a: function(*a).total, *a))  # noqa: E731
  return compiled(both)(*given)


@functools.cache
def plain_results(cap, smoothing):
  return value_and_gradients(functools.partial(plain, cap=cap, smoothing=smoothing), *arrays())


def assert_near(found, expected, tolerance):
  """Compares to a share of the greatest of each array."""

  def near(f, e):
    f, e = (np.asarray(x, np.float64) for x in (f, e))
    np.testing.assert_allclose(f, e, rtol=0, atol=tolerance * np.abs(e).max())

  jax.tree.map(near, found, expected)


@pytest.mark.one_jax
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('cap', [0.0, 5.0])
@pytest.mark.parametrize('chunk', [1, 7, 10, 30, 1000, None])
def test_is_the_plain_form(chunk, cap, smoothing):
  options = dict(cap=cap, smoothing=smoothing)
  lean = functools.partial(ops.cross_entropy, tokens_per_chunk=chunk, **options)
  expected, expected_gradients = plain_results(cap, smoothing)
  found, by_total = value_and_gradients(lean, *arrays())
  assert_near(found, expected, 1e-6)
  np.testing.assert_array_equal(found.argmax, expected.argmax)
  assert_near(by_total, expected_gradients, 1e-6)


def test_without_bias():
  inputs, w, bias, labels, weights = arrays()
  expected = plain(inputs, w, 0 * bias, labels, weights)
  lean = lambda i, w: ops.cross_entropy(i, w, None, labels, weights)  # noqa: E731
  assert_near(lean(inputs, w), expected, 1e-6)
  found = jax.grad(lambda *a: lean(*a).total, argnums=(0, 1))(inputs, w)
  by_total = gradients(lambda *a: plain(*a).total, inputs, w, 0 * bias, labels, weights)
  assert_near(found, by_total[:2], 1e-6)


@pytest.mark.parametrize('both', ['tokens', 'tokens and total'])
def test_single_tokens_may_be_differentiated_too(both):
  def loss(xent):
    return jnp.sum(xent.per_token**2) + (3 * xent.total if 'total' in both else 0)

  given = arrays()
  lean = gradients(lambda *a: loss(ops.cross_entropy(*a, cap=5.0, tokens_per_chunk=7)), *given)
  assert_near(lean, gradients(lambda *a: loss(plain(*a, cap=5.0)), *given), 2e-6)


def test_a_factor_of_the_total_reaches_the_gradient():
  given = arrays()
  once = gradients(lambda *a: ops.cross_entropy(*a).total, *given)
  twice = gradients(lambda *a: jnp.square(ops.cross_entropy(*a).total), *given)
  factor = 2 * ops.cross_entropy(*given).total
  assert_near(twice, jax.tree.map(lambda g: factor * g, once), 1e-6)


def test_bfloat16_is_as_near_as_its_rounding():
  given = arrays(jnp.bfloat16)
  expected = plain(*given, cap=5.0)
  found = ops.cross_entropy(*given, cap=5.0, tokens_per_chunk=7)
  assert_near(found[:2], expected[:2], 1e-6)  # Products of bfloat16 are exact in float32.
  by_total = gradients(lambda *a: ops.cross_entropy(*a, cap=5.0, tokens_per_chunk=7).total, *given)
  assert [g.dtype for g in by_total] == [jnp.bfloat16] * 3 + [jnp.float32]
  assert_near(by_total, gradients(lambda *a: plain(*a, cap=5.0).total, *given), 2**-7)


def test_the_gradient_of_w_is_summed_in_float32():
  n = 4096  # In bfloat16 a sum of equal terms stops at 256 of them.
  inputs, labels = jnp.ones((n, D), jnp.bfloat16), jnp.zeros(n, jnp.int32)
  w = jnp.zeros((D, V), jnp.bfloat16)
  lean = lambda w: ops.cross_entropy(inputs, w, None, labels, jnp.ones(n), tokens_per_chunk=4)  # noqa: E731
  found = np.asarray(jax.grad(lambda w: lean(w).total)(w), np.float32)
  np.testing.assert_allclose(found[:, 0], n * (1 / V - 1), rtol=2**-7)


def test_equal_logits_have_the_first_for_argmax():
  inputs, w = jnp.ones((2, D)), jnp.zeros((D, V)).at[:, [5, 9]].set(1.0)
  found = ops.cross_entropy(inputs, w, None, jnp.zeros(2, jnp.int32), jnp.ones(2))
  np.testing.assert_array_equal(found.argmax, [5, 5])


def shapes(jaxpr) -> set[tuple[int, ...]]:
  """The shapes of all that is computed."""
  found = {v.aval.shape for e in jaxpr.eqns for v in e.outvars}
  for equation in jaxpr.eqns:
    for inner in inner_jaxprs(equation.params):
      found |= shapes(inner)
  return found


@pytest.mark.parametrize('form', [plain, functools.partial(ops.cross_entropy, tokens_per_chunk=6)])
def test_no_array_of_all_tokens_and_words(form):
  given = arrays()
  value_and_grad = jax.value_and_grad(lambda i, w: form(i, w, *given[2:]).total, argnums=(0, 1))
  found = shapes(jax.make_jaxpr(value_and_grad)(*given[:2]).jaxpr)
  large = [s for s in found if np.prod(s) >= B * T * V]
  assert bool(large) == (form is plain), large
  assert form is plain or (V, 6) in found


def products(jaxpr) -> int:
  """How many matrix products run."""
  total = sum(e.primitive.name == 'dot_general' for e in jaxpr.eqns)
  for e in jaxpr.eqns:
    times = e.params['length'] if e.primitive.name == 'scan' else 1
    total += times * sum(products(inner) for inner in inner_jaxprs(e.params))
  return total


def test_a_chunk_takes_three_products_and_one_without_gradient():
  given = arrays()
  total = lambda w: ops.cross_entropy(given[0], w, *given[2:], tokens_per_chunk=6).total  # noqa: E731
  assert products(jax.make_jaxpr(total)(given[1]).jaxpr) == 5
  assert products(jax.make_jaxpr(jax.grad(total))(given[1]).jaxpr) == 15


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(w=jnp.zeros((D + 1, V))), 'inputs'),
    (dict(labels=jnp.zeros((B, T, 1), jnp.int32)), 'labels'),
    (dict(bias=jnp.zeros(V + 1)), 'bias'),
    (dict(tokens_per_chunk=0), 'tokens_per_chunk'),
  ],
)
def test_what_does_not_fit_is_refused(change, message):
  given = dict(zip(('inputs', 'w', 'bias', 'labels', 'weights'), arrays(), strict=True))
  with pytest.raises(ValueError, match=message):
    ops.cross_entropy(**given | change)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_lookup_is_a_product_with_one_hot_words(dtype):
  _, w, _, ids, _ = arrays(dtype)
  factor = jax.random.normal(jax.random.PRNGKey(7), (B, T, D)).astype(dtype)
  weigh = lambda found: jnp.sum((found * factor).astype(jnp.float32))  # noqa: E731
  one_hot = lambda w: jnp.einsum('btv,dv->btd', jax.nn.one_hot(ids, V, dtype=dtype), w)  # noqa: E731
  np.testing.assert_array_equal(ops.lookup(None, w, ids), one_hot(w))
  found = jax.grad(lambda w: weigh(ops.lookup(None, w, ids)))(w)
  assert_near(
    found, jax.grad(lambda w: weigh(one_hot(w)))(w), 1e-6 if dtype == jnp.float32 else 2**-7
  )


def test_the_gradient_of_a_frequent_word_is_summed_in_float32():
  w, ids = jnp.zeros((D, V), jnp.bfloat16), jnp.full(4096, 3)
  found = jax.grad(lambda w: ops.lookup(None, w, ids).astype(jnp.float32).sum())(w)
  np.testing.assert_array_equal(found[:, 3], 4096.0)
  np.testing.assert_array_equal(found[:, 4], 0.0)
