"""LASER's error against float64, beside standard attention's in the same dtype."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from praxis import base_layer, pax_fiddle
from praxis.layers import attentions

from laser_pax import layers
from laser_pax.ops import laser_oracle, laser_oracle_vjp
from tests.support import float64
from tests.support.cases import LARGE_NEGATIVE, context, rms_error

BF16, F32 = jnp.bfloat16, jnp.float32


def draw(seed, length, head, scale, dtype, logits=1):
  """Query, key, value and cotangent: [T, H], as dtype has them.

  The standard deviation of values is `scale`, that of logits is `logits`.
  """
  rng = np.random.default_rng(seed)
  arrays = rng.standard_normal((4, length, head)) * np.array([logits, 1, scale, 1])[:, None, None]
  return rounded(arrays, dtype)


def rounded(arrays, dtype):
  return [np.asarray(jnp.asarray(x, dtype), np.float64) for x in arrays]


def run(cls, dtype, query, key, value, cotangent, seen, segments=None):
  """Runs `head_and_gradients`, compiled: slowly where it runs often, quickly where it is long.

  Fused attention takes `segments` [T], and sees both ways in each; without them it is causal.
  """
  is_fused = issubclass(cls, layers.FusedMixin)
  level, is_causal = 0 if is_fused else 1, segments is None or not is_fused
  segments = np.ones(len(query), np.int32) if is_causal else segments  # The mask tells the others.
  arrays = query, key, value, cotangent, seen, segments
  return _compiled(level)(cls, dtype, is_causal, *arrays)


@functools.cache
def _compiled(level):
  options = {'xla_backend_optimization_level': level}
  return jax.jit(head_and_gradients, static_argnums=(0, 1, 2), compiler_options=options)


def head_and_gradients(cls, dtype, is_causal, query, key, value, cotangent, seen, segments):
  """The layer's output and gradients in dtype, of one head [T, H]."""
  head = query.shape[1]
  sizes = {'input_dim': head, 'hidden_dim': head, 'num_heads': 1, 'dim_per_head': head}
  config = pax_fiddle.Config(
    cls, name='atten', **sizes, internal_enable_per_dim_scale=False, fprop_dtype=dtype
  )
  layer = base_layer.instantiate(config)
  mask = jnp.where(seen, 0.0, LARGE_NEGATIVE)[None, None]
  if issubclass(cls, layers.FusedMixin) and len(seen) > 1:
    mask = layers.Segments(segments[None], is_causal)

  def attend(*arrays):
    return layer.apply({}, *arrays, mask, method=lambda layer, *a: layer._dot_atten(*a)[0])

  with context():
    query, key, value, cotangent = (
      x[None, :, None].astype(dtype) for x in (query, key, value, cotangent)
    )
    output, pull = jax.vjp(attend, query, key, value)
    return [x[0, :, 0] for x in (output, *pull(cotangent))]


def errors(cls, dtype, arrays, seen, reference, segments=None):
  found = run(cls, dtype, *arrays, seen, segments)
  assert all(np.isfinite(np.asarray(x, np.float64)).all() for x in found)
  return [rms_error(*pair) for pair in zip(found, reference, strict=True)]


PLAIN = layers.LaserDotProductAttention
BOTH = PLAIN, layers.LaserFusedDotProductAttention  # The second runs by blocks of queries.


def compare(dtype, lasers, arrays, seen, segments=None):
  """Returns errors [class, 4], of output, query, key, value: of each of `lasers`, then standard."""
  query, key, value, cotangent = arrays
  exact = float64.laser(query, key, value, seen, cotangent)
  ours = [errors(laser, dtype, arrays, seen, exact, segments) for laser in lasers]
  of_standard = float64.standard(query, key, value, seen, cotangent)
  return [*ours, errors(attentions.DotProductAttention, dtype, arrays, seen, of_standard)]


