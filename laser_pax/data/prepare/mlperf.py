"""MLPerf's release of Wikipedia as text: part-00000-of-00500 and so on, and eval.txt.

A line is a sentence, and a blank line ends an article. The release also has vocab.txt and
bert_config.json, which are no articles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from laser_pax import folders
from laser_pax.data.prepare import documents, files
from laser_pax.errors import UserError

EVAL_TEXT = 'eval.txt'
# The whole release.
PARTS, EVAL_ARTICLES, EVAL_BYTES = 500, 10_000, 32_851_144

NO_PART = f"neither a part of MLPerf's release nor {EVAL_TEXT}"

_PART = re.compile(r'part-(\d+)-of-(\d+)')
_SHOWN = 5  # So many names are told.


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
  found: dict[str, Path] = {}
  for path in sources.taken:
    if (first := found.setdefault(path.name, path)) is not path:
      raise UserError(f'{folders.shown(first)} and {folders.shown(path)}: name one of them')
  missing = missing_parts(found) + [EVAL_TEXT] * (EVAL_TEXT not in found)
  if missing:
    raise UserError(
      f"expected all parts of MLPerf's release, and {EVAL_TEXT}; missing: {listed(missing)}: "
      'fetch them'
    )
  if len(parts) == PARTS:
    _check_eval_text(found[EVAL_TEXT])


def missing_parts(names: Iterable[str]) -> list[str]:
  """Returns the names of the parts that are not there, by the number of parts in the others' names.

  Args:
    names: Names of files, of which some are parts.

  Raises:
    UserError: They do not agree about the number of parts.
  """
  parts = [tuple(map(int, match.groups())) for match in map(_PART.fullmatch, names) if match]
  counts = sorted({count for _, count in parts})
  if len(counts) > 1:
    raise UserError(
      f'these are parts of several wholes, of {" and of ".join(map(str, counts))} parts: name the '
      'files of one'
    )
  numbers = {number for number, _ in parts}
  return [
    f'part-{i:05d}-of-{count:05d}' for count in counts for i in range(count) if i not in numbers
  ]


def listed(names: Sequence[str]) -> str:
  """Returns names for a message: the first ones, and how many others there are."""
  more = f' and {len(names) - _SHOWN:,} more' if len(names) > _SHOWN else ''
  return ', '.join(names[:_SHOWN]) + more


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
