"""Which attention is chosen for a cap, dtype, mask, size and platform, and what is said of it."""

import itertools

import jax.numpy as jnp
import pytest

from laser_pax.ops import choice


def case(platform='gpu', dtype='bfloat16', logit_cap=None, **fields):
  sizes = {'head_size': 64, 'value_size': 64, 'lengths': (1024, 1024), 'has_segments': True}
  return choice.Case(
    platform=platform, dtype=jnp.dtype(dtype), logit_cap=logit_cap, **(sizes | fields)
  )


@pytest.mark.parametrize(
  ('fields', 'kernel', 'faster'),
  [
    ({'platform': 'tpu', 'logit_cap': 50.0}, 'splash', {}),
    ({'platform': 'tpu', 'dtype': 'float32', 'head_size': 24}, 'splash', {}),
    ({'platform': 'cpu'}, 'blocks', {}),
    ({'platform': 'cpu', 'logit_cap': 50.0, 'dtype': 'float32'}, 'blocks', {}),
    ({}, 'cudnn', {}),
    ({'platform': 'cuda'}, 'cudnn', {}),
    ({'dtype': 'float16'}, 'cudnn', {}),
    ({'has_segments': False, 'lengths': (1023, 1023)}, 'cudnn', {}),
    ({'lengths': (1023, 1023)}, 'blocks', {'triton': ('kernel',)}),
    ({'lengths': (1024, 77)}, 'blocks', {'triton': ('kernel',)}),
    ({'logit_cap': 50.0}, 'blocks', {'cudnn': ('logit_cap',), 'triton': ('kernel',)}),
    ({'logit_cap': 0.0}, 'cudnn', {}),
    ({'dtype': 'float32'}, 'blocks', {'cudnn': ('dtype',), 'triton': ('dtype', 'kernel')}),
    (
      {'dtype': 'float32', 'logit_cap': 50.0},
      'blocks',
      {'cudnn': ('logit_cap', 'dtype'), 'triton': ('dtype', 'kernel')},
    ),
    ({'head_size': 256, 'value_size': 256}, 'blocks', {}),
    ({'head_size': 36, 'value_size': 36}, 'blocks', {'triton': ('kernel',)}),
    ({'value_size': 128}, 'blocks', {}),
  ],
)
def test_what_serves_by_itself(fields, kernel, faster):
  chosen = choice.choose(case(**fields))
  assert chosen.kernel == kernel
  assert dict(chosen.faster) == faster


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32'])
@pytest.mark.parametrize('logit_cap', [None, 50.0])
@pytest.mark.parametrize('has_segments', [True, False])
@pytest.mark.parametrize('platform', ['tpu', 'gpu', 'cuda', 'cpu', 'METAL'])
def test_what_has_never_run_on_a_gpu_serves_by_name_alone(dtype, logit_cap, has_segments, platform):
  asked = case(platform, dtype, logit_cap, has_segments=has_segments)
  assert choice.choose(asked).kernel != 'triton'
  serves = platform in ('gpu', 'cuda') and dtype != 'float32'
  assert (choice.choose(asked, 'triton').kernel == 'triton') == serves


@pytest.mark.parametrize('wanted', ['cudnn', 'triton', 'splash'])
def test_a_kernel_that_cannot_serve_is_not_taken(wanted):
  chosen = choice.choose(case('cpu'), wanted)
  assert chosen.kernel == 'blocks'
  assert chosen.reason == (
    f'{choice.NAMES[wanted]} does not run on the platform cpu; '
    'there is no kernel for the platform cpu'
  )


def test_a_kernel_that_is_asked_for_is_not_advised_again():
  chosen = choice.choose(case(dtype='float32', logit_cap=50.0), 'triton')
  assert chosen.kernel == 'blocks'
  assert dict(chosen.faster)['triton'] == ('dtype',)
  by_blocks = choice.choose(case(logit_cap=None), 'blocks')
  assert by_blocks == ('blocks', 'asked for by name', ())


@pytest.mark.parametrize('wanted', [None, 'splash', 'cudnn', 'triton'])
def test_taking_the_advice_gives_the_kernel(wanted):
  """Each setting that is named is applied; then the kernel serves that was promised."""
  for dtype, logit_cap in itertools.product(('bfloat16', 'float32'), (None, 50.0)):
    asked = case(dtype=dtype, logit_cap=logit_cap)
    for kernel, needed in choice.choose(asked, wanted).faster:
      changed = asked._replace(
        dtype=jnp.dtype('bfloat16') if 'dtype' in needed else asked.dtype,
        logit_cap=None if 'logit_cap' in needed else asked.logit_cap,
      )
      assert choice.choose(changed, kernel if 'kernel' in needed else wanted).kernel == kernel


def test_the_line_that_a_person_reads():
  assert choice.choose(case(logit_cap=50.0)).text() == (
    "plain jax by blocks of queries: cuDNN's attention has no logit cap (here 50); logit_cap=None "
    "would give cuDNN's attention (another model); kernel='triton' would give this package's "
    'Triton kernel (never run on a GPU yet)'
  )
  assert choice.choose(case('tpu', logit_cap=50.0)).text() == (
    "jax's splash attention: it has segments and any logit cap"
  )
  assert choice.choose(case()).text() == (
    "cuDNN's attention: bfloat16 without a logit cap, segments as a T x S mask"
  )
