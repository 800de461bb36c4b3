"""benchmarks/recall.py: the task is what it says, runs resume, and a rerun gives the same."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import recall, recall_model
from tests.support.programs import compiled

TINY = recall_model.Setting(
  pairs=3, keys=7, values=5, layers=1, dims=8, heads=2, hidden=8, batch=4, steps=20, warmup=5,
  every=5, held_out=16, solved=0.95,
)  # fmt: skip
SIZES = [f'--{name}={size}' for name, size in vars(TINY).items()]


@pytest.fixture(autouse=True)
def quick_programs(monkeypatch):
  """Compiles quickly, rather than well."""
  quick = {'xla_backend_optimization_level': 0}
  for name in ('train', 'evaluate'):
    function = getattr(recall_model, name).__wrapped__
    program = jax.jit(function, static_argnums=(0, 1), compiler_options=quick)
    monkeypatch.setattr(recall_model, name, program)


def test_each_answer_is_the_value_of_its_key():
  setting = recall_model.Setting()
  rows = compiled(lambda key: recall_model.draw(setting, key, 100))(jax.random.key(3))
  pairs, queries = np.split(np.asarray(rows.ids), [2 * setting.pairs], axis=1)
  assert rows.ids.shape == (100, setting.length)
  assert np.ptp(pairs[:, 0::2]) == setting.keys - 1 and pairs[:, 0::2].min() == 0
  assert pairs[:, 1::2].min() == setting.keys
  assert pairs.max() == setting.keys + setting.values - 1
  are_ordered = []
  for row, asked, answers in zip(pairs, queries, rows.answers, strict=True):
    value_of = dict(zip(row[0::2].tolist(), row[1::2].tolist(), strict=True))
    assert len(value_of) == setting.pairs  # No key stands twice.
    assert sorted(asked) == sorted(value_of)
    assert [value_of[key] - setting.keys for key in asked.tolist()] == answers.tolist()
    are_ordered.append((asked == row[0::2]).mean())
  assert np.mean(are_ordered) < 0.2  # By chance 1 / 8: the order of the pairs tells nothing.


@pytest.mark.parametrize('variant', recall_model.BETAS)
def test_values_are_mixed_by_the_formula(variant):
  rng = np.random.default_rng(0)
  logits, values, betas = (rng.normal(size=s) for s in ((2, 3, 4, 5), (2, 5, 3, 6), (3, 6)))
  attended = recall_model.Attended(*(jnp.float32(x) for x in (logits, values, betas)))
  found = compiled(lambda x: recall_model.mix(variant, x))(attended)
  weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  beta = {'standard': None, 'learned beta': betas}.get(variant, recall_model.BETAS[variant])
  if beta is None:
    expected = np.einsum('bnts,bsnh->btnh', weights, values)
  else:
    expected = np.log(np.einsum('bnts,bsnh->btnh', weights, np.exp(beta * values))) / beta
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('layers', [1, 2])
def test_attention_is_causal_and_sees_all_pairs(layers):
  setting = recall_model.Setting(**{**vars(TINY), 'layers': layers})
  params = recall_model.start(setting, 0).params
  forward = compiled(lambda ids: recall_model.forward(setting, 'LASER', params, ids)[0])
  row = jnp.array([0, 7, 1, 8, 2, 9, 1, 0, 2])
  # The first row, and rows of which one position each is another id.
  logits = np.asarray(forward(row + jnp.eye(1 + setting.length, setting.length, -1, dtype=int)))
  is_moved = (logits[1:] != logits[0]).any(2)
  queries = 2 * setting.pairs + np.arange(setting.pairs)
  np.testing.assert_array_equal(is_moved, np.arange(setting.length)[:, None] <= queries)


@pytest.mark.parametrize('variant', recall_model.TWINS)
def test_gradients_of_the_logits_are_those_of_the_loss(monkeypatch, variant):
  params = recall_model.start(TINY, 0).params
  params['query'] = 20 * params['query']  # So that some probabilities are small.
  rows = compiled(lambda key: recall_model.draw(TINY, key, TINY.batch))(jax.random.key(0))
  found = compiled(lambda: recall_model.explain(TINY, variant, params, rows))()
  mix = recall_model.mix

  def loss(added):
    moved = lambda name, x: mix(name, x._replace(logits=x.logits + added))  # noqa: E731
    monkeypatch.setattr(recall_model, 'mix', moved)
    logits, attended = recall_model.forward(TINY, variant, params, rows.ids)
    return recall_model.loss(logits, rows.answers), attended[0]

  nothing = jnp.zeros((TINY.batch, TINY.heads, TINY.pairs, TINY.length))
  gradient, attended = compiled(jax.grad(loss, has_aux=True))(nothing)
  gradient, logits, values = (np.asarray(x) for x in (gradient, *attended[:2]))
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  is_visible = np.tri(TINY.length)[-TINY.pairs :] > 0
  is_small = weights < recall_model.SMALL
  assert 0.05 < is_small[..., is_visible].mean() < 0.95
  expected = {
    'small': is_small[..., is_visible].mean(),
    f'gradient of {variant}': np.linalg.norm(gradient),
    f'small gradient of {variant}': np.linalg.norm(gradient[is_small]),
    'spread': np.sqrt(np.var(values, axis=1).mean()),
  }
  for name, wanted in expected.items():
    np.testing.assert_allclose(found[name], [wanted], rtol=1e-4, atol=1e-6, err_msg=name)
  for what in ('gradient', 'small gradient'):
    assert found[f'{what} of LASER'] != found[f'{what} of standard']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Where the tests below keep results."""
  return tmp_path_factory.mktemp('recall')