def check(dtype, lasers, cases):
  """Checks each class's errors over all cases, what `compare` takes, together.

  Several cases count together: where one row decides a gradient, one case's ratio is chance.
  """
  found = np.array([compare(dtype, lasers, *case) for case in cases])
  *ours, theirs = np.sqrt((found**2).mean(0))
  for laser, own in zip(lasers, ours, strict=True):
    if dtype == F32:
      assert max(own) <= 3e-6, (laser, own)
      continue
    ratios = own / theirs
    assert ratios[0] <= 1.3 and max(ratios[1:]) <= 1.5, (laser, ratios, own)


def causal(length):
  return np.tril(np.ones((length, length), bool))


DTYPES = pytest.mark.parametrize('dtype', [BF16, F32], ids=['bfloat16', 'float32'])
SCALES = [0.01, 0.1, 1, 10, 100]


@DTYPES
@pytest.mark.parametrize(
  ('head', 'lasers'), [(64, BOTH), (128, [PLAIN])], ids=['64-also_by_blocks', '128']
)
@pytest.mark.parametrize('scale', SCALES)
def test_scale_of_values(dtype, head, lasers, scale):
  """By blocks a decoder of the experiments runs on a CPU, beside Praxis's standard attention."""
  check(dtype, lasers, [(draw(1, 512, head, scale, dtype), causal(512))])


@DTYPES
@pytest.mark.parametrize('scale', [0.01, 1])
def test_more_keys(dtype, scale):
  check(dtype, [PLAIN], [(draw(1, 2048, 64, scale, dtype), causal(2048))])


@DTYPES
@pytest.mark.parametrize('scale', [1e-5, 3e-4, 2e-3, 0.01])
def test_small_values_under_flat_attention(dtype, scale):
  """The first rows decide these errors; sixteen heads have enough of them."""
  draws = (draw(seed, 512, 64, scale, dtype, logits=0.1) for seed in range(16))
  check(dtype, BOTH, [(arrays, causal(512)) for arrays in draws])


