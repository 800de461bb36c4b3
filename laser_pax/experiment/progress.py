"""The progress.jsonl of a run, which `python -m laser_pax train` writes, read back."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

FILE = 'progress.jsonl'


class Progress(NamedTuple):
  """What a run has recorded. A figure is None where it was no finite number.

  Attributes:
    train: Training loss by step.
    evaluations: Figure of the metric on the whole evaluation split, by step.
    rates: Units (tokens, images) a second, at each step that has a rate.
    seconds: Seconds of training and evaluations, without imports and the first compilation.
    seconds_at: The same at each evaluation, by its step.
    skipped_steps: Steps that PAX skipped, as their gradients were not finite.
  """

  train: dict[int, float | None]
  evaluations: dict[int, float | None]
  rates: list[float]
  seconds: float
  seconds_at: dict[int, float]
  skipped_steps: int


def read(job_log_dir: pathlib.Path, label: str, split: str | None) -> Progress | None:
  """Reads the records of a run, or returns None where there is no file of them.

  A resumed run may have several records of one step. The last of them counts.

  Args:
    job_log_dir: Folder of the run.
    label: Label of the metric in the records.
    split: The evaluation input to read; None if there is one alone.
  """
  file = pathlib.Path(job_log_dir) / FILE
  if not file.exists():
    return None
  train, evaluations, rates = {}, {}, []
  seconds, seconds_at, skipped = 0.0, {}, _Skipped()
  started, last_seconds = None, math.inf  # Of the record before, and of its process.
  for record in records(file):
    # Each process counts seconds from its own start, and writes its first record after the step has
    # compiled. So the time before a process's first record does not count.
    if record.get('started') == started and record['seconds'] >= last_seconds:
      seconds += record['seconds'] - last_seconds
    started, last_seconds = record.get('started'), record['seconds']
    if record['kind'] == 'train':
      train[record['step']] = record['loss']
      skipped.add(record.get('skipped_steps', 0))
      rate = next(v for k, v in record.items() if k.endswith('_per_second'))
      if rate is not None:
        rates.append(rate)
    elif split in (None, record.get('split')):
      evaluations[record['step']] = record[label]
      seconds_at[record['step']] = seconds
  return Progress(train, evaluations, rates, seconds, seconds_at, skipped.total)


def evaluated(job_log_dir: pathlib.Path) -> set[tuple[int, str]] | None:
  """Returns step and split of each recorded evaluation; None where there is no file of records."""
  file = pathlib.Path(job_log_dir) / FILE
  if not file.exists():
    return None
  return {(r['step'], r.get('split')) for r in records(file) if r['kind'] == 'eval'}


def records(file: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Yields the records of a file; none if it is missing."""
  for line in file.read_text().splitlines() if file.exists() else ():
    with contextlib.suppress(ValueError):  # A line that was cut when the run was killed.
      yield json.loads(line)


class _Skipped:
  """The steps that were skipped. Each process counts its own, from 0."""

  def __init__(self):
    self.total = self._last = 0

  def add(self, count: int) -> None:
    """Takes the count of a record."""
    self.total += count - self._last if count >= self._last else count
    self._last = count
