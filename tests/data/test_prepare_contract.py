"""The contract of `prepare`, held on drawn trees of files: nothing is lost or leaked in silence."""

import collections
import gzip
import json
import os
import pathlib

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from laser_pax.data.prepare import c4, files, parts
from laser_pax.errors import UserError

FOLDERS = ['', 'sub', 'sub/deeper', '.hidden', 'sub/.git', 'sp ace', '\u00e4']
STEMS = [
  b'a',
  b'B',
  b'caf\xe9',
  b"it's",
  b'two\nlines',
  b'validation',
  b'.dot',
  b'-x',
  b'[v1] *',
  b'~',
]
SUFFIXES = ['.txt', '.TXT', '.txt.gz', '.json', '.JsonL', '.jsonl.gz', '.md', '', '.gz', '.txt.bak']
# What a file holds. The last four cannot be read; all others can.
WHOLE = ['plain', 'plain', 'plain', 'mark', 'half pair', 'blank too', 'crlf']
BROKEN = ['empty', 'cut', 'latin', 'no text']

file_kinds = st.tuples(
  st.sampled_from(FOLDERS),
  st.sampled_from(STEMS),
  st.sampled_from(SUFFIXES),
  st.sampled_from(WHOLE),
)
# Links: which file or folder, and whether hard.
links = st.tuples(st.integers(0, 99), st.sampled_from(['hard', 'soft', 'folder', 'loop']))
trees = st.tuples(
  st.lists(file_kinds, min_size=1, max_size=30),
  st.lists(links, max_size=8),
  st.none() | st.tuples(st.integers(0, 99), st.sampled_from([*BROKEN, 'nowhere'])),
)


class Tree:
  """Files on a disk, and what an honest reader expects of them."""

  def __init__(self, root, drawn):
    self.root, self.texts, self.is_broken = root, {}, False
    kinds, drawn_links, broken = drawn
    paths = [self.path(i, *kind[:3]) for i, kind in enumerate(kinds)]
    for number, (path, kind) in enumerate(zip(paths, kinds, strict=True)):
      self.write(number, path, kind[3])
    for number, (target, how) in enumerate(drawn_links):
      self.link(number, paths[target % len(paths)], how)
    if broken is not None:
      self.spoil(paths[broken[0] % len(paths)], broken[1])

  def path(self, number, folder, stem, suffix):
    folder = self.root / folder
    folder.mkdir(parents=True, exist_ok=True)
    return folder / os.fsdecode(stem + f'{number}{suffix}'.encode())

  def is_taken(self, path):
    hidden = any(part.startswith('.') for part in path.relative_to(self.root).parts)
    return not hidden and path.name.lower().endswith(files.SUFFIXES)

  def write(self, number, path, content):
    texts = [f'text {number}.{i} \u00e4' for i in range(3)]
    is_json = '.json' in path.name.lower()
    if content == 'half pair' and is_json:
      texts[1] = f'text {number} \ud83d'
    blank = ['', ' \n\t'] if content == 'blank too' and is_json else []
    if is_json:
      text = ''.join(json.dumps({'text': t, 'url': None}) + '\n' for t in [*texts, *blank])
    else:
      texts = ['\n'.join(texts)]
      text = texts[0] + '\n'
    if content == 'crlf':
      text = text.replace('\n', '\r\n')
    data = ('\ufeff' * (content == 'mark') + text).encode()
    path.write_bytes(gzip.compress(data) if path.name.lower().endswith('.gz') else data)
    if self.is_taken(path):
      self.texts[path] = ([t.replace('\ud83d', '\ufffd') for t in texts], len(blank))

  def link(self, number, target, how):
    if how == 'hard':
      os.link(target, self.root / f'z{number}.md')
    elif how == 'soft':
      (self.root / f'.z{number}.txt').symlink_to(target)
      if self.is_taken(target):
        (self.root / f'z{number}{target.suffix}').symlink_to(target)
    else:
      (self.root / f'z{number}').symlink_to(self.root if how == 'loop' else self.root / 'sub')

  def spoil(self, path, how):
    if not self.is_taken(path):
      return
    data = {'empty': b'', 'cut': path.read_bytes()[:-9], 'latin': b'caf\xe9'}.get(
      how, b'["text"]\n'
    )
    if how == 'cut' and not path.name.lower().endswith('.gz'):
      data = b'{"text": "cu' if '.json' in path.name.lower() else b'cut inside \xe2\x82'
    elif how == 'no text' and '.json' not in path.name.lower():
      data = b' \n\n'
    if path.name.lower().endswith('.gz') and how in ('latin', 'no text'):
      data = gzip.compress(data)
    if how == 'nowhere':
      path.unlink()
      path.symlink_to(self.root / 'not there')
    else:
      path.write_bytes(data)
    self.is_broken = True


def written(folder):
  """Returns the texts of each split."""
  texts = collections.defaultdict(list)
  for file in sorted(folder.glob('c4-*.tfrecord-*')):
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
      feature = tf.train.Example.FromString(record).features.feature
      texts[file.name.split('-')[1].split('.')[0]].append(
        feature['text'].bytes_list.value[0].decode()
      )
  return texts


def contents(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir()}


def is_accounted(path, report):
  """Whether a report names a file, or a folder that it is in."""
  named = {row['path'] for row in report['sources'] + report['left_out']}
  return any(parts.folders.shown(p) in named for p in (path, *path.parents))


