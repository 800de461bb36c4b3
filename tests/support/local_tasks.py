"""Data sets of the suite's tasks, in the layout of their repositories, of a few rows each.

All rows were written for these tests. They are not from the data sets whose fields they have.
"""

import json
import pathlib

# A task of one's own, on the file tools.jsonl beside it.
TOOLS = """
task: tools
dataset_path: json
dataset_kwargs: {data_files: {test: tools.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{options}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}]
metadata: {version: 1}
"""

_TOWNS = ('Harwell', 'Lindfors', 'Quenby', 'Ostrava')
_TOOLS = ('a saw', 'a spoon', 'a brush', 'a needle')


def _multiple_choice(i: int) -> dict:
  return {
    'id': f'made-for-tests-{i}',
    'question': f'Which tool does the carpenter of {_TOWNS[i % 4]} cut a board with?',
    'question_stem': f'The carpenter of {_TOWNS[i % 4]} cuts a board with',
    'choices': {'text': list(_TOOLS), 'label': list('ABCD')},
    'answerKey': 'A',
  }


def _boolq(i: int) -> dict:
  passage = f'The mill of {_TOWNS[i % 4]} grinds corn on {i + 2} days of the week.'
  return {
    'passage': passage,
    'question': f'does the mill of {_TOWNS[i % 4]} grind corn',
    'label': 1,
    'idx': i,
  }


def _pair(i: int) -> dict:
  return {
    'premise': f'The bridge of {_TOWNS[i % 4]} was closed after the flood.',
    'hypothesis': f'The bridge of {_TOWNS[i % 4]} was open after the flood.',
    'label': 1,
    'idx': i,
  }


def _copa(i: int) -> dict:
  return {
    'premise': f'The baker of {_TOWNS[i % 4]} lit the oven.',
    'choice1': 'The room became warm.',
    'choice2': 'The river froze.',
    'question': ('effect', 'cause')[i % 2],
    'label': 0,
    'idx': i,
  }


def _hellaswag(i: int) -> dict:
  return {
    'ind': i,
    'activity_label': 'Mending a shoe',
    'ctx_a': f'A cobbler of {_TOWNS[i % 4]} takes a shoe.',
    'ctx_b': 'he',
    'endings': ['sews the sole on.', 'sings to the moon.', 'counts his geese.', 'sleeps at sea.'],
    'label': '0',
  }


def _multirc(i: int) -> dict:
  return {
    'paragraph': f'Anna of {_TOWNS[i % 4]} has two goats. One goat is white. The other is brown.',
    'question': 'How many goats has Anna?',
    'answer': ('Two', 'Nine')[i % 2],
    'label': 1 - i % 2,
    'idx': {'paragraph': 0, 'question': i, 'answer': 0},
  }


def _piqa(i: int) -> dict:
  return {
    'goal': f'Keep soup warm in {_TOWNS[i % 4]}',
    'sol1': 'Put a lid on the pot.',
    'sol2': 'Put the pot into the snow.',
    'label': 0,
  }


def _problems(i: int) -> list[dict]:
  return [
    {
      'question': f'The ferry of {_TOWNS[i % 4]} leaves at  _  .',
      'options': ['noon', 'dawn', 'night', 'dusk'],
      'answer': 'B',
    },
    {
      'question': 'Who steers the ferry?',
      'options': ['A widow', 'A judge', 'A monk', 'A smith'],
      'answer': 'A',
    },
  ]


def _article(i: int) -> str:
  return f'At dawn the ferry leaves {_TOWNS[i % 4]}. A widow steers it, as she has for {i} years.'


def _race(i: int) -> dict:
  return {'article': _article(i), 'problems': repr(_problems(i))}