def one_huge(value):
  value[len(value) // 3] = 1e4


def last_is_greatest(value):
  value[-1] = value.max(0) + 6 * value.std()


@functools.cache
def step_of_decoding(cls, dtype, head):
  """Returns a function of queries [T, H], cached keys and values [S, H], and a mask [T, 1, S]."""
  sizes = {'input_dim': head, 'hidden_dim': head, 'num_heads': 1, 'dim_per_head': head}
  config = pax_fiddle.Config(
    cls, name='atten', **sizes, internal_enable_per_dim_scale=False, fprop_dtype=dtype
  )
  layer = base_layer.instantiate(config)

  @jax.jit
  def step(query, key, value, mask):
    cache = {'key': key[None, :, None], 'value': value[None, :, None]}
    with context():
      return layer.apply(
        {base_layer.DECODE_CACHE: cache},
        *(query[:, None], 'key', 'value', mask),
        method=lambda layer, *arguments: layer._dot_atten_one_step(*arguments)[0][:, 0],
      )

  return step


def step_error(cls, dtype, arrays, reference):
  """The error of the steps of some places, each with the cache of the places before it."""
  places = np.arange(0, len(reference), 8)
  query, key, value = (x.astype(dtype) for x in (arrays[0][places], *arrays[1:3]))
  mask = jnp.where(causal(len(reference))[places], 0.0, LARGE_NEGATIVE)[:, None]
  output = step_of_decoding(cls, dtype, query.shape[1])(query, key, value, mask)
  assert output.dtype == dtype and np.isfinite(np.asarray(output, np.float64)).all()
  return rms_error(output, reference[places])


@DTYPES
@pytest.mark.parametrize('scale', [0.01, 1, 100])
@pytest.mark.parametrize('change', [lambda value: None, one_huge, last_is_greatest])
def test_steps_of_decoding(dtype, scale, change):
  """What a decoder runs for each new token: one query over the cache of keys and values."""
  found = []
  for seed in range(4):
    arrays = draw(seed, 512, 32, scale, dtype)
    change(arrays[2])
    arrays[2] = rounded([arrays[2]], dtype)[0]
    pairs = (
      (layers.LaserFusedDotProductAttention, float64.laser),
      (layers.FusedDotProductAttention, float64.standard),
    )
    exact = [reference(*arrays[:3], causal(512), arrays[3])[0] for _, reference in pairs]
    found.append(
      [step_error(cls, dtype, arrays, x) for (cls, _), x in zip(pairs, exact, strict=True)]
    )
  ours, theirs = np.sqrt((np.array(found) ** 2).mean(0))
  assert ours <= (3e-6 if dtype == F32 else 1.3 * theirs), (ours, theirs)


def packed(length):
  """Three segments, and padding in front that sees nothing."""
  segments = np.searchsorted([length // 8, length // 4, length // 2], np.arange(length), 'right')
  return causal(length) & (segments[:, None] == segments) & (segments > 0)


def last_is_out_of_reach(value):
  value[-1] = 500 + value.max(0)


@DTYPES
@pytest.mark.parametrize('scale', [0.01, 1, 100])
@pytest.mark.parametrize('change', [one_huge, last_is_greatest, last_is_out_of_reach])
@pytest.mark.parametrize('mask', [causal, packed])
def test_columns_and_masks(dtype, scale, change, mask):
  cases, seen = [], mask(512)
  for seed in range(4):
    arrays = draw(seed, 512, 32, scale, dtype)
    change(arrays[2])
    arrays[2] = rounded([arrays[2]], dtype)[0]
    cases.append((arrays, seen))
  check(dtype, [PLAIN], cases)


def whole_row(length):
  """Images: every position sees every position."""
  segments = np.ones(length, np.int32)
  return np.ones((length, length), bool), segments


def padded_row(length):
  """Speech: no position sees padding. The mask has one row for all."""
  segments = (np.arange(length) < length * 5 // 8).astype(np.int32)
  return segments[None] > 0, segments


def packed_row(length):
  """BERT: documents in one row see themselves, and so does padding."""
  ends = [length // 8, length // 2, length * 15 // 16]
  segments = (1 + np.searchsorted(ends, np.arange(length), 'right')).astype(np.int32)
  segments[segments > len(ends)] = 0
  return segments[:, None] == segments, segments


# What each family's attention sees. It may have both LASER classes. A family joins here.
FAMILIES = {'bert': packed_row, 'vision': whole_row, 'speech': padded_row}


@DTYPES
@pytest.mark.parametrize('scale', [0.01, 1, 100])
@pytest.mark.parametrize('family', FAMILIES)
def test_families_see_both_ways(dtype, scale, family):
  seen, segments = FAMILIES[family](512)
  cases = [draw(seed, 512, 32, scale, dtype) for seed in range(2)]
  check(dtype, BOTH, [(arrays, seen, segments) for arrays in cases])


@DTYPES
def test_a_constant_column_is_its_own_output_and_moves_no_logit(dtype):
  arrays = draw(3, 512, 64, 1, dtype)  # A length that is compiled already.
  arrays[2][:] = arrays[2][0]
  output, d_query, d_key, _ = run(PLAIN, dtype, *arrays, causal(512))
  np.testing.assert_allclose(np.asarray(output, np.float64), arrays[2], rtol=1e-6)
  assert not np.any(d_query) and not np.any(d_key)


@pytest.mark.parametrize(
  ('scale', 'change'),
  [(3, None), (100, None), (1000, None), (1, one_huge), (100, one_huge), (1, last_is_out_of_reach)],
)
def test_the_references_are_the_oracles(scale, change):
  arrays = draw(4, 32, 8, scale, F32)
  if change is not None:
    change(arrays[2])
  batch, seen = [x[None, :, None] for x in arrays], packed(32)
  oracle = laser_oracle(*batch[:3], seen), *laser_oracle_vjp(*batch, seen)
  for ours, exact in zip(float64.laser(*arrays[:3], seen, arrays[3]), oracle, strict=True):
    np.testing.assert_allclose(ours, exact[0, :, 0], rtol=1e-9, atol=1e-12)
