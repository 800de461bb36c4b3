"""SuperGLUE's rows and scores: T5's texts, the loss on targets alone, resumption, T5's metrics."""

import collections
import itertools
import pathlib
import shutil

import numpy as np
import pytest
import sentencepiece
import seqio
import tensorflow_datasets as tfds

from laser_pax.data import inputs, sample, superglue
from laser_pax.data.datasets import SUPER_GLUE
from laser_pax.data.superglue_tasks import TASKS
from laser_pax.errors import UserError
from tests.support import latin_1, small_superglue

VOCAB = str(sample.VOCAB)
INPUTS, TARGETS, B = 40, 8, 2
ROWS = {'vocab': VOCAB, 'lengths': {'inputs': INPUTS, 'targets': TARGETS}}
EXAMPLES = {'boolq': 7, 'cb': 7, 'wsc': 3}


@pytest.fixture(scope='module')
def data_dir():
  return small_superglue.prepared()


def train(data_dir, examples=EXAMPLES, **fields):
  config = superglue.train_input(examples, data_dir=data_dir, batch_size=B, seed=1, **ROWS)
  for name, value in fields.items():
    setattr(config, name, value)
  return config.Instantiate()


def all_batches(config):
  own, batches = config.Instantiate(), []
  while True:
    try:
      batches.append(own.get_next_padded())
    except StopIteration:
      return batches


@pytest.fixture(scope='module')
def t5_task():
  """Returns a function of a task's name and split: t5's own task, which it registers itself."""
  from t5.data import tasks  # noqa: F401

  def find(name, split):
    if name == 'wsc':
      return seqio.TaskRegistry.get(f'super_glue_wsc_v102_simple_{split}')
    return seqio.TaskRegistry.get(f'super_glue_{name}_v102')

  return find


def t5_texts(task, name, split, data_dir):
  """Returns the pairs of texts that t5's own task makes of our records."""
  builder = tfds.builder_from_directory(f'{data_dir}/{SUPER_GLUE[name].folder}')
  rows = task.preprocessors[0](builder.as_dataset(split=split)).as_numpy_iterator()
  return [(row['inputs'].decode(), row['targets'].decode()) for row in rows]


@pytest.mark.parametrize('name', TASKS)
def test_a_row_is_t5s_text_and_the_loss_is_on_the_target(name, data_dir, t5_task):
  texts = t5_texts(t5_task(name, 'train'), name, 'train', data_dir)
  encode = sentencepiece.SentencePieceProcessor(model_file=VOCAB).encode
  expected = collections.Counter()
  for text, target in texts:
    own = [*encode(text)[: INPUTS - 1], 1]
    row = [*own, *encode(target)[: TARGETS - 1], 1]
    expected[tuple(row), len(own)] += 1
  own = train(data_dir, {name: len(texts)}, batch_size=len(texts))
  batch = own.get_next_padded()
  actual = collections.Counter()
  for n in range(len(texts)):
    count = int((1 - batch.paddings[n]).sum())
    begin = count - int(batch.weights[n].sum())
    actual[tuple(batch.labels[n, :count].tolist()), begin] += 1
    np.testing.assert_array_equal(batch.weights[n, begin:count], 1)
    np.testing.assert_array_equal(batch.ids[n, 1:count], batch.labels[n, : count - 1])
    np.testing.assert_array_equal(batch.segment_ids[n], np.arange(INPUTS + TARGETS) < count)
  assert actual == expected  # An epoch is each example, once.
  assert superglue.count_examples(name, data_dir) == len(texts)
  specs = superglue.batch_specs(len(texts), INPUTS + TARGETS)
  for field, spec in specs.FlattenItems():
    assert (batch[field].shape, batch[field].dtype) == (spec.shape, spec.dtype), field


def test_the_counts_are_t5s(t5_task):
  from t5.data import glue_utils

  weights = glue_utils.get_super_glue_weight_mapping()
  names = {f'super_glue_{name}_v102': task.examples for name, task in TASKS.items()}
  names['super_glue_wsc_v102_simple_train'] = names.pop('super_glue_wsc_v102')
  assert names == {name: weights[name] for name in names}
  assert set(weights) - set(names) == {
    'dpr_v001_simple', 'super_glue_wsc_v102_simple_eval', 'super_glue_axb_v102',
    'super_glue_axg_v102',
  }  # fmt: skip


