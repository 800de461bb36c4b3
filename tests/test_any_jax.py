"""The page of LASER without PAX: its blocks run, and give what the oracle gives."""

import importlib.util
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from laser_pax import laser, laser_oracle

PAGE = (pathlib.Path(__file__).parents[1] / 'docs' / 'any_jax.md').read_text()
SECTIONS = {
  section.split('\n')[0].strip('# '): re.findall(r'```python\n(.*?)```', section, re.DOTALL)
  for section in re.split(r'^(?=#+ )', PAGE, flags=re.MULTILINE)
}
BLOCKS = {
  f'{title} {i}': block for title, blocks in SECTIONS.items() for i, block in enumerate(blocks)
}
CAUSAL = np.tril(np.ones((6, 6), bool))
needs_flax = pytest.mark.skipif(not importlib.util.find_spec('flax'), reason='Flax is not here.')


def run(name) -> dict:
  """Runs a block, and returns its names."""
  names = {}
  exec(compile(BLOCKS[name], name, 'exec'), names)
  return names


def assert_laser(names, mask=None, scale=None, by_heads=False):
  arrays = (np.asarray(names[x]) for x in ('query', 'key', 'value'))
  query, key, value = (x.swapaxes(1, 2) for x in arrays) if by_heads else arrays
  output = np.asarray(names['output']).swapaxes(1, 2) if by_heads else names['output']
  groups = query.shape[2] // key.shape[2]
  key, value = (np.repeat(x, groups, axis=2) for x in (key, value))
  np.testing.assert_allclose(output, laser_oracle(query, key, value, mask, scale), atol=1e-5)


def same_segments(ids):
  return (ids[:, :, None] == ids[:, None, :])[:, None]


@pytest.mark.parametrize(
  ('name', 'mask'),
  [
    ('LASER in your model 0', CAUSAL),
    ('Equinox, or plain jax 0', None),
    ('Equinox, or plain jax 1', None),
    ('Masks, grouped queries, dropout 0', 'mask'),
    ('Decoding from a cache 0', CAUSAL),
    ('Several devices 0', CAUSAL),
  ],
)
def test_a_block_gives_laser(name, mask):
  names = run(name)
  assert_laser(names, np.asarray(names[mask]) if isinstance(mask, str) else mask)


def test_a_kernel_with_segments():
  names = run('MaxText, or another trainer with a kernel 0')
  seen = same_segments(np.asarray(names['segment_ids'])) & CAUSAL
  assert_laser(names, seen, by_heads=True)


def test_dropout_is_a_key_of_value_zero():
  names = run('Masks, grouped queries, dropout 1')
  kept, value, keep = (np.asarray(names[x], np.float64) for x in ('kept', 'value', 'keep'))
  mixed = np.einsum('BNTS,BSNH->BTNH', kept, np.exp(value))
  missing = 1 - kept.sum(-1).swapaxes(1, 2)[..., None]
  assert missing.max() > 0.1
  np.testing.assert_allclose(names['output'], np.log(mixed + missing) / keep, atol=1e-5)


def test_layers_under_scan_and_remat_are_layers_in_a_row():
  names = run('jit, vmap, scan, remat 0')
  attention, x, stacked = (names[name] for name in ('attention', 'x', 'stacked_weights'))

  def plain_loss(stacked, x):
    for weights in stacked:
      x = x + attention(*(x @ w for w in weights))
    return jnp.mean(x**2)

  expected = jax.jit(jax.grad(plain_loss))(stacked, x)
  np.testing.assert_allclose(names['gradient'], expected, rtol=1e-4, atol=1e-6)


def flax_attention(names, x, projections, mask):
  """Returns LASER by the weights of a Flax layer, from the oracle."""
  query, key, value = (
    np.einsum('BTD,DNH->BTNH', x, projections[name]['kernel']) + projections[name]['bias']
    for name in ('query', 'key', 'value')
  )
  out = projections['out']
  mixed = laser_oracle(query, key, value, mask)
  return np.einsum('BTNH,NHD->BTD', mixed, out['kernel']) + out['bias']


@needs_flax
def test_linen():
  from flax import linen as nn

  names = run('Flax linen 0')
  expected = flax_attention(names, names['x'], names['variables']['params'], CAUSAL)
  np.testing.assert_allclose(names['output'], expected, atol=1e-5)
  # Linen drops arguments that the signature lacks, and with it a mask would go unseen.
  attention_fn = names['attention'].attention_fn
  assert inspect.signature(attention_fn) == inspect.signature(nn.dot_product_attention)
  dropping = names['attention'].clone(dropout_rate=0.1, deterministic=False)
  with pytest.raises(ValueError, match='dropout_rate=0.1: set it to 0'):
    dropping.apply(names['variables'], names['x'], rngs={'dropout': jax.random.PRNGKey(0)})
  resting = dropping.clone(deterministic=True)
  output = resting.apply(names['variables'], names['x'], mask=names['mask'])
  np.testing.assert_array_equal(output, names['output'])


@needs_flax
def test_linen_decodes_from_its_cache():
  from flax import linen as nn

  names = run('Flax linen 0')
  decoder, x = names['attention'].clone(decode=True), names['x']
  cache = decoder.init(jax.random.PRNGKey(0), x)['cache']
  params = names['variables']['params']
  assert isinstance(decoder, nn.Module)

  @jax.jit
  def step(cache, x):
    variables = {'params': params, 'cache': cache}
    output, updated = decoder.apply(variables, x[:, None], mutable=['cache'])
    return updated['cache'], output[:, 0]

  outputs = []
  for t in range(x.shape[1]):
    cache, output = step(cache, x[:, t])
    outputs.append(output)
  np.testing.assert_allclose(np.stack(outputs, 1), names['output'], atol=1e-5)


@needs_flax
def test_nnx():
  names = run('Flax nnx 0')
  layer = names['attention']
  projections = {
    name: {
      part: np.asarray(getattr(getattr(layer, name), part)[...]) for part in ('kernel', 'bias')
    }
    for name in ('query', 'key', 'value', 'out')
  }
  expected = flax_attention(names, names['x'], projections, CAUSAL)
  np.testing.assert_allclose(names['output'], expected, atol=1e-5)


def test_forward_mode_is_refused():
  query, key, value = jnp.ones((3, 1, 2, 1, 4))
  attention = laser(jax.nn.dot_product_attention)
  with pytest.raises(TypeError, match='forward-mode'):
    jax.jvp(lambda v: attention(query, key, v), (value,), (value,))


def test_each_block_is_tested():
  source = inspect.getsource(inspect.getmodule(run))
  assert all(f"'{name}'" in source for name in BLOCKS), BLOCKS.keys()
