"""The rows of SuperGLUE's tasks: the fields of a line, and the records of TFDS that they become.

| task | fields of a line, beside `idx` | label |
|---|---|---|
| BoolQ | question, passage | false, true |
| CB | premise, hypothesis | entailment, contradiction, neutral |
| COPA | premise, choice1, choice2, question (cause or effect) | 0, 1 |
| MultiRC | passage: text, questions: question, idx, answers: text, idx | of an answer: 0, 1 |
| ReCoRD | passage: text, entities: start, end; qas: query, idx | answers: text |
| RTE | premise, hypothesis | entailment, not_entailment |
| WiC | word, sentence1, sentence2, start1, start2, end1, end2 | false, true |
| WSC | text, target: span1_text, span1_index, span2_text, span2_index | false, true |

Texts are strings, and positions and `idx` are integers. A record has the same fields, with three
exceptions. MultiRC and ReCoRD have one record for each answer and each query. ReCoRD's entities and
answers are sorted texts without repetition. WSC's spans are written as the text has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# What a record has in place of a label that nobody knows.
UNKNOWN = -1

_TEXTS = {
  'boolq': ('question', 'passage'),
  'cb': ('premise', 'hypothesis'),
  'copa': ('premise', 'choice1', 'choice2', 'question'),
  'multirc': ('paragraph', 'question', 'answer'),
  'record': ('passage', 'query'),
  'rte': ('premise', 'hypothesis'),
  'wic': ('word', 'sentence1', 'sentence2'),
  'wsc': ('text', 'span1_text', 'span2_text'),
}
_INTEGERS = {
  'wic': ('start1', 'start2', 'end1', 'end2'),
  'wsc': ('span1_index', 'span2_index'),
}
# The classes of each task, by what a line has for them.
_BOOLEANS = {False: 'False', True: 'True'}
_LABELS = {
  'boolq': _BOOLEANS,
  'cb': {x: x for x in ('entailment', 'contradiction', 'neutral')},
  'copa': {0: 'choice1', 1: 'choice2'},
  'multirc': {0: 'False', 1: 'True'},
  'rte': {x: x for x in ('entailment', 'not_entailment')},
  'wic': _BOOLEANS,
  'wsc': _BOOLEANS,
}
# The parts of `idx`, where it has some.
_PLACES = {'multirc': ('paragraph', 'question', 'answer'), 'record': ('passage', 'query')}

Example = dict[str, Any]


def features(task: str) -> Any:
  """Returns TFDS's description of a record.

  Args:
    task: Name of the task, such as 'boolq'.
  """
  import numpy as np
  import tensorflow_datasets as tfds

  fields: dict[str, Any] = {name: tfds.features.Text() for name in _TEXTS[task]}
  fields |= dict.fromkeys(_INTEGERS.get(task, ()), np.int32)
  places = _PLACES.get(task)
  fields['idx'] = (
    tfds.features.FeaturesDict(dict.fromkeys(places, np.int32)) if places else np.int32
  )
  if task == 'record':
    for name in ('entities', 'answers'):
      fields[name] = tfds.features.Sequence(tfds.features.Text())
  else:
    fields['label'] = tfds.features.ClassLabel(names=list(_LABELS[task].values()))
  return tfds.features.FeaturesDict(fields)


def examples(task: str, row: Any, *, needs_label: bool) -> Iterator[tuple[str, Example]]:
  """Yields the records of a line, each after its name.

  Args:
    task: Name of the task, such as 'boolq'.
    row: What the line holds.
    needs_label: Whether each must have a label; in the split `test` they have none.

  Raises:
    ValueError: The line is broken; the message says how.
  """
  read = {'multirc': _multirc, 'record': _record}.get(task)
  if read is not None:
    yield from read(row, needs_label)
    return
  inner = _get(row, 'target', dict) if task == 'wsc' else {}
  fields = {**row, **inner} if isinstance(row, Mapping) else row
  example: Example = {name: _get(fields, name, str) for name in _TEXTS[task]}
  example |= {name: _get(fields, name, int) for name in _INTEGERS.get(task, ())}
  if task == 'wsc':
    _mend_spans(example)
  example['idx'] = _get(row, 'idx', int)
  example['label'] = _label(task, row, needs_label)
  yield str(example['idx']), example


def _multirc(row: Any, needs_label: bool) -> Iterator[tuple[str, Example]]:
  passage, place = _get(row, 'passage', dict), _get(row, 'idx', int)
  for question in _get(passage, 'questions', list):
    for answer in _get(question, 'answers', list):
      own = _get(question, 'idx', int), _get(answer, 'idx', int)
      yield (
        f'{place}_{own[0]}_{own[1]}',
        {
          'paragraph': _get(passage, 'text', str),
          'question': _get(question, 'question', str),
          'answer': _get(answer, 'text', str),
          'idx': {'paragraph': place, 'question': own[0], 'answer': own[1]},
          'label': _label('multirc', answer, needs_label),
        },
      )


def _record(row: Any, needs_label: bool) -> Iterator[tuple[str, Example]]:
  passage, place = _get(row, 'passage', dict), _get(row, 'idx', int)
  text = _get(passage, 'text', str)
  spans = [(_get(x, 'start', int), _get(x, 'end', int)) for x in _get(passage, 'entities', list)]
  for query in _get(row, 'qas', list):
    answers = _get(query, 'answers', list) if needs_label or 'answers' in query else []
    if needs_label and not answers:
      raise ValueError('answers has nothing in it')
    own = _get(query, 'idx', int)
    yield (
      str(own),
      {
        'passage': text,
        'query': _get(query, 'query', str),
        'entities': sorted({text[start : end + 1] for start, end in spans}),
        'answers': sorted({_get(answer, 'text', str) for answer in answers}),
        'idx': {'passage': place, 'query': own},
      },
    )


def _get(fields: Any, name: str, kind: type) -> Any:
  """Returns a field, after checking its type."""
  if not isinstance(fields, Mapping):
    raise ValueError(f'expected an object with the field {name}, got {str(fields)[:80]!r}')
  if name not in fields:
    raise ValueError(f'the field {name} is missing')
  value = fields[name]
  if not isinstance(value, kind) or isinstance(value, bool):
    kinds = {str: 'text', int: 'an integer', dict: 'an object', list: 'a list'}
    raise ValueError(f'{name}: expected {kinds[kind]}, got {str(value)[:80]!r}')
  return value


def _label(task: str, fields: Mapping[str, Any], needs_label: bool) -> str | int:
  label = fields.get('label')
  if label is None and not needs_label:
    return UNKNOWN
  if 'label' not in fields:
    raise ValueError('the field label is missing')
  classes = _LABELS[task]
  # 0 and 1 stand for false and true too: they are equal in Python.
  if not isinstance(label, (bool, int, str)) or label not in classes:
    raise ValueError(f'label: expected one of {", ".join(map(str, classes))}, got {label!r}')
  return classes[label]


def _mend_spans(example: Example) -> None:
  """Writes WSC's two spans as the text has them. Some differ in case, points and line ends.

  TFDS does so in its `wsc.fixed`. Two of SuperGLUE's spans have other words between theirs.
  """
  kept = ('Kamenev and Zinoviev', 'Kamenev, Zinoviev, and Stalin')
  words = example['text'].split()
  for name in ('span1', 'span2'):
    span, place = example[f'{name}_text'], example[f'{name}_index']
    if not span:
      raise ValueError(f'{name}_text has nothing in it')
    if span in example['text'] or span in kept:
      continue
    if not 0 <= place < len(words):
      raise ValueError(f'{name}_index: the text has no word {place}')
    if 'theyscold' in span:
      example['span2_index'] = 10
    first = span[0].lower() if words[place][0].islower() else span[0].upper()
    mended = (first + span[1:]).rstrip('.').replace('\n', ' ')
    if mended not in example['text']:
      raise ValueError(f'{name}_text: {span!r} is not in the text')
    example[f'{name}_text'] = mended
