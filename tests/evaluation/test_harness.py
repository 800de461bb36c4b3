"""The model that lm_eval sees: what it encodes, cuts, caches and generates."""

import itertools
import json
import types

import numpy as np
import pytest
import tensorflow as tf
from lm_eval.api.instance import Instance
from paxml import trainer_lib

from laser_pax import configs
from laser_pax.data import text_lm
from laser_pax.errors import UserError
from laser_pax.evaluation import generation, harness, suite, tables
from laser_pax.evaluation.scoring import Row
from laser_pax.experiment import saved_models
from tests.support import local_tasks, random_weights
from tests.support.stand_in_decoder import Characters, Decoder

ASK = """
task: ask
dataset_path: json
dataset_kwargs: {data_files: {test: tools.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{options[0]}}"
generation_kwargs: {until: ["x"], max_gen_toks: 4}
metric_list: [{metric: exact_match}]
metadata: {version: 1}
"""
COUNT = 40


def _docs():
  rng = np.random.default_rng(3)
  letters = list('abcdefghij')
  for _ in range(COUNT):
    words = [''.join(rng.choice(letters, 5)) for _ in range(int(rng.integers(2, 10)))]
    options = [''.join(rng.choice(letters, 4)) for _ in range(3)]
    yield {'question': ' '.join(words), 'options': options, 'label': int(rng.integers(3))}


@pytest.fixture(scope='module')
def include(tmp_path_factory):
  folder = tmp_path_factory.mktemp('include')
  (folder / 'tools.yaml').write_text(local_tasks.TOOLS)
  (folder / 'ask.yaml').write_text(ASK)
  (folder / 'tools.jsonl').write_text(''.join(json.dumps(doc) + '\n' for doc in _docs()))
  return folder


@pytest.fixture(scope='module')
def tasks(include):
  return suite.load(['tools'], include)


@pytest.fixture(scope='module')
def decoder():
  return random_weights.model('C4LaserTiny', SEQ_LEN=64, NUM_LAYERS=1)


def _requests(kind, *arguments):
  return [
    Instance(request_type=kind, doc={}, arguments=a, idx=0, metadata=('toy', i, 1))
    for i, a in enumerate(arguments)
  ]


def _model(decoder, generate=None):
  return harness.PaxModel(decoder, Characters(), generate)


def _nats(text):
  return sum(Characters().ids(text)) / 1000


def _losses(decoder, rows):
  """Returns PAX's loss and the nats of each token, of rows that the training's converter makes."""
  tokens = tf.data.Dataset.from_generator(
    lambda: ({'targets': row} for row in rows),
    output_signature={'targets': tf.TensorSpec([None], tf.int32)},
  )
  converted = text_lm.TextFeatures(pack=False, bos_id=0)(tokens, {'targets': 64})
  weighted, nats = [], []
  for fields in converted.batch(64, drop_remainder=True).as_numpy_iterator():
    specs = text_lm.batch_specs(64, 64)
    batch = type(specs)({name: fields[name].astype(specs[name].dtype) for name in specs})
    output = decoder.run(trainer_lib.eval_step_single_learner, batch)
    weighted.append(output.weighted_scalars['avg_xent'])
    nats += list(output.per_example_out.per_example_xent)
  values, weights = np.array(weighted, float).reshape(-1, 2).T
  return (values * weights).sum() / weights.sum(), nats


def test_the_log_likelihood_of_passages_is_the_loss_of_training(decoder):
  rng = np.random.default_rng(0)
  texts = [''.join(rng.choice(list('abcdefgh'), n)) for n in rng.integers(1, 65, 128)]
  sums = _model(decoder).loglikelihood_rolling(
    _requests('loglikelihood_rolling', *((text,) for text in texts))
  )
  rows = [Characters().ids(text) for text in texts]
  loss, nats = _losses(decoder, rows)
  assert -sum(sums) / sum(map(len, rows)) == pytest.approx(loss, abs=1e-4)
  for value, row, expected in zip(sums, rows, nats, strict=True):
    assert -value / len(row) == pytest.approx(expected[: len(row)].sum() / len(row), abs=1e-4)