def command(folder, *options):
  """Runs the command."""
  recall.main([*SIZES, '--jobs=1', f'--out={folder / "recall.jsonl"}', *options])


def test_a_run_resumes_and_repeats_to_the_bit(folder, capsys):
  command(folder, '--seeds=1', '--rates', '0.01', '--variants', 'standard')
  first = (folder / 'recall.jsonl').read_text()
  command(folder, '--seeds=2', '--rates', '0.01', '--variants', 'standard', 'LASER')
  text = (folder / 'recall.jsonl').read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  assert text.startswith(first) and len(lines) == 4
  assert len({recall.point_of(line) for line in lines}) == 4
  for line in lines:
    assert [x['step'] for x in line['curve']] == [5, 10, 15, 20]
    assert line['curve'][-1]['accuracy'] == line['accuracy']
  curves = [tuple(x['loss'] for x in line['curve']) for line in lines]
  assert len(set(curves)) == 4  # Variants and seeds differ.
  assert all(curve[-1] < curve[0] for curve in curves)
  printed = capsys.readouterr().out
  assert '1 of 3: LASER, learning rate 0.01, seed 0: ' in printed
  with pytest.raises(SystemExit) as end:
    command(folder, '--check=2')
  assert end.value.code == 0 and capsys.readouterr().out.count(': equal') == 2


def test_a_line_that_was_cut_costs_its_point_alone(folder, tmp_path):
  lines = (folder / 'recall.jsonl').read_text().splitlines(keepends=True)
  file = tmp_path / 'recall.jsonl'
  file.write_text(''.join(lines[:1]) + lines[1][:40])
  command(tmp_path, '--seeds=1', '--rates', '0.01', '--variants', 'standard', 'LASER')
  kept = file.read_text().splitlines(keepends=True)
  assert kept[:1] == lines[:1] and len(recall.read(file)) == 2


def test_a_check_sees_a_difference(folder, capsys):
  file = folder / 'recall.jsonl'
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  lines[0]['steps'] = 15
  file.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  with pytest.raises(SystemExit) as end:
    command(folder, '--check=1')
  assert end.value.code == 1 and 'DIFFERENT' in capsys.readouterr().out
  with pytest.raises(SystemExit, match='Run points here first'):
    recall.check(1, folder / 'none.jsonl', 1)


def line_of(variant, rate, seed, steps):
  """Returns a line as a run leaves it."""
  setting = vars(recall_model.Setting())
  found = {'small': [0.1, 0.8], 'spread': [1.0, 2.0]}
  found |= {'gradient of standard': [1, 2], 'gradient of LASER': [2, 3]}
  found |= {'small gradient of standard': [0, seed], 'small gradient of LASER': [0, 5 * seed]}
  curve = [{'step': step, 'loss': 1.0, 'accuracy': 0.5, **found} for step in (50, 100)]
  run = {'variant': variant, 'learning_rate': rate, 'seed': seed, 'steps': steps}
  return {**run, 'setting': setting, 'curve': curve}


def test_tables_and_picture_are_made_of_the_lines(tmp_path):
  steps = {('standard', 0.001): (500, None, 700), ('LASER', 0.001): (None, None, 100)}
  steps |= {('standard', 0.004): (500, None, 600), ('LASER', 0.002): (50, 150, 250)}
  lines = [line_of(*by, i, x) for by, found in steps.items() for i, x in enumerate(found)]
  assert recall.best_rate(lines) == 0.004 and recall.shown_rates(lines) == [0.004]
  file, picture = tmp_path / 'recall.md', tmp_path / 'recall.png'
  names = ('recall', 'explanation', 'settings')
  file.write_text(''.join(f'<!-- {name} -->\nold\n<!-- end of {name} -->\n' for name in names))
  recall.publish({recall.point_of(line): line for line in lines}, file, picture)
  text = file.read_text()
  assert '| standard | 2/3, 700 |  | 2/3, 600 |\n| LASER | 1/3 | 3/3, 150 |  |' in text
  cells = '| 10%, 80% | 1.0, 2.0 | 2.00, 1.50 | none, 5.0 |'
  for outcome in ('2 solved', '1 not solved'):
    assert f'| standard | 0.004 | {outcome} | 100 {cells}' in text
  assert '| 8 | 32 | 2 | 0.004 | 2/3, 600 |' in text and 'old' not in text
  assert picture.stat().st_size > 10_000
