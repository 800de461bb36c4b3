"""The tasks of SuperGLUE: their numbers of rows, and T5's numbers of examples to train on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Task:
  """A task.

  Attributes:
    folder: Its folder in SuperGLUE's downloads, such as 'BoolQ'.
    records: Number of TFDS's records of each split.
    examples: Number of T5's examples of the train split. ReCoRD has one for each answer, and WSC
      one for each row whose label is true.
  """

  folder: str
  records: Mapping[str, int]
  examples: int


def _task(folder: str, train: int, validation: int, test: int, examples: int | None = None) -> Task:
  records = {'train': train, 'validation': validation, 'test': test}
  return Task(folder, records, examples or train)


# In the order of T5's table.
TASKS = {
  'boolq': _task('BoolQ', 9_427, 3_270, 3_245),
  'cb': _task('CB', 250, 56, 250),
  'copa': _task('COPA', 400, 100, 500),
  'multirc': _task('MultiRC', 27_243, 4_848, 9_693),
  'record': _task('ReCoRD', 100_730, 10_000, 10_000, examples=138_854),
  'rte': _task('RTE', 2_490, 277, 3_000),
  'wic': _task('WiC', 5_428, 638, 1_400),
  'wsc': _task('WSC', 554, 104, 146, examples=259),
}
