"""Documents are read from source files, and unfit files are named."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laser_pax.data.prepare import documents
from laser_pax.errors import UserError


def write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  data = content if isinstance(content, bytes) else content.encode()
  path.write_bytes(gzip.compress(data) if path.suffix.lower() == '.gz' else data)
  return path


LINES = '{"text": "one", "timestamp": "2019", "url": "u"}\n\n{"text": "zwei \\u00e4"}\n'


@pytest.mark.parametrize('name', ['a.json', 'a.jsonl', 'a.json.gz', 'a.JSONL.GZ'])
def test_json_lines(tmp_path, name):
  path = write(tmp_path / name, LINES)
  assert list(documents.read_documents(path)) == [('one', '2019', 'u'), ('zwei ä', '', '')]


@pytest.mark.parametrize(
  ('line', 'expected'),
  [
    (
      '{"text": "half \\ud83d of a pair", "url": "\\udc00"}',
      ('half \ufffd of a pair', '', '\ufffd'),
    ),
    ('{"text": "a \\ud83d\\ude00 pair"}', ('a \U0001f600 pair', '', '')),
    ('{"text": "x", "timestamp": null, "url": null}', ('x', '', '')),
    ('{"text": "x", "timestamp": 2019, "url": ["u"]}', ('x', '2019', "['u']")),
    ('\ufeff{"text": "after a byte-order mark"}', ('after a byte-order mark', '', '')),
    ('{"text": "a\\u0000b", "text": "the last of two"}', ('the last of two', '', '')),
  ],
)
def test_odd_lines_that_are_json(tmp_path, line, expected):
  (document,) = documents.read_documents(write(tmp_path / 'a.json', line + '\n'))
  assert document == expected
  ''.join(document).encode()


@pytest.mark.parametrize('name', ['a.txt', 'a.TXT', 'a.txt.gz'])
@pytest.mark.parametrize('mark', ['', '\ufeff'])
def test_a_text_file_is_one_document(tmp_path, name, mark):
  path = write(tmp_path / name, f'{mark}first line\n\nlast line\n')
  assert [d.text for d in documents.read_documents(path)] == ['first line\n\nlast line']


@given(st.lists(st.text(st.characters(exclude_categories=('Cs',), exclude_characters='\r'))))
def test_a_long_text_is_cut_without_loss(tmp_path_factory, lines):
  content = 'x' + '\n'.join(lines)
  path = write(tmp_path_factory.mktemp('cut') / 'a.txt', content)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(documents, 'TEXT_DOCUMENT_CHARS', 7)
    pieces = [d.text for d in documents.read_documents(path)]
  assert ''.join(pieces).rstrip('\n') == content.rstrip('\n')
  assert max(map(len, pieces)) <= 7


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('a.json.gz', None, 'truncated or corrupt gzip.*fetch it again'),
    ('a.json', '{"text": "one"}\n{"tex', 'line 2: not JSON'),
    ('a.json', '{"text": "one"}\n{"body": "x"}\n', 'line 2: no string field "text"'),
    ('a.json', '{"text": 3}\n', 'line 1: no string field "text"'),
    ('a.json', '["text"]\n', 'line 1: no string field "text"'),
    ('a.json', '{"text": "one"}\n{"text": ' + '9' * 5000 + '}', 'line 2: not JSON'),
    ('a.json', '[' * 100_000, 'line 1: not JSON'),
    ('a.json', 'null\n', 'line 1: no string field "text"'),
    ('a.txt', b'caf\xe9', 'line 1: not UTF-8'),
    ('a.json', b'{"text": "one"}\n{"text": "caf\xe9"}\n', 'line 2: not UTF-8'),
    ('a.txt', 'text'.encode('utf-16'), 'not UTF-8'),
    ('A.TXT.GZ', None, 'truncated or corrupt gzip.*fetch it again'),
  ],
)
def test_an_unfit_file_is_named(tmp_path, name, content, message):
  path = write(tmp_path / name, content or json.dumps({'text': 'x' * 999}))
  if content is None:
    path.write_bytes(path.read_bytes()[:-12])
  with pytest.raises(UserError, match=message) as error:
    list(documents.read_documents(path))
  assert str(path) in str(error.value)


def test_a_gzip_file_that_is_damaged_beyond_a_bad_line_is_told_as_such(tmp_path):
  """The line's end is looked for, and there the checksum of the whole is wrong."""
  path = write(tmp_path / 'a.json.gz', b'{"text": "one"}\n{"text": "caf\xe9"}')
  data = bytearray(path.read_bytes())
  data[-6] ^= 1
  path.write_bytes(data)
  with pytest.raises(UserError, match=f'{path}: truncated or corrupt gzip file .CRC check failed'):
    list(documents.read_documents(path))


@pytest.mark.parametrize('name', ['a.txt', 'b.jsonl', 'c.json.gz'])
def test_a_document_of_50_mb_is_read_whole(tmp_path, name):
  """Text is cut into documents of at most TEXT_DOCUMENT_CHARS; a line of JSON is one document."""
  text = 'the state of our union ' * (50 * 10**6 // 23)
  path = write(tmp_path / name, json.dumps({'text': text}) if 'json' in name else text)
  texts = [document.text for document in documents.read_documents(path)]
  assert ''.join(texts) == text
  longest = documents.TEXT_DOCUMENT_CHARS
  assert len(texts) == (1 if 'json' in name else -(-len(text) // longest))
