"""The suite runs on local files by lm_eval's own definitions; one line tells what is missing."""

import json

import datasets
import huggingface_hub
import pytest

from laser_pax.errors import UserError
from laser_pax.evaluation import harness, suite, tables
from laser_pax.evaluation.tasks import race_middle, record
from tests.support import local_tasks
from tests.support.stand_in_decoder import Characters, Decoder


@pytest.fixture(scope='module')
def include(tmp_path_factory):
  folder = tmp_path_factory.mktemp('local')
  local_tasks.write(folder)
  return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)
  monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'datasets')


def _generate(decoder, prompts, **settings):
  """Answers, and goes on with a question in the prompt's form, as after solved examples."""
  del decoder, settings
  forms = ['Question' if Characters().ids('Answer:') == ids[-7:] else 'Q' for ids in prompts]
  return [[ord(c) for c in f' Ostrava {form}: which'] for form in forms]


def test_the_whole_suite_runs_offline_on_local_files(include, tmp_path):
  names, left_out = suite.members(include)
  assert names == list(suite.PAPER) and not left_out
  tasks = suite.load(names, include)
  own = {
    name for name, task in tasks.items() if 'laser_pax' in task.config.metadata['config_source']
  }
  assert own == {'race_middle', 'record', 'triviaqa', 'nq_open'}
  model = harness.PaxModel(Decoder(512), Characters(), _generate)
  evaluation = harness.evaluate(model, tasks, shots=1, limit=None, cache=tmp_path / 'cache')
  rows = {row.task: row for row in tables.results(evaluation)}
  assert list(rows) == names and all(evaluation['n-shot'][name] == 1 for name in names)
  assert {name: row.count for name, row in rows.items() if row.count != 4} == {'race_middle': 2}
  assert {row.metric for row in rows.values()} == {'acc', 'em', 'exact_match'}
  # One of four questions has this town for its answer.
  assert rows['triviaqa'].value == rows['nq_open'].value == 0.25
  assert tables.mean(list(rows.values())).tasks == 21
  for name in ('race', 'wsc273', 'lambada_openai'):  # Their solved examples are of the test split.
    for sample in evaluation['samples'][name]:
      context = sample['arguments'][0][0]
      town = next(
        t for t in ('Harwell', 'Lindfors', 'Quenby', 'Ostrava') if t in str(sample['doc'])
      )
      solved = context.rpartition('\n\nArticle' if name == 'race' else '\n\n')[0]
      assert solved and town not in solved


def test_what_must_be_asked_for_is_left_out_without_its_data(tmp_path):
  names, left_out = suite.members(tmp_path)
  assert left_out == ['storycloze_2016'] and len(names) == 20
  assert suite.members(None) == (names, left_out)


def test_a_missing_data_set_is_told_in_one_line(tmp_path):
  with pytest.raises(UserError) as refused:
    suite.load(['boolq'], tmp_path)
  message = str(refused.value)
  assert 'task boolq' in message and 'DIR/aps/super_glue' in message and '--include' in message
  assert '\n' not in message


def test_missing_files_of_ones_own_task_are_told_in_one_line(tmp_path):
  (tmp_path / 'tools.yaml').write_text(local_tasks.TOOLS)
  with pytest.raises(UserError, match='task tools: its data files are missing: .*tools.jsonl'):
    suite.load(['tools'], tmp_path)


def test_data_of_another_form_are_told_in_one_line(tmp_path):
  folder = tmp_path / 'baber' / 'piqa'
  folder.mkdir(parents=True)
  (folder / 'validation.jsonl').write_text('{"goal": "g"}\n')
  (folder / 'train.jsonl').write_text('{"goal": "g"}\n')
  with pytest.raises(UserError, match='task piqa cannot be made of its data set baber/piqa'):
    suite.load(['piqa'], tmp_path)


def test_an_unknown_task_is_refused_with_near_names(tmp_path, monkeypatch):
  monkeypatch.setattr(suite, '_LM_EVAL', suite._LM_EVAL / 'arc')  # The whole takes ten seconds.
  with pytest.raises(UserError, match=r"no task 'arc_eazy'; did you mean .*arc_easy"):
    suite.load(['arc_eazy'], tmp_path)


def test_a_tag_stands_for_its_tasks_of_all_folders(tmp_path, monkeypatch):
  monkeypatch.setattr(suite, '_LM_EVAL', tmp_path / 'lm_eval')
  (include := tmp_path / 'include').mkdir()
  for folder in ('arc', 'piqa', 'none of the suite'):
    (tmp_path / 'lm_eval' / folder).mkdir(parents=True)
    text = local_tasks.TOOLS.replace('task: tools', f'task: {folder}_tools\ntag: my_tag')
    (tmp_path / 'lm_eval' / folder / 'tools.yaml').write_text(text)
  row = {'question': 'Which?', 'options': ['this', 'that'], 'label': 0}
  (include / 'tools.jsonl').write_text(json.dumps(row))
  tasks = suite.load(['my_tag'], include)
  assert list(tasks) == ['arc_tools', 'none of the suite_tools', 'piqa_tools']
  (include / 'tools.jsonl').unlink()
  with pytest.raises(UserError, match='task arc_tools: its data files are missing'):
    suite.load(['my_tag'], include)


def test_a_race_article_has_its_questions_solved_but_the_last():
  rows = [
    dict(article='A', question='Who?', options=['p', 'q', 'r', 's'], answer='C'),
    dict(article='B', question='Why?', options=['t', 'u', 'v', 'w'], answer='A'),
    dict(article='A', question='It is  _ .', options=['x', 'y', 'z', 'o'], answer='B'),
    dict(article='A', question='When?', options=['1', '2', '3', '4'], answer='D'),
  ]
  first, second = race_middle.by_article(datasets.Dataset.from_list(rows))
  assert race_middle.prompt(first) == 'Article: A\n\nQuestion: Who?\nAnswer: r\nIt is y\nWhen?'
  assert race_middle.options(first) == ['1', '2', '3', '4'] and race_middle.answer(first) == 3
  assert race_middle.prompt(second) == 'Article: B\n\nWhy?'


@pytest.mark.parametrize(
  ('chosen', 'answers', 'f1', 'em'),
  [
    ('The Ferry', ['ferry!'], 1, 1),
    ('an old ferry', ['ferry', 'new ferry'], 2 / 3, 0),
    ('mill', ['ferry'], 0, 0),
    ('the', ['a'], 1, 1),
  ],
)
def test_record_is_scored_as_squad_is(chosen, answers, f1, em):
  doc = {'entities': ['other', chosen], 'answers': answers}
  scores = record.metrics(doc, [(-2.0, False), (-1.0, False)])
  assert scores == {'f1': pytest.approx(f1), 'em': em}
