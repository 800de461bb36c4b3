"""Articles from a dump of MediaWiki: the XML as a stream, and its markup as plain text.

A dump's file is named as Wikimedia's are: `enwiki-20200101-pages-articles.xml.bz2`, or one of its
pieces, `enwiki-20200101-pages-articles1.xml-p1p41242.bz2`. Pages outside namespace 0, and pages
that redirect, are no articles.
"""

from __future__ import annotations

import bz2
import contextlib
import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

from laser_pax import folders
from laser_pax.data.prepare.documents import Document
from laser_pax.errors import UserError

_DUMP = re.compile(r'.*pages-articles.*\.xml(-p\d+p\d+)?(\.bz2)?', re.IGNORECASE)
# Namespaces whose links show no text: files and categories. A dump has their names in its language.
_FILE, _CATEGORY = '6', '14'
_NAMES_WITHOUT_TEXT = frozenset({'file', 'image', 'category'})

_COMMENT = re.compile(r'<!--.*?(?:-->|\Z)', re.DOTALL)
# What stands between these tags is no prose.
_BLOCKS = 'ref|math|chem|gallery|timeline|score|syntaxhighlight|source|imagemap|hiero|graph'
_BLOCK_TAG = re.compile(rf'<(/?)({_BLOCKS})\b[^<>]*?(/?)>', re.IGNORECASE)
# Where templates and tables begin and end. A table's marks begin their lines.
_BRACKETS = re.compile(r'\{\{|\}\}|^[ :]*\{\||^\s*\|\}(?!\})', re.MULTILINE)
_EXTERNAL_LINK = re.compile(r'(?<!\[)\[(?:https?:|ftp:)?//[^\s\[\]]+ *([^\[\]]*)\]')
_LINK = re.compile(r'\[\[((?:[^\[\]]|\[(?!\[)|\](?!\]))*)\]\]')  # No link is in it.
_LANGUAGE = re.compile(r'[a-z]{2,3}(-[a-z]+)*:')
_BREAK = re.compile(r'<(br|p|div|li|tr)\b[^<>]*>', re.IGNORECASE)
_TAG = re.compile(r'</?[a-zA-Z][^<>]*>')
_HEADING = re.compile(r'^=+.*?=+\s*$', re.MULTILINE)
_LIST_MARK = re.compile(r'^[*#:;]+\s*', re.MULTILINE)
_REST = re.compile(r"'{2,5}|__[A-Z]+__|\{\{|\}\}|\[\[|\]\]")
_EMPTY_PARENTHESES = re.compile(r' ?\(\s*(?:[,;:]\s*)*\)')
_TABLE_LINE = re.compile(r'^\s*(\||!|\{\|).*$', re.MULTILINE)


def is_dump(path: Path) -> bool:
  """Whether a file's name is that of a dump of articles, plain or compressed by bzip2."""
  return _DUMP.fullmatch(path.name) is not None


def read_articles(path: Path, open_file: Callable[[Path], BinaryIO]) -> Iterator[Document]:
  """Yields the articles of a dump as plain text, in order. Memory is that of one page.

  Args:
    path: File of the dump.
    open_file: Function that opens the file's bytes.

  Raises:
    UserError: The file cannot be read, is truncated or corrupt. The message names the file.
  """
  name, count = folders.shown(path), 0
  try:
    with contextlib.ExitStack() as stack:
      data = stack.enter_context(open_file(path))
      if path.name.lower().endswith('.bz2'):
        data = stack.enter_context(bz2.open(data))
      for document in _read_pages(data):
        count += 1
        yield document
  except (EOFError, ElementTree.ParseError, UnicodeDecodeError) as e:
    raise _corrupt(name, e, count) from e
  except OSError as e:
    if e.errno is None:  # bzip2's own.
      raise _corrupt(name, e, count) from e
    raise UserError(f'{name}: cannot be read ({e.strerror}); check the file and permissions') from e


def _corrupt(name: str, error: Exception, count: int) -> UserError:
  return UserError(
    f'{name}: truncated or corrupt dump ({error}), after {count} documents; fetch it again'
  )


