"""prepare librispeech: the records, archives, what is left out, and what is refused."""

import gzip
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from laser_pax.data.datasets import LIBRISPEECH
from laser_pax.data.prepare import librispeech, prompts, shards
from laser_pax.errors import UserError
from tests.support import small_speech


@pytest.fixture
def source(tmp_path):
  return shutil.copytree(small_speech.FOLDER, tmp_path / 'LibriSpeech')


def prepared(sources, out):
  folder = librispeech.prepare(sources, out)
  return folder, json.loads((folder / 'report.json').read_text())


def contents(folder):
  return {f.name: f.read_bytes() for f in folder.iterdir() if f.suffix != '.json'}


def test_tfds_reads_the_records(source, tmp_path):
  folder, report = prepared([source], tmp_path / 'data')
  assert folder == tmp_path / 'data' / 'librispeech/default/2.1.1'
  assert report['documents']['in'] == 10 and report['documents']['train_clean100'] == 5
  builder = tfds.builder('librispeech:2.1.1', data_dir=tmp_path / 'data', try_gcs=False)
  assert str(builder.data_path) == str(folder)
  for split, subset in {'train_clean100': 'train-clean-100', 'dev_clean': 'dev-clean'}.items():
    expected = small_speech.utterances(subset)
    rows = {r['id'].decode(): r for r in tfds.as_numpy(builder.as_dataset(split=split))}
    assert rows.keys() == expected.keys()
    for name, (samples, text) in expected.items():
      np.testing.assert_array_equal(rows[name]['speech'], samples)
      assert rows[name]['text'].decode() == text
      ids = rows[name]['speaker_id'], rows[name]['chapter_id']
      assert ids == tuple(map(int, name.split('-')[:2]))


@pytest.mark.parametrize('suffix', ['.tar', '.tar.gz', '.tgz'])
def test_an_archive_gives_what_its_folder_gives(source, tmp_path, suffix):
  archive = tmp_path / f'mine{suffix}'
  with tarfile.open(archive, 'w' if suffix == '.tar' else 'w:gz') as tar:
    tar.add(source, 'LibriSpeech')
  of_folder, _ = prepared([source], tmp_path / 'a')
  of_archive, _ = prepared([archive], tmp_path / 'b')
  assert contents(of_folder) == contents(of_archive)
  assert [f.name for f in of_archive.parent.iterdir() if 'unpacked' in f.name] == []


def test_a_killed_run_goes_on(source, tmp_path, monkeypatch):
  whole, _ = prepared([source], tmp_path / 'a')
  convert, calls = librispeech._Conversion.convert, []

  def failing(self, item):
    calls.append(item.name)
    if len(calls) > 7:
      raise KeyboardInterrupt
    return convert(self, item)

  monkeypatch.setattr(librispeech._Conversion, 'convert', failing)
  with pytest.raises(KeyboardInterrupt):
    prepared([source], tmp_path / 'b')
  first = set(calls)
  calls.clear()
  monkeypatch.setattr(
    librispeech._Conversion, 'convert', lambda *a: calls.append(a[1].name) or convert(*a)
  )
  resumed, _ = prepared([source], tmp_path / 'b')
  assert contents(whole) == contents(resumed)
  assert len(calls) < 10 and first


def test_what_is_broken_is_left_out_by_name(source, tmp_path):
  chapter = source / 'train-clean-100/1/1'
  samples, rate = soundfile.read(chapter / '1-1-0000.flac', dtype='int16')
  # A FLAC file of 0 frames, which no encoder writes.
  header = bytearray((chapter / '1-1-0000.flac').read_bytes()[:42])
  header[4] |= 0x80  # No other block follows,
  header[21:26] = [header[21] & 0xF0, 0, 0, 0, 0]  # and no sample.
  (chapter / '1-1-0000.flac').write_bytes(header)
  soundfile.write(chapter / '1-1-0001.flac', samples, 8_000)
  soundfile.write(chapter / '1-1-0002.flac', np.stack([samples, samples], 1), rate)
  data = (chapter / '1-1-0003.flac').read_bytes()
  (chapter / '1-1-0003.flac').write_bytes(data[:300])
  (source / 'dev-clean/2/1/2-1-0001.flac').unlink()
  soundfile.write(source / 'dev-clean/2/1/2-1-0009.flac', samples, rate)
  (source / 'dev-clean/2/1/2-1-0003.flac').unlink()
  soundfile.write(source / 'dev-clean/2/1/2-1-0003.wav', samples[:0], rate)
  _, report = prepared([source], tmp_path / 'data')
  assert {row['path']: row['reason'] for row in report['left_out'] if '-' in row['path']} == {
    '1-1-0000': librispeech.DAMAGED,
    '1-1-0001': 'audio at 8,000 Hz, not 16,000',
    '1-1-0002': 'audio of 2 channels, not one',
    '1-1-0003': librispeech.DAMAGED,
    '2-1-0001': librispeech.NO_AUDIO,
    '2-1-0003': librispeech.NO_SAMPLE,
    '2-1-0009': librispeech.NO_TRANSCRIPT,
  } | {row['path']: row['reason'] for row in report['left_out'] if 'LICENSE' in row['path']}
  assert report['documents'] == {
    'in': 11,
    'blank': 0,
    'train_clean100': 1,
    'dev_clean': 3,
  } | {split: 0 for split in LIBRISPEECH.splits if split not in ('train_clean100', 'dev_clean')}


