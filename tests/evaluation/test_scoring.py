"""Few shapes serve all rows, and each row has its own score."""

import numpy as np
import pytest

from laser_pax.evaluation.scoring import SHORTEST, TOKENS_PER_DEVICE, Row, Scorer
from tests.support.stand_in_decoder import Decoder


@pytest.mark.parametrize(
  ('seq_len', 'devices', 'shapes'), [(1024, 8, 6), (128, 1, 3), (1500, 2, 7)]
)
def test_5000_rows_of_mixed_length_have_few_shapes(seq_len, devices, shapes):
  model = Decoder(seq_len, devices)
  rng = np.random.default_rng(1)
  lengths = np.minimum(rng.geometric(1 / 90, 5000), seq_len)
  lengths[:50] = rng.integers(1, seq_len + 1, 50)
  rows = []
  for length in lengths:
    rows.append(Row(rng.integers(1, 100, length).tolist(), int(rng.integers(0, length))))
  order = []
  for i, score in Scorer(model).score(rows):
    order.append(i)
    scored = np.array(rows[i].tokens[rows[i].start :])
    assert score.log_likelihood == pytest.approx(-scored.sum() / 1000, rel=1e-5)
    assert score.is_greedy == (scored % 7 != 0).all()
  assert sorted(order) == list(range(5000))
  assert len(set(model.shapes)) == shapes <= 12
  for count, length in model.shapes:
    assert count % devices == 0 and SHORTEST <= length <= seq_len
    assert count * length <= devices * max(TOKENS_PER_DEVICE, seq_len)
  assert max(model.shapes, key=lambda shape: shape[1]) == model.shapes[0]


def test_a_row_keeps_its_last_tokens():
  assert Row([5, 6, 7, 8], 3).cut(2) == Row([7, 8], 1)
  assert Row([5, 6, 7, 8], 1).cut(2) == Row([7, 8], 0)
  assert Row([5, 6], 1).cut(4) == Row([5, 6], 1)
