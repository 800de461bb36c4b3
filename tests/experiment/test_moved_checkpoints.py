"""A run that was saved on one slice continues on another with the same losses."""

import math

import numpy as np
import pytest

from tests.support import steps


@pytest.fixture(scope='module')
def moved(commands, tmp_path_factory):
  """The output of tests/support/moved_checkpoint.py."""
  folder = tmp_path_factory.mktemp('moved')
  checkpoints = str(folder / 'checkpoints')
  return steps.in_own_process(commands, 8, 'moved_checkpoint', checkpoints)


@pytest.mark.slow
@pytest.mark.parametrize('mesh', [[1, 4, 1], [1, 1, 1], [2, 2, 2]])
def test_a_checkpoint_moves_to_another_slice(moved, mesh):
  resumed = moved[str(mesh)]
  assert resumed['equal']
  assert resumed['numbers'] > 3 * 10_000  # Parameters and two moments.
  assert resumed['devices'] == math.prod(mesh)
  np.testing.assert_allclose(resumed['losses'], moved['saved'], rtol=0, atol=1e-5)
