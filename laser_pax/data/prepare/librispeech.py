"""Converts LibriSpeech into a TFDS data set of the layout librispeech/default/2.1.1.

Sources are LibriSpeech's archives, and folders that have what is in them:

    SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt   lines `SPEAKER-CHAPTER-0000 TRANSCRIPT`
    SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-0000.flac   16 kHz, one channel; .wav is read too

| what is found | what becomes of it |
|---|---|
| a transcript without audio, audio without a transcript | left out, with its name |
| audio of another rate, of several channels, without a sample, damaged, cut | left out, likewise |
| audio of floats | between -1 and 1: scaled to 16 bits; else left out |
| an archive that is cut, or has another number of utterances than LibriSpeech's | refused |
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from rich.progress import Progress

from laser_pax import folders
from laser_pax.data.datasets import LIBRISPEECH
from laser_pax.data.prepare import archives, files, parts, shards
from laser_pax.errors import UserError

RATE = 16_000  # samples a second
AUDIO = ('.flac', '.wav')
TRANSCRIPTS = '.trans.txt'

# The utterances of each of LibriSpeech's subsets. An archive is named SUBSET.tar.gz.
SUBSETS = {
  'train-clean-100': 28_539,
  'train-clean-360': 104_014,
  'train-other-500': 148_688,
  'dev-clean': 2_703,
  'dev-other': 2_864,
  'test-clean': 2_620,
  'test-other': 2_939,
}

NO_AUDIO, NO_TRANSCRIPT = 'a transcript without audio', 'audio without a transcript'
AGAIN = 'an utterance that another source has too'
DAMAGED, NO_SAMPLE = 'damaged audio', 'audio without a sample'
CUT = 'audio that is cut short'
NOT_SCALED = 'audio of floats that are not between -1 and 1'

# Floats are scaled by this. A peak may lie a little above it, and is cut.
_SCALE, _GREATEST_PEAK = 2**15, 2.0
# A program that writes to a pipe does not know the length, and gives about this or more.
_UNKNOWN_BYTES = 2**31 - 2**16
_MOST_FRAMES = 2**40


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
  """An utterance in a source.

  Attributes:
    split: Its split.
    name: SPEAKER-CHAPTER-NUMBER.
    text: Its transcript.
    file: File that holds the audio.
    offset: Where the audio begins there.
    size: Its bytes.
  """

  split: str
  name: str
  text: str
  file: Path
  offset: int
  size: int


def prepare(
  source_paths: Sequence[str | Path], data_dir: str | Path, *, progress: Progress | None = None
) -> Path:
  """Writes `data_dir/librispeech/default/2.1.1`, a split for each subset that there is.

  The result depends on the sources alone. Interruptions do not change it.

  Args:
    source_paths: Files and folders, see this module.
    data_dir: Local folder for data sets, made if missing.
    progress: Progress bar, which counts bytes of audio.

  Returns:
    The folder of the finished data set.

  Raises:
    UserError: The data set exists already, or the folder cannot be written. An archive is damaged,
      or lacks utterances. A line has no transcript. Or a folder has no subset's name.
  """
  final = parts.dataset_folder(LIBRISPEECH, data_dir)
  sources = files.find_sources(source_paths, final, is_source, (*archives.SUFFIXES, TRANSCRIPTS))
  parts.check_new(final)
  with (
    parts.writing_to(final.parent),
    folders.locked(final.with_name(f'{final.name}.lock')),
    archives.unpacking_beside(final) as unpacked,
  ):
    utterances, left_out = find_utterances(sources, unpacked)
    progress = progress or Progress(disable=True)
    task = progress.add_task('preparing', total=sum(u.size for u in utterances))
    conversion = _Conversion(LIBRISPEECH, final, utterances)
    conversion.run(sources, left_out, lambda size: progress.advance(task, size))
  return final


def is_source(path: Path) -> bool:
  """Whether a file's name is that of a source."""
  return path.name.lower().endswith((*archives.SUFFIXES, *AUDIO, TRANSCRIPTS))