def test_the_accuracy_is_that_of_a_direct_computation(decoder, tasks, tmp_path):
  """Direct: the nats of each choice, summed from the rows of PAX's own evaluation."""
  evaluation = harness.evaluate(
    _model(decoder), tasks, shots=0, limit=None, cache=tmp_path / 'cache'
  )
  docs = list(_docs())
  pairs = [(doc['question'], option) for doc in docs for option in doc['options']]
  ids = [Characters().ids(' '.join(pair)) for pair in pairs]
  _, nats = _losses(decoder, ids + [[5]] * (-len(ids) % 64))
  costs = [
    nats[i][len(Characters().ids(question)) : len(ids[i])].sum()
    for i, (question, _) in enumerate(pairs)
  ]
  likeliest = np.argmin(np.reshape(costs, (COUNT, 3)), axis=1)
  right = likeliest == [doc['label'] for doc in docs]
  (row,) = tables.results(evaluation)
  assert row.value == np.mean(right) and 0 < row.value < 1
  assert row.error == pytest.approx(np.std(right, ddof=1) / COUNT**0.5)
  assert row.examples.tolist() == right.astype(float).tolist() and row.count == COUNT


def test_a_stopped_evaluation_goes_on_from_its_cache(tasks, tmp_path):
  def evaluate(decoder, cache):
    return harness.evaluate(_model(decoder), tasks, shots=1, limit=None, cache=tmp_path / cache)

  whole, stopped, again = Decoder(64), Decoder(64), Decoder(64)
  expected = evaluate(whole, 'whole')
  assert len(whole.shapes) > 1
  stopped.batches_left = len(whole.shapes) - 1
  with pytest.raises(KeyboardInterrupt):
    evaluate(stopped, 'stopped')
  resumed = evaluate(again, 'stopped')
  assert len(again.shapes) == 1
  assert resumed['results'] == expected['results']
  (row,), (other,) = tables.results(resumed), tables.results(expected)
  assert row.examples.tolist() == other.examples.tolist()


def test_the_cache_is_of_the_model_wherever_its_files_are(tmp_path):
  rng = np.random.default_rng(0)
  shapes = {'lm.x.repeat.sub.w': (3, 5, 4), 'lm.x.repeat.sub.b': (3, 4), 'lm.w': (5, 4)}
  weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}

  def key(folder='here', contents=b'pieces', changed=None, **attributes):
    experiment = configs.C4LaserTiny()
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / 'vocab.model').write_bytes(contents)
    experiment.VOCAB = experiment.DATA_DIR = experiment.INIT_FROM = str(tmp_path / folder)
    vars(experiment).update(attributes)
    copies = {name: weight.copy() for name, weight in weights.items()}
    if changed:
      copies[changed[0]][changed[1:]] += 1
    saved = saved_models.Saved(str(tmp_path / folder), 7, None)
    model = types.SimpleNamespace(experiment=experiment, saved=saved, weights=copies)
    return harness.cache_key(model)

  assert key() == key('elsewhere')
  different = [key(changed=('lm.x.repeat.sub.w', i, 0, 2)) for i in range(3)]
  different += [key(changed=('lm.x.repeat.sub.b', 2, 1)), key(changed=('lm.w', 0, 1))]
  different += [key(ATTEN_LOGIT_CAP=0.0), key(contents=b'others')]
  assert len({key(), *different}) == 1 + len(different)


def test_context_and_continuation_are_encoded_together():
  model = _model(Decoder(64))
  pairs = [('ab cd', ' ef'), ('ab cd ', 'ef'), ('', 'ab'), ('  ', 'ab'), ('ab', ' '), ('ab', '')]
  scores = model.loglikelihood(_requests('loglikelihood', *pairs))
  expected = [_nats('ab cd ef') - _nats('ab cd')] * 2 + [_nats('ab')] * 2
  # Nothing is left to score of the last two, so the last token is.
  expected += [_nats('ab') - _nats('a')] * 2
  assert [-score for score, _ in scores] == pytest.approx(expected, rel=1e-5)


def test_a_long_text_keeps_its_last_tokens_and_is_counted():
  model = _model(Decoder(64))
  context, continuation = 'a' * 100, ' ' + 'b' * 20
  ((score, _),) = model.loglikelihood(_requests('loglikelihood', (context, continuation)))
  assert -score == pytest.approx(_nats(f'a {"b" * 20}') - _nats('a'), rel=1e-5)
  assert model.is_cut((context, continuation)) and not model.is_cut(('a', continuation))
  assert model.is_cut((context, {})) and not model.is_cut((context,))


