"""A page of HTML that needs no other file and no network: tables, and pictures within it."""

import base64
import html
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

# 1,200 or 5.04% or 0.625 ± 0.01.
_NUMBER = re.compile(r'[-+]?[\d.,]+(e[-+]?\d+)?%?( ± [\d.,]+)?')
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto;
  padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; font-size: 13px; margin: 0.8em 0; }
th, td { padding: 3px 10px; text-align: right; vertical-align: top; }
tr { border-bottom: 1px solid #e4e4e4; }
th { background: #f4f5f7; white-space: nowrap; } .text { text-align: left; }
tr.differs td { background: #fff6e0; }
.wide { overflow-x: auto; } img { max-width: 100%; max-height: 560px; } figure { margin: 1em 0; }
figcaption, .note { color: #555; font-size: 13px; }
"""


def page(title: str, parts: Sequence[str]) -> str:
  """Returns the page.

  Args:
    title: Its title.
    parts: Its parts, in HTML.
  """
  head = (
    f'<meta charset="utf-8"><title>{html.escape(title)}</title><link rel="icon" href="data:,">'
    f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
  )
  body = '\n'.join([f'<h1>{html.escape(title)}</h1>', *parts])
  return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def heading(text: str) -> str:
  """Returns the heading of a section."""
  return f'<h2>{html.escape(text)}</h2>'


def note(text: str) -> str:
  """Returns a paragraph in small print."""
  return f'<p class="note">{html.escape(text)}</p>'


def paragraph(text: str) -> str:
  """Returns a paragraph."""
  return f'<p>{html.escape(text)}</p>'


def table(rows: Sequence[Mapping[str, str]], marked: Sequence[int] = ()) -> str:
  """Returns a table. A column of numbers alone stands right, any other left.

  Args:
    rows: The rows, at least one. The keys of the first are the columns.
    marked: Numbers of the rows to mark, from 0.
  """
  columns = list(zip(*(row.values() for row in rows), strict=True))
  kinds = ['' if all(map(_is_number, cells)) else ' class=text' for cells in columns]
  lines = [f'<tr>{_cells("th", rows[0], kinds)}</tr>']
  for number, row in enumerate(rows):
    mark = ' class=differs' if number in marked else ''
    lines.append(f'<tr{mark}>{_cells("td", row.values(), kinds)}</tr>')
  return '<div class="wide"><table>\n' + '\n'.join(lines) + '\n</table></div>'


def _is_number(text: str) -> bool:
  return not text or _NUMBER.fullmatch(text) is not None


def _cells(tag: str, texts: Iterable[str], kinds: Sequence[str]) -> str:
  return ''.join(
    f'<{tag}{kind}>{html.escape(text)}</{tag}>' for text, kind in zip(texts, kinds, strict=True)
  )


def picture(file: pathlib.Path, caption: str) -> str:
  """Returns a picture that is part of the page.

  Args:
    file: A PNG file.
    caption: The line below it, which also is its alternative text.
  """
  data = base64.b64encode(file.read_bytes()).decode()
  text = html.escape(caption)
  return (
    f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
    f'<figcaption>{text}</figcaption></figure>'
  )