def find_utterances(
  sources: files.Sources, unpacked: Path
) -> tuple[list[Utterance], list[tuple[str, str]]]:
  """Returns the utterances of the sources, and the names of what is left out, with the reasons.

  Args:
    sources: What the search found.
    unpacked: Folder for archives that are gzipped. They take their full size there.

  Raises:
    UserError: As for `prepare`.
  """
  utterances, left_out = [], []
  loose = [_of_file(path) for path in sources.taken if not _is_archive(path)]
  for path in filter(_is_archive, sources.taken):
    own, own_left_out = _joined(list(_members(path, unpacked)))
    _check_count(path, len(own))
    utterances += own
    left_out += own_left_out
  own, own_left_out = _joined(loose)
  left_out += own_left_out
  kept: dict[tuple[str, str], Utterance] = {}
  for utterance in utterances + own:
    if kept.setdefault((utterance.split, utterance.name), utterance) is not utterance:
      left_out.append((utterance.name, AGAIN))
  return list(kept.values()), left_out


def _is_archive(path: Path) -> bool:
  return path.name.lower().endswith(archives.SUFFIXES)


@dataclasses.dataclass(frozen=True, slots=True)
class _File:
  """A file of a folder or an archive: the three folders above it and its name, and its bytes."""

  place: PurePosixPath
  file: Path
  offset: int
  size: int

  @property
  def subset(self) -> str:
    return self.place.parts[-4] if len(self.place.parts) > 3 else ''


def _of_file(path: Path) -> _File:
  return _File(PurePosixPath(*path.parts[-4:]), path, 0, path.stat().st_size)


def _members(path: Path, unpacked: Path) -> Iterator[_File]:
  """Yields the transcripts and the audio of an archive, from its headers alone."""
  for plain, member in archives.read(path, unpacked):
    if member.name.lower().endswith((*AUDIO, TRANSCRIPTS)):
      yield _File(PurePosixPath(member.name), plain, member.offset, member.size)


def _joined(found: Sequence[_File]) -> tuple[list[Utterance], list[tuple[str, str]]]:
  """Returns each transcript with its audio, and what has no partner."""
  audio = {x.place.stem: x for x in found if x.place.suffix.lower() in AUDIO}
  utterances, left_out = [], []
  for transcripts in found:
    if not transcripts.place.name.lower().endswith(TRANSCRIPTS):
      continue
    split = _split(transcripts)
    for name, text in _lines(transcripts):
      heard = audio.pop(name, None)
      if heard is None:
        left_out.append((name, NO_AUDIO))
        continue
      utterances.append(
        Utterance(
          split=split,
          name=name,
          text=text,
          file=heard.file,
          offset=heard.offset,
          size=heard.size,
        )
      )
  return utterances, left_out + [(name, NO_TRANSCRIPT) for name in sorted(audio)]


def _split(transcripts: _File) -> str:
  """Returns the split of a file of transcripts, such as train_clean100."""
  if transcripts.subset not in SUBSETS:
    raise UserError(
      f'{folders.shown(transcripts.place)}: expected the folders SUBSET/SPEAKER/CHAPTER above it, '
      f'with one of the subsets {", ".join(SUBSETS)}; name them so'
    )
  return re.sub(r'-(\d+)$', r'\1', transcripts.subset).replace('-', '_')


def _lines(transcripts: _File) -> Iterator[tuple[str, str]]:
  """Yields the name and the text of each line."""
  shown = folders.shown(transcripts.place)
  try:
    data = archives.read_at(transcripts.file, transcripts.offset, transcripts.size)
    lines = data.decode('utf-8-sig').splitlines()
  except UnicodeDecodeError as e:
    raise UserError(f'{shown}: not UTF-8 text ({e.reason}); convert it to UTF-8') from e
  for number, line in enumerate(lines, 1):
    name, _, text = line.strip().partition(' ')
    if line.strip() and not (text.strip() and re.fullmatch(r'\d+-\d+-\d+', name)):
      raise UserError(
        f'{shown}, line {number}: expected SPEAKER-CHAPTER-NUMBER, all digits, a blank, and a '
        f'transcript, got {line.strip()[:80]!r}'
      )
    if line.strip():
      yield name, ' '.join(text.split())


