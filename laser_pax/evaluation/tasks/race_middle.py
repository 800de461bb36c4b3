"""RACE-m: an article, its earlier questions with their answers, and its last question."""

import re
from typing import Any

import datasets

# A question that ends in a blank is a sentence to complete.
_BLANK = re.compile(r'\s+_\s*\.$')


def by_article(rows: datasets.Dataset) -> datasets.Dataset:
  """Returns one document for each article, from rows of one question each.

  Args:
    rows: Rows with `article`, `question`, `options` (4 texts) and `answer` (A to D).
  """
  articles: dict[str, list[dict[str, Any]]] = {}
  for row in rows:
    articles.setdefault(row['article'], []).append(
      {'question': row['question'], 'options': row['options'], 'answer': row['answer']}
    )
  return datasets.Dataset.from_list(
    [{'article': article, 'problems': problems} for article, problems in articles.items()]
  )


def prompt(doc: dict[str, Any]) -> str:
  """Returns the article, the solved questions, and the last question."""
  *solved, last = doc['problems']
  lines = [f'Article: {doc["article"]}\n']
  for problem in solved:
    question, right = problem['question'], problem['options'][_place(problem)]
    if blank := _BLANK.search(question):
      lines.append(f'{question[: blank.start()]} {right}')
    else:
      lines += [f'Question: {question}', f'Answer: {right}']
  return '\n'.join([*lines, last['question']])


def options(doc: dict[str, Any]) -> list[str]:
  """Returns the options of the last question."""
  return list(doc['problems'][-1]['options'])


def answer(doc: dict[str, Any]) -> int:
  """Returns the place of the right option of the last question."""
  return _place(doc['problems'][-1])


def _place(problem: dict[str, Any]) -> int:
  return 'ABCD'.index(problem['answer'])
