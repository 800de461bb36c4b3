"""Which checkpoints are whole, and where those that are not are moved."""

import json
import pathlib
import zlib

import pytest

from laser_pax.errors import UserError
from laser_pax.experiment import checkpoints


def save(job, step, with_list=True):
  """Writes files as PAX has them."""
  folder = job / 'checkpoints' / f'checkpoint_{step:08d}'
  files = {
    'metadata/metadata': '{"version": 1.1}',
    'state/w/.zarray': '{}',
    'state/w/0.0': 'x' * 99,
  }
  files['train_input/process_0-of-1'] = 'position'
  for name, text in files.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
  if with_list:
    checkpoints.write_list(folder)
  return folder


@pytest.fixture
def job(tmp_path):
  for step in (0, 2, 4):
    save(tmp_path, step)
  return tmp_path


def empty(folder):
  for path in sorted(folder.rglob('*'), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()


DAMAGES = {
  'its folder is empty': empty,
  'it has no metadata': lambda folder: (folder / 'metadata/metadata').unlink(),
  'its metadata are cut': lambda folder: (folder / 'metadata/metadata').write_text('{"ver'),
  'it has no state': lambda folder: empty(folder / 'state'),
  'state/w/0.0 is missing': lambda folder: (folder / 'state/w/0.0').unlink(),
  'state/w/0.0 has 98 bytes, not 99': lambda folder: (folder / 'state/w/0.0').write_text('x' * 98),
  'process_0-of-1 is missing': lambda folder: (folder / 'train_input/process_0-of-1').unlink(),
  'state/w/0.0 is damaged': lambda folder: (folder / 'state/w/0.0').write_text('x' * 98 + 'y'),
  'files.json is cut': lambda folder: (folder / checkpoints.LIST).write_text('{"state'),
}


@pytest.mark.parametrize('fault', DAMAGES)
def test_the_newest_whole_one_is_found_and_a_damaged_one_moved(job, fault):
  newest = job / 'checkpoints/checkpoint_00000004'
  DAMAGES[fault](newest)
  before = sorted(p.relative_to(newest) for p in newest.rglob('*'))
  said = checkpoints.set_aside(job)
  assert fault in said[0] and said[0].startswith('checkpoint 4 is not whole')
  assert said[-1].endswith('goes on from 2')
  moved = job / checkpoints.ASIDE / newest.name
  assert sorted(p.relative_to(moved) for p in moved.rglob('*')) == before
  assert not newest.exists()
  assert checkpoints.set_aside(job) == []


def test_damage_of_the_same_size_is_found_by_checksums_alone(job):
  (job / 'checkpoints/checkpoint_00000004/state/w/0.0').write_text('y' * 99)
  assert checkpoints.survey(job) == checkpoints.Survey(4, {})
  assert checkpoints.survey(job, checkpoints.damaged_files).whole == 2


def test_a_list_of_sizes_alone_still_serves(job):
  newest = job / 'checkpoints/checkpoint_00000004'
  listed = json.loads((newest / checkpoints.LIST).read_text())
  sizes = {name: entry['bytes'] for name, entry in listed.items()}
  (newest / checkpoints.LIST).write_text(json.dumps(sizes))
  assert not checkpoints.has_checksums(newest)
  assert checkpoints.set_aside(job) == []
  (newest / 'state/w/0.0').write_text('')
  assert checkpoints.set_aside(job)[-1].endswith('goes on from 2')


def test_whole_checkpoints_stay(job):
  files = sorted(job.rglob('*'))
  assert checkpoints.survey(job) == checkpoints.Survey(4, {})
  assert checkpoints.set_aside(job) == []
  assert sorted(job.rglob('*')) == files


def test_a_checkpoint_of_pax_alone_has_no_list(job):
  newest = save(job, 6, with_list=False)
  assert checkpoints.survey(job).whole == 6
  assert checkpoints.survey(job, checkpoints.damaged_files).whole == 6
  (newest / 'state/w/0.0').write_text('')
  assert checkpoints.survey(job) == checkpoints.Survey(4, {6: 'state/w/0.0 is empty'})


def test_the_same_step_is_moved_twice(job):
  for _ in range(2):
    empty(save(job, 6))
    checkpoints.set_aside(job)
  names = sorted(p.name for p in (job / checkpoints.ASIDE).iterdir())
  assert names == ['checkpoint_00000006', 'checkpoint_00000006-2']


def test_an_old_one_without_metadata_is_moved_too(job):
  """PAX takes the version of any checkpoint for that of all."""
  empty(job / 'checkpoints/checkpoint_00000000')
  assert checkpoints.set_aside(job)[-1].endswith('goes on from 4')
  assert not (job / 'checkpoints/checkpoint_00000000').exists()


def test_if_none_is_whole_nothing_is_moved(job):
  for folder in (job / 'checkpoints').iterdir():
    empty(folder)
  with pytest.raises(UserError, match='checkpoint 4 is not whole.*bring one back'):
    checkpoints.set_aside(job)
  assert len(list((job / 'checkpoints').iterdir())) == 3


def test_a_run_that_had_saved_nothing_yet_starts_anew(tmp_path):
  assert checkpoints.set_aside(tmp_path) == []
  empty(save(tmp_path, 0))
  assert checkpoints.set_aside(tmp_path)[-1].endswith('starts from the beginning')


def test_unfinished_and_other_folders_are_no_checkpoints(job):
  for name in ('checkpoint_00000006.orbax-checkpoint-tmp-17', 'other', 'tmp_1.checkpoint_00000007'):
    (job / 'checkpoints' / name).mkdir()
  assert checkpoints.survey(job) == checkpoints.Survey(4, {})


def test_a_checkpoint_gets_its_list_before_its_name(tmp_path, monkeypatch):
  from orbax.checkpoint import utils

  renamed = []
  monkeypatch.setattr(
    utils,
    'on_commit_callback',
    lambda temporary, *_: renamed.append(
      json.loads((pathlib.Path(temporary) / checkpoints.LIST).read_text())
    ),
  )
  checkpoints.list_files_of_each.cache_clear()
  checkpoints.list_files_of_each()
  checkpoints.list_files_of_each()
  utils.on_commit_callback(save(tmp_path, 2, with_list=False), 'final', 0.0)
  checkpoints.list_files_of_each.cache_clear()
  (listed,) = renamed
  assert {name: entry['bytes'] for name, entry in listed.items()} == {
    'metadata/metadata': 16,
    'state/w/.zarray': 2,
    'state/w/0.0': 99,
    'train_input/process_0-of-1': 8,
  }
  assert listed['state/w/.zarray']['crc32'] == f'{zlib.crc32(b"{}"):08x}'