def _check_count(path: Path, count: int) -> None:
  expected = SUBSETS.get(archives.stem(path))
  if expected is not None and count != expected:
    raise UserError(
      f'{folders.shown(path)}: expected {expected:,} utterances, got {count:,}: fetch it again, or '
      'give its folders in place of the archive'
    )


class _Conversion(shards.Conversion):
  """An utterance is a record."""

  UNIT = 'utterances'
  SHARD_BYTES = 2**25  # Records have ten times as many.

  def convert(self, item: Utterance) -> shards.Converted:
    samples, reason = _samples(archives.read_at(item.file, item.offset, item.size))
    return shards.Converted(None, reason) if reason else shards.Converted(_record(item, samples))

  def features(self) -> Any:
    import numpy as np
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
      {
        'speech': tfds.features.Audio(sample_rate=RATE, dtype=np.int16, file_format='flac'),
        'text': tfds.features.Text(),
        'speaker_id': np.int64,
        'chapter_id': np.int64,
        'id': np.str_,
      }
    )


def _samples(data: bytes) -> tuple[Any, str]:
  """Returns the samples of a file as 16-bit integers, and why they cannot be used, if so."""
  import numpy as np
  import soundfile

  try:
    with soundfile.SoundFile(io.BytesIO(data)) as file:
      # To integers, soundfile does not scale floats.
      is_float, frames, rate = file.subtype in ('FLOAT', 'DOUBLE'), file.frames, file.samplerate
      if frames > _MOST_FRAMES:  # So libsndfile says that a FLAC file does not tell its length.
        return None, DAMAGED
      samples = file.read(dtype='float64' if is_float else 'int16')
  except (soundfile.LibsndfileError, EOFError):
    return None, DAMAGED
  if rate != RATE:
    return None, f'audio at {rate:,} Hz, not {RATE:,}'
  if samples.ndim != 1:
    return None, f'audio of {samples.shape[1]} channels, not one'
  if len(samples) < frames or _is_cut_wav(data):
    return None, CUT
  if not len(samples):
    return None, NO_SAMPLE
  if is_float:
    if not np.abs(samples).max() < _GREATEST_PEAK:  # Also where it is no number.
      return None, NOT_SCALED
    samples = np.rint(samples.clip(-1, 1 - 1 / _SCALE) * _SCALE).astype(np.int16)
  return samples, ''


def _is_cut_wav(data: bytes) -> bool:
  """Returns whether a WAV file lacks some of the samples that its header tells.

  libsndfile reads what is left, and takes it for the whole.
  """
  if data[:4] != b'RIFF' or data[8:12] != b'WAVE':
    return False
  place = 12
  while place + 8 <= len(data):
    name, (size,) = data[place : place + 4], struct.unpack_from('<I', data, place + 4)
    place += 8
    if name == b'data':
      return place + size > len(data) and size < _UNKNOWN_BYTES
    place += size + size % 2
  return False


def _record(utterance: Utterance, samples: Any) -> bytes:
  """Returns TFDS's record: samples are 64-bit integers there."""
  import tensorflow as tf

  def integers(values: Any) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

  def text(value: str) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[os.fsencode(value)]))

  speaker, chapter, _ = map(int, utterance.name.split('-'))
  feature = {
    'speech': integers(samples),
    'text': text(utterance.text),
    'speaker_id': integers([speaker]),
    'chapter_id': integers([chapter]),
    'id': text(utterance.name),
  }
  example = tf.train.Example(features=tf.train.Features(feature=feature))
  return example.SerializeToString(deterministic=True)
