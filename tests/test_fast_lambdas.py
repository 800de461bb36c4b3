"""Fiddle still reads the source of lambdas correctly."""

import inspect

import pytest
from fiddle._src.experimental import auto_config

from laser_pax import pax_fixes

_ONE = lambda: dict(a=[1, 2], b='x')  # noqa: E731
_TWO = [lambda: 1, lambda: 2]


def test_the_source_equals_that_of_fiddles_own_reader():
  pax_fixes.read_lambdas_fast()
  reader = auto_config._getsource_for_lambda
  evaluate = lambda source: eval(source, globals())()  # noqa: E731
  assert evaluate(reader(_ONE)) == evaluate(inspect.unwrap(reader)(_ONE)) == _ONE()


def test_several_lambdas_on_a_line_are_refused_as_before():
  with pytest.raises(ValueError, match='multiple lambdas'):
    auto_config._getsource_for_lambda(_TWO[0])


def test_a_second_call_changes_nothing():
  pax_fixes.read_lambdas_fast()
  reader = auto_config._getsource_for_lambda
  pax_fixes.read_lambdas_fast()
  assert auto_config._getsource_for_lambda is reader


def test_paxmls_own_lambda_defaults_are_built():
  from paxml import learners
  from praxis import pax_fiddle

  assert pax_fiddle.Config(learners.Learner).bprop_variable_exclusion == []
