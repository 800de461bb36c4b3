"""Tables: the metric of a task, the mean, and paired differences with their intervals."""

import numpy as np
import pytest

from laser_pax.evaluation import tables


def _evaluation(**tasks):
  """Returns lm_eval's results of tasks, each given by its metric and its examples' values."""
  results, samples = {}, {}
  for task, (metric, values, value) in tasks.items():
    results[task] = {'name': task, f'{metric},none': value, f'{metric}_stderr,none': 'N/A'}
    samples[task] = [
      {'doc_id': i, 'filter': 'none', metric: x} for i, x in reversed(list(enumerate(values)))
    ]
  return {'results': results, 'samples': samples}


def _shares(seed, task='a', count=400, share=0.3, metric='acc'):
  values = (np.random.default_rng(seed).random(count) < share).astype(float).tolist()
  return tables.results(_evaluation(**{task: (metric, values, np.mean(values))}))[0]


def test_a_task_is_judged_by_its_first_share_and_has_that_filter_alone():
  evaluation = _evaluation(t=('acc_norm', [1, 0], 0.5))
  evaluation['results']['t'] |= {'acc,none': 0.0, 'perplexity,none': 9.0}
  for sample in evaluation['samples']['t']:
    sample |= {'acc': 0.0, 'perplexity': -2.0}
  (row,) = tables.results(evaluation)
  assert (row.metric, row.value, row.error) == ('acc', 0.0, 0.0)

  evaluation = _evaluation(t=('exact_match', [1, 0, 0], 1 / 3))
  evaluation['results']['t'] = {'exact_match,strict': 1 / 3}
  samples = [{**s, 'filter': 'strict'} for s in evaluation['samples']['t']]
  evaluation['samples']['t'] = samples + [{**s, 'exact_match': 1} for s in samples[:0]]
  (row,) = tables.results(evaluation)
  assert row.examples.tolist() == [1, 0, 0]
  assert row.error == pytest.approx((1 / 3) / 3**0.5 * 3**0.5)


def test_what_is_no_mean_over_examples_has_neither_error_nor_interval():
  texts = _evaluation(t=('word_perplexity', [(-3.0, 2), (-4.0, 2)], 5.75))
  (row,) = tables.results(texts)
  assert (row.value, row.error, row.is_share, row.count) == (5.75, None, False, 2)
  assert tables.mean([row]) is None
  by_task, of_mean = tables.differences([row], [row._replace(value=5.0)])
  assert of_mean is None and by_task['t'] == (0.75, pytest.approx(0.15), None)


def test_the_mean_weighs_tasks_alike():
  rows = [_shares(0, 'a', 100), _shares(1, 'b', 900)]
  mean = tables.mean(rows)
  assert mean.value == pytest.approx((rows[0].value + rows[1].value) / 2)
  assert mean.error == pytest.approx(np.hypot(rows[0].error, rows[1].error) / 2)
  assert mean.tasks == 2
  assert tables.mean([rows[0], rows[1]._replace(error=None)]).error is None


def test_differences_are_paired_and_their_intervals_are_those_of_large_samples():
  """Where pairs agree mostly, the interval is far narrower than that of independent samples."""
  rng = np.random.default_rng(5)
  ours, theirs = [], []
  for task, count in (('a', 2000), ('b', 500)):
    base = (rng.random(count) < 0.5).astype(float)
    flipped = np.where(rng.random(count) < 0.05, 1 - base, base)
    for rows, values in ((ours, flipped), (theirs, base)):
      rows += tables.results(_evaluation(**{task: ('acc', values.tolist(), values.mean())}))
  by_task, of_mean = tables.differences(ours, theirs)
  errors = []
  for row, other in zip(ours, theirs, strict=True):
    pairs = row.examples - other.examples
    error = pairs.std(ddof=1) / len(pairs) ** 0.5
    errors.append(error)
    difference = by_task[row.task]
    assert difference.value == pytest.approx(pairs.mean())
    assert difference.relative == pytest.approx(pairs.mean() / other.value)
    low, high = difference.interval
    near = 0.05 * error + 1 / len(pairs)  # A mean of pairs moves in steps of 1 / len(pairs).
    assert low == pytest.approx(pairs.mean() - 1.96 * error, abs=near)
    assert high == pytest.approx(pairs.mean() + 1.96 * error, abs=near)
    assert high - low < 0.5 * 2 * 1.96 * np.hypot(row.error, other.error)
  of_both = np.hypot(*errors) / 2
  assert of_mean.value == pytest.approx(np.mean([d.value for d in by_task.values()]))
  assert np.diff(of_mean.interval)[0] == pytest.approx(2 * 1.96 * of_both, rel=0.1)
  assert tables.differences(ours, theirs) == (by_task, of_mean)


def test_a_model_does_not_differ_from_itself():
  row = _shares(0)
  by_task, of_mean = tables.differences([row], [row])
  assert by_task['a'] == of_mean == (0.0, 0.0, (0.0, 0.0))
  nothing = row._replace(value=0.0, examples=np.zeros(400))
  assert tables.differences([row], [nothing])[1].relative is None