@pytest.mark.parametrize(
  ('suffix', 'subtype'),
  [('wav', 'FLOAT'), ('wav', 'DOUBLE'), ('wav', 'PCM_24'), ('flac', 'PCM_24')],
)
def test_samples_of_each_kind_are_read_alike(source, tmp_path, subtype, suffix):
  file = source / 'dev-clean/2/1/2-1-0003.flac'
  samples, rate = soundfile.read(file)
  file.unlink()
  soundfile.write(file.with_suffix(f'.{suffix}'), samples, rate, subtype)
  of_source, _ = prepared([source], tmp_path / 'a')
  of_sample, _ = prepared([small_speech.FOLDER], tmp_path / 'b')
  assert contents(of_source) == contents(of_sample)


@pytest.mark.parametrize('peak', [np.nan, np.inf, 20_000.0])
def test_floats_of_another_scale_are_left_out(peak):
  file = io.BytesIO()
  soundfile.write(file, np.array([0.1, peak, 0.2]), librispeech.RATE, 'FLOAT', format='WAV')
  assert librispeech._samples(file.getvalue()) == (None, librispeech.NOT_SCALED)


@pytest.mark.parametrize('kind', ['WAV', 'FLAC'])
def test_a_file_that_was_cut_in_its_middle_is_left_out(kind):
  file = io.BytesIO()
  samples = np.random.default_rng(0).uniform(-0.5, 0.5, 9_000)
  soundfile.write(file, samples, librispeech.RATE, 'PCM_16', format=kind)
  data = file.getvalue()
  assert librispeech._samples(data)[1] == ''
  for length in range(len(data) // 4, len(data), 997):
    # libsndfile refuses a cut FLAC file itself.
    assert librispeech._samples(data[:length]) == (
      None,
      {'WAV': librispeech.CUT, 'FLAC': librispeech.DAMAGED}[kind],
    )


def test_a_wav_of_unknown_length_is_whole():
  file = io.BytesIO()
  soundfile.write(file, np.full(800, 0.1), librispeech.RATE, 'PCM_16', format='WAV')
  data = bytearray(file.getvalue())
  data[4:8] = data[40:44] = b'\xff' * 4  # As written to a pipe.
  samples, reason = librispeech._samples(bytes(data))
  assert len(samples) == 800 and reason == ''


def test_an_archive_beside_its_folder_gives_each_utterance_once(source, tmp_path):
  archive = tmp_path / 'mine.tar'
  with tarfile.open(archive, 'w') as tar:
    tar.add(source, 'LibriSpeech')
  _, report = prepared([archive, source], tmp_path / 'data')
  assert report['documents']['in'] == 20
  reasons = [row['reason'] for row in report['left_out']]
  assert reasons.count(librispeech.AGAIN) == 10


def cut_archive(source):
  archive = source.parent / 'train-clean-100.tar.gz'
  with tarfile.open(archive, 'w:gz') as tar:
    tar.add(source, 'LibriSpeech')
  archive.write_bytes(archive.read_bytes()[:-5_000])
  return [archive]


def short_archive(source):
  archive = source.parent / 'dev-clean.tar.gz'
  with tarfile.open(archive, 'w:gz') as tar:
    tar.add(source, 'LibriSpeech')
  return [archive]


def other_subset(source):
  (source / 'dev-clean').rename(source / 'mine')
  return [source]


def line_without_text(source):
  (source / 'dev-clean/2/1/2-1.trans.txt').write_text('2-1-0000\n')
  return [source]


def other_name(source):
  (source / 'dev-clean/2/1/2-1.trans.txt').write_text('hello WORLD\n')
  return [source]


def all_damaged(source):
  for file in source.glob('dev-clean/*/*/*.flac'):
    file.write_bytes(b'fLaC')
  return [source]


@pytest.mark.parametrize(
  ('damage', 'words'),
  [
    (cut_archive, 'train-clean-100.tar.gz: a damaged archive, or not whole'),
    (short_archive, 'dev-clean.tar.gz: expected 2,703 utterances, got 10'),
    (other_subset, 'mine/2/1/2-1.trans.txt: expected the folders SUBSET/SPEAKER/CHAPTER'),
    (line_without_text, '2-1.trans.txt, line 1: expected SPEAKER-CHAPTER-NUMBER'),
    (other_name, '2-1.trans.txt, line 1: expected SPEAKER-CHAPTER-NUMBER'),
    (all_damaged, 'none of the utterances of dev_clean can be read'),
  ],
)
def test_what_cannot_be_right_is_refused(source, tmp_path, damage, words):
  with pytest.raises(UserError, match=words):
    librispeech.prepare(damage(source), tmp_path / 'data')
  assert not (tmp_path / 'data' / LIBRISPEECH.folder).exists()


def test_a_finished_data_set_is_never_overwritten(source, tmp_path):
  librispeech.prepare([source], tmp_path / 'data')
  with pytest.raises(UserError, match='never overwritten'):
    librispeech.prepare([source], tmp_path / 'data')


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    (' Please press 1, then "pound".', 'PLEASE PRESS ONE THEN POUND'),
    (" I\u2019m sorry...  that's 20.", "I'M SORRY THAT'S TWENTY"),
    (' dial 500', ''),
    (' [beep]', ''),
    (' (1 second of silence)', ''),
  ],
)
def test_prompts_become_transcripts(text, expected):
  assert prompts.plain(text) == expected