def _race_middle(i: int) -> dict:
  """Returns a question; two of them have one article."""
  return {
    'example_id': f'made-for-tests-{i // 2}',
    'article': _article(i // 2),
    **_problems(i // 2)[i % 2],
  }


def _record(i: int) -> dict:
  town, other = _TOWNS[i % 4], _TOWNS[(i + 1) % 4]
  return {
    'passage': f'{town} sent grain to {other}.\n@highlight\n{other} had a bad harvest',
    'query': 'People of @placeholder had no bread.',
    'entities': [town, other, town],
    'answers': [other],
    'idx': {'passage': i, 'query': 0},
  }


def _storycloze(i: int) -> dict:
  sentences = ['Tom had a kite.', 'He took it out.', 'The wind was strong.', 'He let it go.']
  return {
    **{f'input_sentence_{n}': text for n, text in enumerate(sentences, start=1)},
    'sentence_quiz1': f'It flew to {_TOWNS[i % 4]}.',
    'sentence_quiz2': 'It became a fish.',
    'answer_right_ending': 1,
  }


def _wic(i: int) -> dict:
  first, second = 'He sat on the bank.', f'The bank of {_TOWNS[i % 4]} lends money.'
  return {
    'word': 'bank',
    'sentence1': first,
    'sentence2': second,
    'start1': first.index('bank'),
    'end1': first.index('bank') + 4,
    'start2': 4,
    'end2': 8,
    'label': 0,
  }


def _winogrande(i: int) -> dict:
  return {
    'sentence': f'Near {_TOWNS[i % 4]} Mary lifted Jane because _ was strong.',
    'option1': 'Mary',
    'option2': 'Jane',
    'answer': '1',
  }


def _wsc(i: int) -> dict:
  text = f'The cart of {_TOWNS[i % 4]} did not pass the gate because it was too wide.'
  return {
    'text': text,
    'pronoun': 'it',
    'pronoun_loc': text.index('it was'),
    'options': ['The cart', 'The gate'],
    'label': 0,
    'source': 'made for tests',
  }


def _lambada(i: int) -> dict:
  return {'text': f'Years ago they left {_TOWNS[i % 4]} by ship and came to {_TOWNS[i % 4]}'}


def _trivia(i: int) -> dict:
  answer = _TOWNS[i % 4]
  return {
    'question': f'Which made-up town has the number {i}',
    'answer': {'value': answer, 'aliases': [answer, answer.upper()]},
  }


def _open_question(i: int) -> dict:
  answers = [_TOWNS[i % 4], f'the town of {_TOWNS[i % 4]}']
  question = f'which made-up town has the number {i}'
  return {'url': 'none', 'question': question, 'answer': answers, 'answers': answers}


# The repository and the configuration of each data set; its splits; the maker of a row.
_TRAIN, _ALL = ('train', 'validation'), ('train', 'validation', 'test')
_DATA = {
  ('allenai/ai2_arc', 'ARC-Easy'): (_ALL, _multiple_choice),
  ('allenai/ai2_arc', 'ARC-Challenge'): (_ALL, _multiple_choice),
  ('allenai/openbookqa', 'main'): (_ALL, _multiple_choice),
  ('aps/super_glue', 'boolq'): (_TRAIN, _boolq),
  ('aps/super_glue', 'cb'): (_TRAIN, _pair),
  ('aps/super_glue', 'rte'): (_TRAIN, _pair),
  ('aps/super_glue', 'copa'): (_TRAIN, _copa),
  ('aps/super_glue', 'multirc'): (_TRAIN, _multirc),
  ('aps/super_glue', 'record'): (_TRAIN, _record),
  ('aps/super_glue', 'wic'): (_TRAIN, _wic),
  ('Rowan/hellaswag', 'default'): (_TRAIN, _hellaswag),
  ('baber/piqa', 'default'): (_TRAIN, _piqa),
  ('EleutherAI/race', 'high'): (('test',), _race),
  ('ehovy/race', 'middle'): (_ALL, _race_middle),
  ('LSDSem/story_cloze', '2016'): (('validation', 'test'), _storycloze),
  ('allenai/winogrande', 'winogrande_xl'): (_TRAIN, _winogrande),
  ('lighteval/winograd_wsc', 'wsc273'): (('test',), _wsc),
  ('EleutherAI/lambada_openai', 'default'): (('test',), _lambada),
  ('mandarjoshi/trivia_qa', 'rc.nocontext'): (_TRAIN, _trivia),
  ('google-research-datasets/nq_open', 'default'): (_TRAIN, _open_question),
  ('stanfordnlp/web_questions', 'default'): (('train', 'test'), _open_question),
}


def write(folder: pathlib.Path, rows: int = 4) -> None:
  """Writes all data sets, each below its repository's name, with the README that lists its parts.

  Args:
    folder: Folder of the data sets.
    rows: Rows of each split.
  """
  parts: dict[str, list[str]] = {}
  for (repository, name), (splits, make) in _DATA.items():
    lines = parts.setdefault(repository, [])
    lines += [f'- config_name: {json.dumps(name)}', '  data_files:']
    for number, split in enumerate(splits):
      file = folder / repository / name / f'{split}.jsonl'
      file.parent.mkdir(parents=True, exist_ok=True)
      made = (make(number * rows + i) for i in range(rows))
      file.write_text(''.join(json.dumps(row) + '\n' for row in made))
      lines += [f'  - split: {split}', f'    path: {name}/{split}.jsonl']
  for repository, lines in parts.items():
    text = '\n'.join(['---', 'configs:', *lines, '---', 'Made for tests.', ''])
    (folder / repository / 'README.md').write_text(text)
