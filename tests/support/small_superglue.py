"""Small rows of all of SuperGLUE's tasks, in the form of its downloads: written for these tests."""

import functools
import json
import pathlib
import tempfile

from laser_pax.data.prepare import superglue

FOLDERS = {
  'boolq': 'BoolQ',
  'cb': 'CB',
  'copa': 'COPA',
  'multirc': 'MultiRC',
  'record': 'ReCoRD',
  'rte': 'RTE',
  'wic': 'WiC',
  'wsc': 'WSC',
}
FILES = {'train': 'train.jsonl', 'validation': 'val.jsonl', 'test': 'test.jsonl'}
_PEOPLE = ('Ada', 'Ben', 'Cid', 'Dora', 'Emil')


def _multirc(n):
  answers = [{'text': f'at {n + i}', 'idx': i, 'label': int(i == n % 2)} for i in range(2)]
  questions = [
    {'question': f'When <b>did</b> {_PEOPLE[(n + i) % 5]} go?', 'idx': 10 * n + i,
     'answers': answers}
    for i in range(1 + n % 2)
  ]  # fmt: skip
  return {'idx': n, 'passage': {'text': f'They went<br>at {n}.', 'questions': questions}}


def _record(n):
  first, second = _PEOPLE[n % 5], _PEOPLE[(n + 1) % 5]
  text = f'{first} met {second}.\n@highlight\n{first} left'
  entities = [
    {'start': text.rindex(x), 'end': text.rindex(x) + len(x) - 1} for x in (first, second)
  ]
  answers = [{'start': 0, 'end': 2, 'text': x} for x in (first, first, second)[: 2 + n % 2]]
  query = {'query': '@placeholder left early.', 'idx': 100 + n, 'answers': answers}
  return {'idx': n, 'source': 'ours', 'passage': {'text': text, 'entities': entities},
          'qas': [query]}  # fmt: skip


def _wsc(n):
  person = _PEOPLE[n % 5]
  text = f'{person} asked the old man. He had seen {person} before.'
  target = {'span1_index': 2, 'span2_index': 5, 'span2_text': 'He'}
  # As in some of the real rows, the span differs from the text in case and by a point.
  return {'idx': n, 'text': text, 'target': target | {'span1_text': 'The old man.'},
          'label': n % 3 == 0}  # fmt: skip


_CB = ('entailment', 'contradiction', 'neutral')
_ROWS = {
  'boolq': lambda n: {
    'question': f'is {n} even', 'passage': f'Numbers: {n}.', 'idx': n, 'label': n % 2 == 0,
  },
  'cb': lambda n: {'premise': f'P{n}.', 'hypothesis': f'H{n}', 'idx': n, 'label': _CB[n % 3]},
  'copa': lambda n: {
    'premise': f'P{n}.', 'choice1': 'It rained.', 'choice2': 'It snowed.',
    'question': ('cause', 'effect')[n % 2], 'label': n % 2, 'idx': n,
  },
  'multirc': _multirc,
  'record': _record,
  'rte': lambda n: {
    'premise': f'P{n}.', 'hypothesis': f'H{n}.', 'idx': n,
    'label': ('entailment', 'not_entailment')[n % 2],
  },
  'wic': lambda n: {
    'word': 'bank', 'sentence1': f'A bank of {n}.', 'sentence2': 'The bank paid.', 'idx': n,
    'label': n % 2 == 1, 'start1': 2, 'start2': 4, 'end1': 6, 'end2': 8, 'version': 1.1,
  },
  'wsc': _wsc,
}  # fmt: skip


def rows(task, split):
  """Returns the rows of a split: 7, 5 and 3. Those of the test have no labels."""
  begin, count = {'train': (0, 7), 'validation': (7, 5), 'test': (12, 3)}[split]
  own = [_ROWS[task](n) for n in range(begin, begin + count)]
  return [_unlabelled(row) for row in own] if split == 'test' else own


def _unlabelled(value):
  if isinstance(value, dict):
    return {k: _unlabelled(v) for k, v in value.items() if k not in ('label', 'answers')} | (
      {'answers': _unlabelled(value['answers'])} if 'label' in str(value.get('answers')) else {}
    )
  return [_unlabelled(x) for x in value] if isinstance(value, list) else value


def write(folder, tasks=tuple(FOLDERS)):
  """Writes the rows as SuperGLUE's downloads have them, and returns the folder."""
  for task in tasks:
    own = pathlib.Path(folder) / FOLDERS[task]
    own.mkdir(parents=True)
    for split, file in FILES.items():
      lines = [json.dumps(row) for row in rows(task, split)]
      (own / file).write_text('\n'.join(lines) + '\n')
  return pathlib.Path(folder)


@functools.cache
def prepared():
  """Returns a data folder of all tasks."""
  data_dir = pathlib.Path(tempfile.mkdtemp(prefix='small_superglue'))
  superglue.prepare([write(data_dir / 'source')], data_dir)
  return str(data_dir)