def test_a_mixture_goes_on_with_the_next_batch_and_is_one_stream_for_all_hosts(data_dir, tmp_path):
  whole = train(data_dir, input_checkpointing_enabled=True)
  labels = [whole.get_next_padded().labels for _ in range(30)]
  first = train(data_dir, input_checkpointing_enabled=True)
  for _ in range(11):
    first.get_next_padded()
  first.save(tmp_path / 'process_00000_of_00001')
  second = train(data_dir, input_checkpointing_enabled=True)
  second.restore(tmp_path / 'process_00000_of_00001')
  np.testing.assert_array_equal(labels[11:], [second.get_next_padded().labels for _ in range(19)])
  hosts = [
    train(data_dir, batch_size=1, num_infeed_hosts=2, infeed_host_index=host) for host in (0, 1)
  ]
  assert all(isinstance(host, inputs.GlobalStreamInput) for host in hosts)
  for batch in labels[:10]:
    both = np.concatenate([host.get_next_padded().labels for host in hosts])
    np.testing.assert_array_equal(batch, both)


def test_rows_to_decode_have_the_input_alone(data_dir):
  config = superglue.decode_input('boolq', 'validation', data_dir=data_dir, batch_size=B, **ROWS)
  batches = all_batches(config)
  encode = sentencepiece.SentencePieceProcessor(model_file=VOCAB).encode
  task = seqio.TaskRegistry.get(superglue.eval_task('boolq', data_dir, VOCAB))
  rows = task.get_dataset(None, 'validation', shuffle=False).as_numpy_iterator()
  texts = [row['inputs_pretokenized'].decode() for row in rows]
  ids = [
    row[: int((1 - paddings).sum())].tolist()
    for b in batches
    for row, paddings, weight in zip(b.ids, b.paddings, b.eval_sample_weights, strict=True)
    if weight
  ]
  assert ids == [[0, *encode(text), 1] for text in texts] and len(ids) == 5


@pytest.mark.parametrize('name', TASKS)
def test_scores_are_those_of_t5s_own_task(name, data_dir, t5_task):
  """The task that t5 registers scores the same answers: right ones, wrong ones, and no class."""
  theirs = t5_task(name, 'eval')
  own = seqio.TaskRegistry.get(superglue.eval_task(name, data_dir, VOCAB))
  rows = list(own.get_dataset(None, 'validation', shuffle=False).as_numpy_iterator())
  right = [row['targets_pretokenized'].decode() for row in rows]
  wrong = [*right[1:], 'neither']
  for answers in (right, wrong):
    targets, predictions = [], []
    for row, target, answer in zip(rows, right, answers, strict=True):
      targets.append(theirs.postprocess_fn(target, example=row, is_target=True))
      predictions.append(theirs.postprocess_fn(answer, example=row, is_target=False))
    expected = {}
    for metric in theirs.metric_fns:
      expected |= metric(targets, predictions)
    actual = superglue.evaluate(name, 'validation', data_dir, VOCAB, iter(answers))
    assert actual == pytest.approx(expected)
    is_all_right = answers is right and name != 'wsc'  # WSC's labels say which referents are right.
    assert (superglue.score(actual) == 100) == is_all_right


def test_the_mean_of_the_tasks_is_t5s():
  from t5.evaluation import eval_utils

  tags = [x for x in eval_utils.METRIC_NAMES if x.startswith('super_glue_') and 'average' not in x]
  values = dict(zip(tags, np.random.default_rng(0).uniform(0, 100, len(tags)), strict=True))
  table = eval_utils.scores_to_df({tag: [(1, value)] for tag, value in values.items()})
  expected = eval_utils.compute_avg_glue(table)['Average SuperGLUE Score'].item()
  by_task = collections.defaultdict(dict)
  for tag, value in values.items():
    task, metric = tag.split('/')
    by_task[task][metric] = value
  assert len(by_task) == len(TASKS)
  assert np.mean([superglue.score(x) for x in by_task.values()]) == pytest.approx(expected)


def test_chance_is_the_score_of_the_commonest_target(data_dir):
  # Rows 0 to 6 have four even numbers; of 7 to 11 two are even.
  assert superglue.chance('boolq', data_dir, VOCAB) == pytest.approx(100 * 2 / 5)
  # Rows 0 to 6 have entailment thrice, and so have rows 7 to 11 once.
  metrics = superglue.evaluate('cb', 'validation', data_dir, VOCAB, itertools.repeat('entailment'))
  assert superglue.chance('cb', data_dir, VOCAB) == superglue.score(metrics)
  assert metrics['accuracy'] == pytest.approx(100 * 1 / 5)


def test_a_text_that_is_not_utf8_is_named(data_dir, tmp_path):
  name = SUPER_GLUE['cb'].folder
  folder = shutil.copytree(f'{data_dir}/{name}', tmp_path / name)
  (path,) = pathlib.Path(folder).glob('*-train.tfrecord*')
  latin_1.put(path, 'premise')
  with pytest.raises(UserError, match=f'{path}: its record 1 has a text that is not UTF-8'):
    train(str(tmp_path), {'cb': 7}).get_next()
