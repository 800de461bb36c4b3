"""Scores are those of the training's loss, and few shapes serve all rows."""

import numpy as np
import pytest
import tensorflow as tf
from paxml import trainer_lib

from laser_pax.data import text_lm
from laser_pax.evaluation.scoring import SHORTEST, TOKENS_PER_DEVICE, Row, Scorer
from tests.support import random_weights
from tests.support.stand_in_decoder import Decoder


@pytest.mark.parametrize('name', ['C4LaserTiny', 'C4StandardTiny'])
def test_scores_of_100_passages_are_the_loss_of_training(name):
  """The loss is PAX's, on rows that the training's converter makes, all of one length."""
  model = random_weights.model(name, SEQ_LEN=64)
  rng = np.random.default_rng(0)
  passages = [rng.integers(2, 128, n).tolist() for n in rng.integers(1, 65, 100)]
  scores = dict(Scorer(model).score([Row(tokens, 0) for tokens in passages]))
  assert sorted(scores) == list(range(100))

  rows = tf.data.Dataset.from_generator(
    lambda: ({'targets': tokens} for tokens in passages),
    output_signature={'targets': tf.TensorSpec([None], tf.int32)},
  )
  converter = text_lm.TextFeatures(pack=False, bos_id=0)
  converted = list(converter(rows, {'targets': 64}).as_numpy_iterator())
  batch = {key: np.stack([row[key] for row in converted]) for key in converted[0]}
  fields = text_lm.batch_specs(100, 64)
  batch = type(fields)({key: batch[key].astype(fields[key].dtype) for key in fields})
  output = model.run(trainer_lib.eval_step_single_learner, batch)
  loss = float(np.mean(output.weighted_scalars['avg_xent'][0]))
  total = sum(score.log_likelihood for score in scores.values())
  assert -total / sum(map(len, passages)) == pytest.approx(loss, abs=1e-4)
  of_each = (output.per_example_out.per_example_xent * batch.weights).sum(1)
  for i, tokens in enumerate(passages):
    assert -scores[i].log_likelihood == pytest.approx(of_each[i], abs=1e-4 * len(tokens))


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