def _read_pages(data: BinaryIO) -> Iterator[Document]:
  names = set(_NAMES_WITHOUT_TEXT)
  root = None
  for event, element in ElementTree.iterparse(data, events=('start', 'end')):
    if root is None:
      root = element
    tag = element.tag.rpartition('}')[2]
    if event == 'start':
      continue
    if tag == 'namespace' and element.get('key') in (_FILE, _CATEGORY):
      names.add((element.text or '').lower())
    elif tag == 'page':
      if (document := _read_page(element, names)) is not None:
        yield document
      root.clear()  # Otherwise the tree of all pages stays.


def _read_page(page: ElementTree.Element, names: set[str]) -> Document | None:
  """Returns a page's text, or None if it is no article."""
  fields = {child.tag.rpartition('}')[2]: child for child in page.iter()}
  if 'redirect' in fields or _text(fields, 'ns') not in ('', '0'):
    return None
  text = plain_text(_text(fields, 'text'), frozenset(names))
  return Document(text, _text(fields, 'timestamp'), _text(fields, 'title'))


def _text(fields: dict[str, ElementTree.Element], name: str) -> str:
  return (fields[name].text or '') if name in fields else ''


def plain_text(markup: str, names_without_text: frozenset[str] = _NAMES_WITHOUT_TEXT) -> str:
  """Returns the prose of a page's markup: a paragraph or an entry of a list is a line.

  Templates, tables, references, formulas, comments, headings, files and categories are left out. A
  link becomes its label.

  Args:
    markup: MediaWiki's markup.
    names_without_text: Names, in lower case, of the namespaces of files and categories.
  """
  text = _without_brackets(_without_blocks(_COMMENT.sub('', markup)))
  text = _EXTERNAL_LINK.sub(r'\1', text)

  def label(match: re.Match[str]) -> str:
    return _label(match[1], names_without_text)

  while (shorter := _LINK.sub(label, text)) != text:  # The captions of files have links in them.
    text = shorter
  text = _EXTERNAL_LINK.sub(r'\1', text)
  text = _TABLE_LINE.sub('', _HEADING.sub('', text))
  text = _REST.sub('', _LIST_MARK.sub('', text))
  text = html.unescape(_TAG.sub('', _BREAK.sub('\n', text)))
  text = _EMPTY_PARENTHESES.sub('', text)
  lines = (' '.join(line.split()) for line in text.splitlines())
  return '\n'.join(line for line in lines if line)


def _without_blocks(text: str) -> str:
  """Removes what stands between tags that hold no prose, such as `<ref>`, in one pass."""
  spans: list[tuple[int, int]] = []
  name, start = '', 0  # Of the tag that is open.
  for match in _BLOCK_TAG.finditer(text):
    is_end, is_empty, tag = bool(match[1]), bool(match[3]), match[2].lower()
    if name:
      if is_end and tag == name:
        spans.append((start, match.end()))
        name = ''
    elif is_empty:
      spans.append(match.span())
    elif not is_end:
      name, start = tag, match.start()
  return _cut(text, spans)


def _cut(text: str, spans: list[tuple[int, int]]) -> str:
  """Returns the text without spans, of which some lie in others."""
  kept, end = [], 0
  for first, last in sorted(spans):
    if first >= end:
      kept.append(text[end:first])
    end = max(end, last)
  return ''.join([*kept, text[end:]])


def _without_brackets(text: str) -> str:
  """Removes templates and tables, one within another. What is opened and never closed stays."""
  opened: list[tuple[str, int]] = []
  spans: list[tuple[int, int]] = []
  for match in _BRACKETS.finditer(text):
    mark = match[0].strip(' :\n')
    if mark in ('{{', '{|'):
      opened.append((mark, match.start()))
      continue
    opening = '{{' if mark == '}}' else '{|'
    place = next((i for i in reversed(range(len(opened))) if opened[i][0] == opening), None)
    if place is not None:
      spans.append((opened[place][1], match.end()))
      del opened[place:]
  return _cut(text, spans)


def _label(link: str, names_without_text: frozenset[str]) -> str:
  """Returns what a link shows. Links to other languages, files and categories show nothing."""
  target, *labels = link.split('|')
  name = target.partition(':')[0].strip().lower()
  if ':' in target and (name in names_without_text or _LANGUAGE.match(target) and not labels):
    return ''
  return (labels[-1] if labels and labels[-1].strip() else target).strip(' :')