def test_an_empty_prompt_is_refused_by_its_place():
  model = _model(Decoder(64))
  with pytest.raises(UserError, match='task toy, example 1: the prompt is empty'):
    model.loglikelihood(_requests('loglikelihood', ('a', ' b'), (' ', ' ')))
  with pytest.raises(UserError, match='task toy, example 0: the prompt is empty'):
    model.generate_until(_requests('generate_until', ('', {})))


def test_windows_score_each_token_once_with_one_token_of_context():
  for count in (0, 1, 63, 64, 65, 127, 128, 300):
    tokens = list(range(count))
    rows = harness.windows(tokens, 64)
    assert [t for row in rows for t in row.tokens[row.start :]] == tokens
    assert all(len(row.tokens) <= 64 for row in rows)
    assert all(row.tokens[0] + 1 == row.tokens[1] and row.start == 1 for row in rows[1:])
    assert rows[0] == Row(tokens[:64], 0)
  model = _model(Decoder(64))
  texts = ['', 'ab' * 100, 'cd']
  sums = model.loglikelihood_rolling(_requests('loglikelihood_rolling', *((t,) for t in texts)))
  assert [-s for s in sums] == pytest.approx([_nats(t) for t in texts], rel=1e-5)


def test_generation_obeys_the_settings_and_stops():
  calls = []

  def generate(decoder, prompts, **settings):
    calls.append((prompts, settings))
    return [[ord(c) for c in f'{len(p)}.x,y'] for p in prompts]

  model = _model(Decoder(64), generate)
  greedy = {'until': ['x', ','], 'max_gen_toks': 8, 'do_sample': False, 'temperature': 0.7}
  drawn = {'until': 'y', 'do_sample': True, 'temperature': 0.5, 'top_p': 0.9, 'top_k': 3}
  contexts = ['ab', 'a' * 90, 'abc']
  answers = model.generate_until(
    _requests('generate_until', *zip(contexts, (greedy, greedy, drawn), strict=True))
  )
  assert answers == ['2.', '56.', '3.x,']
  (first, greedy_settings), (second, drawn_settings) = calls
  assert [len(p) for p in first] == [56, 2] and [len(p) for p in second] == [3]
  assert greedy_settings == dict(max_tokens=8, temperature=0.0, top_k=0, top_p=1.0)
  assert drawn_settings == dict(max_tokens=32, temperature=0.5, top_k=3, top_p=0.9)


@pytest.mark.parametrize(
  ('settings', 'expected'),
  [
    ({'max_new_tokens': 7}, (7, 0.0, 0, 1.0)),
    ({'max_tokens': 7, 'temperature': 0.5}, (7, 0.5, 0, 1.0)),
    ({'max_completion_tokens': 7, 'do_sample': True}, (7, 1.0, 0, 1.0)),
    ({'do_sample': True, 'temperature': 0.0, 'top_k': 5}, (32, 0.0, 0, 1.0)),
  ],
)
def test_settings_are_read_as_lm_eval_does(settings, expected):
  calls = []

  def generate(decoder, prompts, **settings):
    calls.append(tuple(settings.values()))
    return [[ord('a')] for _ in prompts]

  model = _model(Decoder(64), generate)
  model.generate_until(_requests('generate_until', ('ab', settings)))
  assert calls == [expected]


def test_generation_of_a_task_is_that_of_pax(decoder, include, tmp_path):
  model = _model(decoder, generation.generate)
  asked = suite.load(['ask'], include)
  evaluation = harness.evaluate(model, asked, shots=0, limit=3, cache=tmp_path / 'cache')
  prompts = [Characters().ids(doc['question']) for doc in itertools.islice(_docs(), 3)]
  new_ids = generation.generate(decoder, prompts, max_tokens=4)
  for prompt, ids, sample in zip(prompts, new_ids, evaluation['samples']['ask'], strict=True):
    assert sample['resps'] == [[Characters().continuation(prompt, ids).split('x')[0]]]
