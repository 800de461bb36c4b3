"""The JSON lines that `python -m laser_pax analyse` keeps: docs/analysis.md lists their fields."""

import json
import pathlib
import re
from collections.abc import Iterable
from typing import Any

Line = dict[str, Any]

STANDARD, LASER = 'standard', 'LASER'
# The norms of gradients: of the logits by head, and of the projections of a layer.
NORMS = ('logits', 'query', 'key', 'value')


def file_of(folder: pathlib.Path, step: int, rows: int) -> pathlib.Path:
  """Returns the file of a checkpoint's lines in a folder of analyses."""
  return folder / f'attention_{step:08d}_{rows}-rows.jsonl'


def write(file: pathlib.Path, lines: Iterable[Line]) -> None:
  """Writes the lines whole: a reader never sees a part of them."""
  new = file.with_name(f'{file.name}.new')
  new.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  new.replace(file)


def read(folder: pathlib.Path) -> list[Line]:
  """Returns all lines of a folder of analyses, by step; of one step those of the most rows."""
  pattern = re.compile(r'attention_(\d+)_(\d+)-rows\.jsonl')
  files: dict[int, tuple[int, pathlib.Path]] = {}
  for file in folder.glob('attention_*.jsonl') if folder.is_dir() else ():
    if match := pattern.fullmatch(file.name):
      step, rows = int(match[1]), int(match[2])
      files[step] = max(files.get(step, (0, file)), (rows, file))
  return [line for step in sorted(files) for line in read_file(files[step][1])]


def read_file(file: pathlib.Path) -> list[Line]:
  """Returns the lines of one checkpoint."""
  return [json.loads(line) for line in file.read_text().splitlines()]
