"""Which files of a folder are sources: each other one is named, with why."""

import itertools
import os

import pytest

from laser_pax.data.prepare import files
from laser_pax.errors import UserError


def write(path, content='content'):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(content)
  return path


def found(folder, *paths):
  """Returns names of what was taken, and of what was left out with why, below a folder."""
  sources = files.find_sources(paths or [folder])
  taken = [str(path.relative_to(folder)) for path in sources.taken]
  return taken, {str(x.path.relative_to(folder)): x.reason for x in sources.left_out}


def test_sources_in_folders_are_listed_once_and_sorted(tmp_path):
  file, _ = write(tmp_path / 'c.jsonl', 'c'), write(tmp_path / 'deep' / 'b.txt', 'b')
  write(tmp_path / 'README.md')
  taken, left_out = found(tmp_path, file, tmp_path, tmp_path / 'deep')
  assert taken == ['c.jsonl', 'deep/b.txt']
  assert left_out == {'README.md': files.OTHER_SUFFIX, 'deep': files.SAME_FILE}


@pytest.mark.parametrize(
  'hidden', ['.a.txt', '.ipynb_checkpoints/a-checkpoint.txt', '.git/x/b.json']
)
def test_what_begins_with_a_dot_is_left_out(tmp_path, hidden):
  write(tmp_path / 'a.txt')
  write(tmp_path / hidden)
  assert found(tmp_path) == (['a.txt'], {hidden.split('/')[0]: files.HIDDEN})


def test_a_hidden_file_that_the_user_names_is_taken(tmp_path):
  hidden = write(tmp_path / '.a.txt')
  assert found(tmp_path, hidden) == (['.a.txt'], {})


@pytest.mark.parametrize('name', ['C.TXT', 'D.JSONL', 'e.txt.gz', 'F.Json.Gz', 'g.json'])
def test_suffixes_in_any_case(tmp_path, name):
  write(tmp_path / name)
  assert found(tmp_path) == ([name], {})


def test_links_are_followed_once(tmp_path):
  data = tmp_path / 'data'
  write(tmp_path / 'elsewhere' / 'b.txt')
  write(data / 'a.txt', 'a')
  (data / 'link.txt').symlink_to(data / 'a.txt')
  os.link(data / 'a.txt', data / 'hard.txt')
  (data / 'folder').symlink_to(tmp_path / 'elsewhere')
  (data / 'again').symlink_to(tmp_path / 'elsewhere')
  (data / 'loop').symlink_to(data)
  same = dict.fromkeys(['folder', 'hard.txt', 'link.txt', 'loop'], files.SAME_FILE)
  assert found(data) == (['a.txt', 'again/b.txt'], same)


def test_what_is_no_regular_file_is_left_out(tmp_path):
  write(tmp_path / 'a.txt')
  os.mkfifo(tmp_path / 'pipe.txt')
  assert found(tmp_path) == (['a.txt'], {'pipe.txt': files.NOT_REGULAR})


def test_what_prepare_wrote_is_left_out(tmp_path):
  write(tmp_path / 'a.txt')
  write(tmp_path / 'c4/en/3.0.1.incomplete-0123abcd' / 'part-00000.json')
  write(tmp_path / 'old/c4/en/3.0.1' / 'dataset_info.json')
  taken, left_out = found(tmp_path)
  assert taken == ['a.txt']
  assert set(left_out.values()) == {files.PREPARED}


def test_copies_are_named(tmp_path):
  for name in ('a.txt', 'a (1).txt'):
    write(tmp_path / name, 'the same')
  write(tmp_path / 'b.txt', 'another!')
  copies = files.find_sources([tmp_path]).copies
  assert {copy.name: first.name for copy, first in copies.items()} == {'a.txt': 'a (1).txt'}


@pytest.mark.parametrize('copy', ['backup.txt', 'validation-2.txt'])
def test_a_training_copy_of_a_validation_file_is_left_out(tmp_path, copy):
  for name, content in (('validation.txt', 'same'), (copy, 'same'), ('z.txt', 'other')):
    write(tmp_path / name, content)
  found = files.find_sources([tmp_path])
  sources = files.without_leaks(found, lambda path: 'validation' in path.name)
  is_leak = copy == 'backup.txt'
  assert (copy in [path.name for path in sources.taken]) != is_leak
  assert [x.reason for x in sources.left_out] == [files.LEAK] * is_leak


def test_the_order_of_the_words_decides_nothing(tmp_path):
  for name in ('A/a.txt', 'B/b.txt', 'A/sub/c.txt'):
    write(tmp_path / name, name)
  (tmp_path / 'A/link').symlink_to('../B')
  words = [tmp_path / 'A', tmp_path / 'B', tmp_path / 'A/sub']
  results = [files.find_sources(order) for order in itertools.permutations(words)]
  assert all(result == results[0] for result in results)
  assert len(results[0].taken) == 3


def test_the_order_is_that_of_bytes(tmp_path):
  names = [b'caf\xe9.txt', b'Z.txt', b'a.txt', 'ä.txt'.encode(), b'a-b.txt', b'-.txt']
  for name in names:
    with open(os.fsencode(tmp_path) + b'/' + name, 'w') as file:
      file.write(repr(name))
  taken = files.find_sources([tmp_path]).taken
  assert [os.fsencode(path.name) for path in taken] == sorted(names)


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('none', None, 'no such file'),
    ('', None, 'names no file'),
    ('~nobody-has-this-name/a.txt', None, 'no such home folder'),
    ('a.pdf', 'x', 'not a source file'),
    ('a.txt', '', 'empty .0 bytes'),
    ('folder/a.txt', '', 'empty .0 bytes'),
    ('folder/readme.md', 'x', 'no source file in this folder'),
    ('a.json', 'version https://git-lfs stands for it', 'pointer of git-lfs'),
  ],
)
def test_unfit_paths_are_named(tmp_path, monkeypatch, name, content, message):
  monkeypatch.chdir(tmp_path)
  if content is not None:
    write(tmp_path / name, content)
  with pytest.raises(UserError, match=message) as error:
    files.find_sources([name.split('/')[0] if name.startswith('folder') else name])
  assert str(error.value).startswith((str(tmp_path), "''", '~'))


def test_a_link_that_leads_nowhere_is_refused(tmp_path):
  (tmp_path / 'a.txt').symlink_to(tmp_path / 'none')
  with pytest.raises(UserError, match='link leads nowhere'):
    files.find_sources([tmp_path])
  (tmp_path / 'a.txt').unlink()
  (tmp_path / 'a.txt').symlink_to(tmp_path / 'a.txt')
  with pytest.raises(UserError, match='cannot be read'):
    files.find_sources([tmp_path])
