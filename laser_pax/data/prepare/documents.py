"""Documents from source files: JSON lines and plain text, each plain or gzipped, as a stream."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

from laser_pax import folders
from laser_pax.data.prepare import files
from laser_pax.errors import UserError

# A longer text file is cut into documents of at most this many characters. So memory stays
# constant, and a single long book still gives both a train and a validation split.
TEXT_DOCUMENT_CHARS = 2**18


# JSON can write half of a surrogate pair, which is no character and has no bytes in UTF-8.
_HALF_PAIR = re.compile('[\ud800-\udfff]')
# What reading a file that is damaged, or of another encoding, raises.
_UNFIT = (EOFError, zlib.error, OSError, UnicodeDecodeError)
_EXAMPLE = 'expected one object a line, such as {"text": "..."}'


class Document(NamedTuple):
  """One document, with the three fields of allenai's C4 lines. A missing or null field is empty."""

  text: str
  timestamp: str
  url: str

  @property
  def is_blank(self) -> bool:
    """Whether there is nothing to train on: no character but white space."""
    return not self.text.strip()


def open_bytes(path: Path) -> BinaryIO:
  """Opens a file to read its bytes."""
  return path.open('rb')


def read_blocks(
  path: Path, open_file: Callable[[Path], BinaryIO] = open_bytes
) -> Iterator[Document]:
  """Yields the documents of a text file in which a blank line ends a document.

  Args:
    path: A text file.
    open_file: As in `read_documents`.

  Raises:
    UserError: As in `read_documents`.
  """
  return _read(path, open_file, _read_text_blocks)


def read_documents(
  path: Path, open_file: Callable[[Path], BinaryIO] = open_bytes
) -> Iterator[Document]:
  """Yields the documents of one source file, in order.

  A byte-order mark at the start is no text. Where JSON writes half of a surrogate pair, the text
  has U+FFFD.

  Args:
    path: File with one of `files.SUFFIXES`.
    open_file: Function that opens the file's bytes. Callers that count bytes pass their own.

  Raises:
    UserError: The file cannot be read, is truncated or corrupt, or is not UTF-8. Or a line is not
      a JSON object with a string `text`. The message names the file.
  """
  is_json = files.suffix_of(path) in files.JSON_SUFFIXES
  return _read(path, open_file, _read_json_lines if is_json else _read_text)


def _read(
  path: Path,
  open_file: Callable[[Path], BinaryIO],
  read: Callable[[Path, TextIO], Iterator[Document]],
) -> Iterator[Document]:
  count = 0
  try:
    with contextlib.ExitStack() as stack:
      data = stack.enter_context(open_file(path))
      if path.name.lower().endswith('.gz'):
        data = stack.enter_context(gzip.open(data))
      for document in read(path, io.TextIOWrapper(data, encoding='utf-8-sig')):
        count += 1
        yield document
  except _UNFIT as e:
    raise _refusal(path, e, count) from e


def _refusal(path: Path, error: Exception, count: int) -> UserError:
  """Returns the refusal of a file that could not be read after so many documents."""
  name = folders.shown(path)
  if isinstance(error, UnicodeDecodeError):
    try:
      line = _first_bad_line(path)
    except _UNFIT as e:  # The file is read in larger blocks here, and is damaged beyond that line.
      return _refusal(path, e, count)
    return UserError(f'{name}, line {line}: not UTF-8 text ({error.reason}); convert it to UTF-8')
  if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
    return UserError(
      f'{name}: cannot be read ({error.strerror or error}); check the file and its permissions'
    )
  return UserError(
    f'{name}: truncated or corrupt gzip file ({error}), after {count} documents; fetch it again'
  )


def _first_bad_line(path: Path) -> int:
  """Returns the number of the first line that is not UTF-8."""
  open_file = gzip.open if path.name.lower().endswith('.gz') else open
  with open_file(path, 'rb') as lines:
    for number, line in enumerate(lines, 1):
      try:
        line.decode()
      except UnicodeDecodeError:
        return number
  return 1  # The file ends inside of a character.


def _read_json_lines(path: Path, lines: TextIO) -> Iterator[Document]:
  for number, line in enumerate(lines, 1):
    if line.isspace():
      continue
    try:
      fields = json.loads(line)
    except (ValueError, RecursionError) as e:  # Also numbers too long, and brackets too deep.
      raise UserError(
        f'{folders.shown(path)}, line {number}: not JSON ({e}); {_EXAMPLE}; if it is the last '
        'line, the file may be truncated'
      ) from e
    text = fields.get('text') if isinstance(fields, dict) else None
    if not isinstance(text, str):
      raise UserError(
        f'{folders.shown(path)}, line {number}: no string field "text"; {_EXAMPLE}, got '
        f'{line.strip()[:80]}'
      )
    yield Document(*map(_as_text, (text, fields.get('timestamp'), fields.get('url'))))


def _as_text(value: Any) -> str:
  return '' if value is None else _HALF_PAIR.sub('\ufffd', str(value))


def _read_text(path: Path, lines: TextIO) -> Iterator[Document]:
  name = folders.shown(path.name)
  pieces: list[str] = []
  size = 0
  while line := lines.readline(TEXT_DOCUMENT_CHARS):
    if size + len(line) > TEXT_DOCUMENT_CHARS:
      yield Document(''.join(pieces), '', name)
      pieces, size = [], 0
    pieces.append(line)
    size += len(line)
  if text := ''.join(pieces).rstrip('\n'):
    yield Document(text, '', name)


def _read_text_blocks(path: Path, lines: TextIO) -> Iterator[Document]:
  name = folders.shown(path.name)
  block: list[str] = []
  for line in lines:
    if not line.isspace():
      block.append(line)
    elif block:
      yield Document(''.join(block), '', name)
      block = []
  if block:
    yield Document(''.join(block), '', name)
