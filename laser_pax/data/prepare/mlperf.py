"""MLPerf's release of Wikipedia as text: part-00000-of-00500 and so on, and eval.txt.

A line is a sentence, and a blank line ends an article. The release also has vocab.txt and
bert_config.json, which are no articles.
"""

from __future__ import annotations

import re
from pathlib import Path

from laser_pax import folders
from laser_pax.data.prepare import documents, files
from laser_pax.errors import UserError

EVAL_TEXT = 'eval.txt'
# The whole release.
PARTS, EVAL_ARTICLES, EVAL_BYTES = 500, 10_000, 32_851_144

NO_PART = f"neither a part of MLPerf's release nor {EVAL_TEXT}"

_PART = re.compile(r'part-(\d+)-of-(\d+)')
_SHOWN = 5  # So many names of missing files are told.


def is_part(path: Path) -> bool:
  """Whether a file's name is that of a part."""
  return _PART.fullmatch(path.name) is not None


def is_text(path: Path) -> bool:
  """Whether a file's name is that of a part, or of the articles to evaluate on."""
  return is_part(path) or path.name == EVAL_TEXT


def without_rest(sources: files.Sources) -> files.Sources:
  """Leaves out what is not the release's text, where one of its parts is among the sources.

  Args:
    sources: What was found.
  """
  if not any(map(is_part, sources.taken)):
    return sources
  return files.without(sources, {path for path in sources.taken if not is_text(path)}, NO_PART)


def check_complete(sources: files.Sources) -> None:
  """Checks that the release is complete, where one of its parts is among the sources.

  Args:
    sources: What `without_rest` returned.

  Raises:
    UserError: A part or eval.txt is missing, or there twice. Or eval.txt is not all of it.
  """
  parts = [path for path in sources.taken if is_part(path)]
  if not parts:
    return
  counts = {int(_PART.fullmatch(path.name)[2]) for path in parts}
  if len(counts) > 1:
    raise UserError(
      f'these are parts of several releases, of {" and of ".join(map(str, sorted(counts)))} parts: '
      'name the files of one'
    )
  (count,) = counts
  found: dict[str, Path] = {}
  for path in sources.taken:
    match = _PART.fullmatch(path.name)
    name = _part_name(int(match[1]), count) if match else EVAL_TEXT
    if (first := found.setdefault(name, path)) is not path:
      raise UserError(f'{folders.shown(first)} and {folders.shown(path)}: name one of them')
  expected = [*(_part_name(number, count) for number in range(count)), EVAL_TEXT]
  if missing := [name for name in expected if name not in found]:
    more = f' and {len(missing) - _SHOWN:,} more' if len(missing) > _SHOWN else ''
    raise UserError(
      f"expected MLPerf's {count:,} parts and {EVAL_TEXT}; missing: {', '.join(missing[:_SHOWN])}"
      f'{more}: fetch them'
    )
  if count == PARTS:
    _check_eval_text(found[EVAL_TEXT])


def _part_name(number: int, count: int) -> str:
  return f'part-{number:05d}-of-{count:05d}'


def _check_eval_text(path: Path) -> None:
  size = path.stat().st_size
  if size == EVAL_BYTES:
    return
  articles = sum(1 for _ in documents.read_blocks(path))
  if articles != EVAL_ARTICLES:
    raise UserError(
      f"{folders.shown(path)}: expected MLPerf's {EVAL_ARTICLES:,} articles, {EVAL_BYTES:,} bytes; "
      f'got {articles:,} articles, {size:,} bytes: fetch it again'
    )