def test_prompts_are_fetched_by_apt(tmp_path, monkeypatch):
  """Stand-ins for apt-get and dpkg-deb give the packages' files."""
  bin_dir = tmp_path / 'bin'
  bin_dir.mkdir()
  sounds = tmp_path / 'made/usr/share/asterisk/sounds/en_US_f_Allison'
  sounds.mkdir(parents=True)
  docs = tmp_path / 'made/usr/share/doc'
  docs.mkdir(parents=True)
  for number in range(8):
    soundfile.write(sounds / f'p{number}.wav', np.full(800, 0.1), 8_000)
  lines = ''.join(f'p{n}: Prompt {n}.\n' for n in range(8)) + '; note\nbeep: [a beep]\n'
  (docs / 'core-sounds-en.txt').write_text(lines)
  (docs / 'core-sounds-en.txt.gz').write_bytes(gzip.compress(lines.encode()))
  scripts = {'apt-get': 'touch "$2.deb" "$3.deb"', 'dpkg-deb': f'cp -r {tmp_path}/made "$3"'}
  for name, script in scripts.items():
    (bin_dir / name).write_text(f'#!/bin/sh\n{script}\n')
    (bin_dir / name).chmod(0o755)
  monkeypatch.setenv('PATH', f'{bin_dir}:/usr/bin:/bin')
  prompts.fetch(tmp_path / 'out')
  _, report = prepared([tmp_path / 'out'], tmp_path / 'data')
  assert report['documents']['train_clean100'] == 7 and report['documents']['dev_clean'] == 1
  text = (tmp_path / 'out/dev-clean/1/1/1-1.trans.txt').read_text()
  assert text == '1-1-0005 PROMPT FIVE\n'
  assert soundfile.info(tmp_path / 'out/dev-clean/1/1/1-1-0005.flac').frames == 1_600
  (bin_dir / 'apt-get').write_text('#!/bin/sh\necho "E: no network" >&2; exit 100\n')
  with pytest.raises(UserError, match='E: no network'):
    prompts.fetch(tmp_path / 'other')
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(UserError, match='apt-get and dpkg-deb is not here'):
    prompts.fetch(tmp_path / 'other')


def test_shards_have_all_speakers(source):
  """Items are divided by a hash of their names, not in the order of the sources."""
  items = [
    librispeech.Utterance(
      split='train_clean100', name=f'{n // 50}-1-{n:04d}', text='A', file=source, offset=0, size=1
    )
    for n in range(200)
  ]

  class Small(librispeech._Conversion):
    SHARD_BYTES = 50

  conversion = Small(LIBRISPEECH, source.parent / 'final', items)
  assert [len(own) for _, own in conversion.shards] == [50] * 4
  for _, own in conversion.shards:
    assert {item.name[0] for item in own} == set('0123')
  assert shards.MOST_SHARDS == 1_024
