"""Writes the docs' generated tables, between `<!-- NAME -->` and `<!-- end of NAME -->`."""

import pathlib
import re
from collections.abc import Iterable

DOCS = pathlib.Path(__file__).parents[1] / 'docs'
RESULTS = DOCS / 'results'


def replace(name: str, text: str, page: pathlib.Path) -> None:
  """Replaces the generated text of that name on a page."""
  before, begin, end = page.read_text(), f'<!-- {name} -->', f'<!-- end of {name} -->'
  pattern = re.compile(f'{begin}.*?{end}', re.DOTALL)
  page.write_text(pattern.sub(lambda _: f'{begin}\n\n{text}\n\n{end}', before))


def rows(header: Iterable[str], body: Iterable[Iterable[str]]) -> str:
  """Returns a table in Markdown."""
  header = list(header)
  lines = [header, ['---'] * len(header), *body]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
