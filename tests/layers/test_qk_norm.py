"""QK-norm in single steps agrees with whole sequences; Praxis's own layer does not."""

import dataclasses

import pytest
from praxis import pax_fiddle
from praxis.layers import attentions, normalizations

from laser_pax import layers
from tests.support import cases

NORM = {'ln_tpl': pax_fiddle.Config(normalizations.LayerNorm, direct_scale=True)}
KINDS = {
  'combined': {'combine_qkv': True},
  'rotary': {'use_rotary_position_emb': True},
  'rotary, one cache': {'use_rotary_position_emb': True, 'consolidate_rope_key_state': True},
  'convolved, rotary': {'dconv_qkv': True, 'use_rotary_position_emb': True},
}


def error_of_steps(cls, fields, name='fused'):
  """Returns how far single steps are from the whole pass."""
  case = dataclasses.replace(cases.CASES[name], laser=cls, fields=fields | NORM)
  layer, variables = cases.build(case)
  inputs, seen = cases.draw(case), cases.visibility(case, 'packing')
  run = lambda variables: (  # noqa: E731
    cases.full_pass(case, layer, variables, *inputs, seen)[0],
    cases.step_by_step(case, layer, variables, *inputs, seen),
  )
  rows = seen.any(-1)
  whole, steps = cases.compiled(run)(variables)
  return cases.rms_error(steps[rows], whole[rows])


@pytest.mark.parametrize('kind', KINDS)
def test_steps_equal_the_whole_pass(kind):
  assert error_of_steps(layers.FusedDotProductAttention, KINDS[kind]) < 1e-5


def test_steps_of_laser_too():
  assert error_of_steps(layers.LaserFusedDotProductAttention, KINDS['combined']) < 1e-5


def test_steps_of_cross_attention_too():
  assert error_of_steps(layers.LaserDotProductAttention, {}, name='cross') < 1e-5


@pytest.mark.parametrize('name', ['local', 'xl', 'context'])
def test_steps_of_every_laser_attention_that_has_the_norm(name):
  case = cases.CASES[name]
  assert error_of_steps(case.laser, case.fields, name) < 1e-5


def test_praxis_leaves_steps_as_they_are():
  """If this fails, Praxis has mended it, and NormedStepsMixin would normalise twice."""
  assert error_of_steps(attentions.DotProductAttention, {}) > 0.01
