"""An independent reader of sources and of TFRecord files: the stated rules in plain Python."""

import gzip
import json
import pathlib
import re
import struct
import zlib
from typing import NamedTuple


class RefusedError(Exception):
  """The rules refuse a file."""


class Content(NamedTuple):
  """What a source holds.

  Attributes:
    texts: Its texts, in order.
    blank: Number of its documents of white space alone, which are left out.
  """

  texts: list[str]
  blank: int


def read(name: str, data: bytes | None) -> Content:
  """Returns what a source holds.

  Raises:
    RefusedError: It is missing, empty, cut, no UTF-8, no lines of JSON, or has no text.
  """
  if not data:
    raise RefusedError('missing or empty')
  try:
    text = (gzip.decompress(data) if name.endswith('.gz') else data).decode()
    text = re.sub('\r\n?', '\n', text.removeprefix('\ufeff'))
    documents = _json_lines(text) if '.json' in name else [text.rstrip('\n')]
  except (EOFError, OSError, zlib.error, ValueError, RecursionError) as e:
    raise RefusedError(str(e)) from e
  texts = [document for document in documents if document.strip()]
  if not texts:
    raise RefusedError('no document with text')
  return Content(texts, len(documents) - len(texts))


def _json_lines(text: str) -> list[str]:
  texts = []
  for line in text.split('\n'):
    if line.strip():
      fields = json.loads(line)
      if not isinstance(fields, dict) or not isinstance(fields.get('text'), str):
        raise ValueError('no text')
      texts.append(fields['text'].encode('utf-16', 'surrogatepass').decode('utf-16', 'replace'))
  return texts


def expected(sources: dict[str, bytes | None], every: int) -> tuple[dict[str, list[str]], int]:
  """Returns the texts of each split, and how many documents are blank.

  Args:
    sources: The files, by name.
    every: Without a file to validate on, each so many-th text is for that, from the second on.

  Raises:
    RefusedError: A file is refused, or a split would be empty.
  """
  named = {data for name, data in sources.items() if 'validation' in name}
  splits: dict[str, list[str]] = {'train': [], 'validation': []}
  blank = number = 0
  for name in sorted(sources, key=str.encode):
    is_validation = 'validation' in name
    if named and not is_validation and sources[name] in named and sources[name]:
      continue  # A copy of what is evaluated on.
    content = read(name, sources[name])
    blank += content.blank
    for text in content.texts:
      chosen = is_validation if named else number % every == 1
      splits['validation' if chosen else 'train'].append(text)
      number += 1
  if not all(splits.values()):
    raise RefusedError('a split is empty')
  return splits, blank


def _crc_table() -> list[int]:
  table = []
  for byte in range(256):
    for _ in range(8):
      byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    table.append(byte)
  return table


_TABLE = _crc_table()


def _checksum(data: bytes) -> int:
  crc = 0xFFFFFFFF
  for byte in data:
    crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
  crc ^= 0xFFFFFFFF
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(path: pathlib.Path, rest: int = 0) -> list[bytes]:
  """Returns the records of a TFRecord file, whose checksums must hold.

  Args:
    path: The file.
    rest: So many bytes may be left at the end.
  """
  data, place, found = path.read_bytes(), 0, []
  while place < len(data) - rest:
    length, crc = struct.unpack_from('<QI', data, place)
    record = data[place + 12 : place + 12 + length]
    (own,) = struct.unpack_from('<I', data, place + 12 + length)
    assert (crc, own) == (_checksum(data[place : place + 8]), _checksum(record))
    found.append(record)
    place += 16 + length
  return found
