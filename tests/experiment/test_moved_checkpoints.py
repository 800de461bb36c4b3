"""A run that was saved on one slice goes on, as if nothing had been, on another."""

import math

import numpy as np
import pytest

from tests.support import steps


@pytest.fixture(scope='module')
def moved(tmp_path_factory):
  """What tests/support/moved_checkpoint.py prints."""
  folder = tmp_path_factory.mktemp('moved')
  checkpoints = str(folder / 'checkpoints')
  return steps.in_own_process(8, 'moved_checkpoint', checkpoints, folder=folder)


@pytest.mark.slow
@pytest.mark.parametrize('mesh', [[1, 4, 1], [1, 1, 1], [2, 2, 2]])
def test_a_checkpoint_moves_to_another_slice(moved, mesh):
  found = moved[str(mesh)]
  assert found['equal']
  assert found['numbers'] > 3 * 10_000  # Parameters and two moments.
  assert found['devices'] == math.prod(mesh)
  np.testing.assert_allclose(found['losses'], moved['saved'], rtol=0, atol=1e-5)