@settings(max_examples=60, deadline=None)
@given(drawn=trees)
def test_nothing_is_lost_or_leaked_in_silence(tmp_path_factory, drawn):
  root = tmp_path_factory.mktemp('tree')
  tree = Tree(root / 'in', drawn)
  expected = [text for texts, _ in tree.texts.values() for text in texts]
  try:
    final = c4.prepare([root / 'in'], root / 'out')
  except UserError as e:
    assert '\n' not in str(e)
    validation = ['validation' in path.name for path in tree.texts]
    assert tree.is_broken or all(validation) or len(expected) < 2
    return
  assert not tree.is_broken
  splits, report = written(final), json.loads((final / 'report.json').read_text())
  assert sorted(splits['train'] + splits['validation']) == sorted(expected)
  assert not set(splits['train']) & set(splits['validation'])
  blank = sum(count for _, count in tree.texts.values())
  counts = {split: len(texts) for split, texts in splits.items()}
  assert report['documents'] == {'in': len(expected) + blank, 'blank': blank} | counts
  for folder, _, names in os.walk(root / 'in', followlinks=False):
    for name in names:
      assert is_accounted(pathlib.Path(folder) / name, report)
  assert contents(c4.prepare([root / 'in'], root / 'again')) == contents(final)


@pytest.mark.parametrize('out', ['in', 'in/out', '../in'])
def test_an_output_inside_the_sources_is_not_read(tmp_path, monkeypatch, out):
  """A first attempt fails on a cut file, and leaves unfinished work behind."""
  folder = tmp_path / 'in'
  folder.mkdir()
  monkeypatch.chdir(folder)
  for number in range(3):
    lines = ''.join(json.dumps({'text': f'{number}.{i}'}) + '\n' for i in range(9))
    (folder / f'{number}.json.gz').write_bytes(gzip.compress(lines.encode()))
  whole = (folder / '2.json.gz').read_bytes()
  (folder / '2.json.gz').write_bytes(whole[:-9])
  monkeypatch.setattr(parts, 'PART_BYTES', 1)
  with pytest.raises(UserError, match='truncated'):
    c4.prepare(['.'], tmp_path / out)
  (folder / '2.json.gz').write_bytes(whole)
  final = c4.prepare(['.'], tmp_path / out)
  report = json.loads((final / 'report.json').read_text())
  assert (len(report['sources']), report['left_out']) == (3, [])


def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
  for name in 'ab':
    (tmp_path / f'{name}.txt').write_text(name)

  def fail(*_):
    raise tf.errors.ResourceExhaustedError(None, None, 'x.tfrecord; No space left on device')

  monkeypatch.setattr(tf.io.TFRecordWriter, 'write', fail)
  with pytest.raises(UserError, match='cannot write the data set .No space left on device'):
    c4.prepare([tmp_path], tmp_path / 'out')


@pytest.fixture
def stopped(tmp_path, monkeypatch):
  """Unfinished work: the first part is done, the second source is cut. And the whole source."""
  monkeypatch.setattr(parts, 'PART_BYTES', 1)
  for name in ('a', 'b'):
    lines = ''.join(json.dumps({'text': f'{name}.{i}'}) + '\n' for i in range(300))
    (tmp_path / f'{name}.json.gz').write_bytes(gzip.compress(lines.encode(), mtime=0))
  whole = (tmp_path / 'b.json.gz').read_bytes()
  (tmp_path / 'b.json.gz').write_bytes(whole[:-9])
  with pytest.raises(UserError, match='truncated'):
    prepare_both(tmp_path)
  (tmp_path / 'b.json.gz').write_bytes(whole)
  return tmp_path


def prepare_both(folder, out='out'):
  return c4.prepare([folder / 'a.json.gz', folder / 'b.json.gz'], folder / out)


@pytest.mark.parametrize(
  ('name', 'damage'),
  [
    ('part-00000-train-00000.tfrecord', lambda path: path.write_bytes(b'')),
    ('part-00000-train-00000.tfrecord', lambda path: path.unlink()),
    ('part-00000.json', lambda path: path.write_bytes(b'')),
    ('part-00000.json', lambda path: path.write_bytes(path.read_bytes()[:-30])),
  ],
)
def test_damaged_unfinished_work_is_done_again(stopped, name, damage):
  (work,) = (stopped / 'out/c4/en').glob('*.incomplete-*')
  damage(work / name)
  assert contents(prepare_both(stopped)) == contents(prepare_both(stopped, 'again'))


def test_nothing_of_an_older_attempt_stays(stopped, monkeypatch):
  """With other sizes the two sources share one part."""
  monkeypatch.setattr(parts, 'PART_BYTES', 2**24)
  final = prepare_both(stopped)
  assert contents(final) == contents(prepare_both(stopped, 'again'))
  assert not list(final.glob('part-*'))


def test_a_source_replaced_at_the_very_end_is_read_again(stopped, monkeypatch):
  def fail(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(c4._C4Conversion, 'finish', fail)
    with pytest.raises(KeyboardInterrupt):
      prepare_both(stopped)
  (stopped / 'b.json.gz').write_bytes(gzip.compress(b'{"text": "new"}\n', mtime=0))
  assert 'new' in written(prepare_both(stopped))['train']
