"""Dumps of MediaWiki: articles alone, as prose; a broken dump is refused with its name."""

import bz2
import json
import time
import tracemalloc
from xml.sax import saxutils

import pytest
import tensorflow as tf

from laser_pax.data import sample, text_mlm
from laser_pax.data.prepare import documents, mediawiki, wikipedia
from laser_pax.errors import UserError

NAME = 'xxwiki-20200101-pages-articles.xml'


def page(title, text, namespace=0, redirect=False):
  return (
    f'<page><title>{title}</title><ns>{namespace}</ns>'
    + ('<redirect title="Other" />' if redirect else '')
    + '<revision><timestamp>2020-01-01T00:00:00Z</timestamp>'
    f'<text xml:space="preserve">{saxutils.escape(text)}</text></revision></page>'
  )


def dump(pages):
  return (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/"><siteinfo><namespaces>'
    '<namespace key="0" /><namespace key="6">Fichier</namespace>'
    f'</namespaces></siteinfo>{"".join(pages)}</mediawiki>'
  ).encode()


PAGES = [
  page('One', "'''One''' is a [[number]]. It is the first.\n\n[[Fichier:1.png|thumb|A one]]"),
  page('Uno', '#REDIRECT [[One]]', redirect=True),
  page('Talk:One', 'I disagree.', namespace=1),
  page('Nothing', '{{stub}}'),
  page('Two', 'Two is after one &amp; before three.'),
]


@pytest.mark.parametrize('suffix', ['', '.bz2'])
def test_articles_come_in_order(tmp_path, suffix):
  path = tmp_path / f'{NAME}{suffix}'
  path.write_bytes(bz2.compress(dump(PAGES)) if suffix else dump(PAGES))
  articles = list(mediawiki.read_articles(path, documents.open_bytes))
  assert [(a.url, a.text) for a in articles] == [
    ('One', 'One is a number. It is the first.'),
    ('Nothing', ''),
    ('Two', 'Two is after one & before three.'),
  ]
  assert articles[0].timestamp == '2020-01-01T00:00:00Z'


def test_streams_that_follow_each_other_are_read(tmp_path):
  """Wikimedia's "multistream" files are such."""
  path = tmp_path / f'{NAME}.bz2'
  data = dump(PAGES)
  path.write_bytes(bz2.compress(data[:300]) + bz2.compress(data[300:]))
  assert len(list(mediawiki.read_articles(path, documents.open_bytes))) == 3


@pytest.mark.parametrize(
  ('name', 'is_dump'),
  [
    ('enwiki-latest-pages-articles.xml.bz2', True),
    ('enwiki-20200101-pages-articles1.xml-p1p41242.bz2', True),
    ('enwiki-20200101-pages-articles-multistream.xml.bz2', True),
    ('enwiki-20200101-pages-articles.xml', True),
    ('enwiki-20200101-pages-articles-multistream-index.txt.bz2', False),
    ('enwiki-20200101-pages-meta-history.xml.bz2', False),
    ('pages-articles.xml.7z', False),
  ],
)
def test_a_dump_is_known_by_its_name(tmp_path, name, is_dump):
  assert wikipedia.is_source(tmp_path / name) == is_dump


@pytest.mark.parametrize(
  ('markup', 'text'),
  [
    ('{{Infobox|a={{b|c}}\n|d=|}}\nText {{IPA|x}}here.', 'Text here.'),
    ('{| class="x"\n|-\n| a || b\n{|\n| c\n|}\n|}\nAfter.', 'After.'),
    ('A<ref name="a">see {{cite}}</ref> b<ref name=b /> c.', 'A b c.'),
    ('Seen<!-- not\nseen --> text.', 'Seen text.'),
    (
      '[[Paris]], the [[capital city|capital]] of [[:Category:X]].',
      'Paris, the capital of Category:X.',
    ),
    ('[http://a.b a site] and [http://c.d] and [//e.f g].', 'a site and and g.'),
    ('[[File:x.jpg|thumb|A [[view]] of [http://x.y it]]]\nText.', 'Text.'),
    ('[[File:x.jpg|a [sic] [[view]]]]Text [[One|one [1]]].', 'Text one [1].'),
    ('Text.\n[[Category:Cities]]\n[[fr:Paris]]', 'Text.'),
    ('== History ==\nText.\n=== More ===', 'Text.'),
    ("'''bold''' and ''italic'' and '''''both'''''", 'bold and italic and both'),
    ('* one\n# two\n:three', 'one\ntwo\nthree'),
    ('x<sub>2</sub>&nbsp;&lt; 3<br/>next <math>\\frac{1}{2}</math>.', 'x2 < 3\nnext .'),
    ('Rome ({{lang|la|x}}; ) is old. __NOTOC__', 'Rome is old.'),
    ('Never {{closed, and text.', 'Never closed, and text.'),
    ('Stray }} and |} marks.', 'Stray and |} marks.'),
    ('', ''),
  ],
)
def test_markup_becomes_prose(markup, text):
  assert mediawiki.plain_text(markup) == text


@pytest.mark.parametrize(
  'mark', ['[[', '{{', '<ref>', '[[a|', '(', '{|\n', '[[a [b ', '<!--', "''"]
)
def test_markup_that_never_closes_takes_no_long_time(mark):
  start = time.process_time()
  mediawiki.plain_text(mark * 20_000)
  assert time.process_time() - start < 2


def test_memory_is_that_of_a_page(tmp_path):
  path = tmp_path / NAME
  path.write_bytes(dump([page(str(i), 'A word. ' * 5000) for i in range(300)]))  # 12 MB.
  articles = mediawiki.read_articles(path, documents.open_bytes)
  next(articles)
  tracemalloc.start()
  assert sum(1 for _ in articles) == 299
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 3e6


@pytest.mark.parametrize('suffix', ['', '.bz2'])
@pytest.mark.parametrize(
  'change', [lambda data: data[: len(data) * 2 // 3], lambda data: b'x' * 99]
)
def test_a_broken_dump_is_refused_with_its_name(tmp_path, suffix, change):
  path = tmp_path / f'{NAME}{suffix}'
  path.write_bytes(change(bz2.compress(dump(PAGES)) if suffix else dump(PAGES)))
  with pytest.raises(UserError, match=f'{path}: truncated or corrupt dump .*; fetch it again'):
    wikipedia.prepare([path], tmp_path / 'out', vocab=sample.WORDPIECE)


def test_a_dump_becomes_records(tmp_path):
  folder = tmp_path / 'source'
  folder.mkdir()
  pages = [page(str(i), f'Page {i} is here. It has words. And more.') for i in range(20)]
  (folder / f'{NAME}.bz2').write_bytes(bz2.compress(dump(pages + PAGES)))
  options = {'vocab': sample.WORDPIECE, 'copies': 1, 'validation_fraction': 0.2}
  final = wikipedia.prepare([folder], tmp_path / 'out', **options)
  report = json.loads((final / 'report.json').read_text())
  assert report['documents'] == {'in': 23, 'blank': 1, 'train': 17, 'eval': 5}
  for record in tf.data.TFRecordDataset(str(final / text_mlm.EVAL_FILE)):
    tf.io.parse_single_example(record, text_mlm._RECORD)
