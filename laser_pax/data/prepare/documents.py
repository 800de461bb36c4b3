"""Documents from source files: JSON lines (plain or gzipped) and plain text, read as a stream."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO

from laser_pax.errors import UserError

JSON_SUFFIXES = ('.json', '.jsonl', '.json.gz', '.jsonl.gz')
SUFFIXES = (*JSON_SUFFIXES, '.txt')

# A longer text file is cut into documents of at most this many characters. So memory stays
# constant, and a single long book still gives both a train and a validation split.
TEXT_DOCUMENT_CHARS = 2**18


class Document(NamedTuple):
  """One document, with the three fields of allenai's C4 lines. A missing field is empty."""

  text: str
  timestamp: str
  url: str


def _open(path: Path) -> BinaryIO:
  return path.open('rb')


def find_sources(paths: Sequence[str | Path]) -> list[Path]:
  """Returns the source files among `paths` and, recursively, in the folders among them.

  Args:
    paths: Files whose names end in one of `SUFFIXES`, and folders that contain such files.

  Returns:
    Absolute paths, sorted and without repetition.

  Raises:
    UserError: A path does not exist, is a file of another kind, or is a folder without sources.
  """
  known = ', '.join(SUFFIXES)
  if not paths:
    raise UserError(f'no source given: name files ({known}) or folders of them')
  sources: set[Path] = set()
  for path in (Path(p).expanduser().absolute() for p in paths):
    if path.is_dir():
      in_folder = [p for p in path.rglob('*') if p.name.endswith(SUFFIXES) and p.is_file()]
      if not in_folder:
        raise UserError(f'{path}: no source file in this folder; expected files named *{{{known}}}')
      sources.update(in_folder)
    elif not path.exists():
      raise UserError(f'{path}: no such file or folder; name an existing one')
    elif not path.name.endswith(SUFFIXES):
      raise UserError(f'{path}: not a source file; expected one of {known}')
    else:
      sources.add(path)
  return sorted(sources)


def read_documents(path: Path, open_file: Callable[[Path], BinaryIO] = _open) -> Iterator[Document]:
  """Yields the documents of one source file, in order.

  Args:
    path: File whose name ends in one of `SUFFIXES`.
    open_file: Function that opens the file's bytes. Callers that count bytes pass their own.

  Raises:
    UserError: The file cannot be read, is truncated or corrupt, or is not UTF-8. Or a line is not
      a JSON object with a string `text`. The message names the file.
  """
  read = _read_json_lines if path.name.endswith(JSON_SUFFIXES) else _read_text
  count = 0
  try:
    with contextlib.ExitStack() as stack:
      data = stack.enter_context(open_file(path))
      if path.suffix == '.gz':
        data = stack.enter_context(gzip.open(data))
      for document in read(path, io.TextIOWrapper(data, encoding='utf-8')):
        count += 1
        yield document
  except (EOFError, zlib.error, gzip.BadGzipFile) as e:
    raise UserError(
      f'{path}: truncated or corrupt gzip file ({e}), after {count} documents; fetch it again'
    ) from e
  except UnicodeDecodeError as e:
    raise UserError(f'{path}: not UTF-8 text ({e}); convert it to UTF-8') from e
  except OSError as e:
    raise UserError(
      f'{path}: cannot be read ({e.strerror or e}); check the file and its permissions'
    ) from e


def _read_json_lines(path: Path, lines: TextIO) -> Iterator[Document]:
  for number, line in enumerate(lines, 1):
    if line.isspace():
      continue
    try:
      fields = json.loads(line)
    except json.JSONDecodeError as e:
      raise UserError(
        f'{path}, line {number}: not JSON ({e}); expected one object a line, '
        'such as {"text": "..."}; if it is the last line, the file may be truncated'
      ) from e
    text = fields.get('text') if isinstance(fields, dict) else None
    if not isinstance(text, str):
      raise UserError(
        f'{path}, line {number}: no string field "text"; expected one object a line, '
        f'such as {{"text": "..."}}, got {line.strip()[:80]}'
      )
    yield Document(text, str(fields.get('timestamp', '')), str(fields.get('url', '')))


def _read_text(path: Path, lines: TextIO) -> Iterator[Document]:
  pieces: list[str] = []
  size = 0
  while line := lines.readline(TEXT_DOCUMENT_CHARS):
    if size + len(line) > TEXT_DOCUMENT_CHARS:
      yield Document(''.join(pieces), '', path.name)
      pieces, size = [], 0
    pieces.append(line)
    size += len(line)
  if text := ''.join(pieces).rstrip('\n'):
    yield Document(text, '', path.name)
