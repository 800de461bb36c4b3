"""Rebuilds tests/support/speech from the Debian package pocketsphinx-testdata.

  apt-get download pocketsphinx-testdata && dpkg-deb -x pocketsphinx-testdata_*.deb FILES
  python scripts/make_speech_sample.py FILES OUT

Five utterances of a LibriVox reader become train-clean-100, and five phrases of another speaker
dev-clean, in LibriSpeech's layout. The audio is unchanged, but for its format.
"""

import re
import sys
from pathlib import Path

import soundfile


def main(files: Path, out: Path) -> None:
  """Writes the sample's files to `out`."""
  data = files / 'usr/share/pocketsphinx/test/data'
  sources = {
    ('train-clean-100', 1): data / 'librivox' / 'transcription',
    ('dev-clean', 2): data / 'cards' / 'cards.transcription',
  }
  for (subset, speaker), transcripts in sources.items():
    folder = out / subset / str(speaker) / '1'
    folder.mkdir(parents=True)
    lines = []
    for number, line in enumerate(transcripts.read_text().splitlines()):
      text, name = re.fullmatch(r'<s> (.*?) *</s> \((.*)\)', line).groups()
      samples, rate = soundfile.read(transcripts.parent / f'{name}.wav', dtype='int16')
      assert rate == 16_000
      key = f'{speaker}-1-{number:04d}'
      soundfile.write(folder / f'{key}.flac', samples, rate, subtype='PCM_16')
      lines.append(f'{key} {text.upper()}\n')
    (folder / f'{speaker}-1.trans.txt').write_text(''.join(lines))


if __name__ == '__main__':
  if len(sys.argv) != 3:
    sys.exit('usage: python scripts/make_speech_sample.py FILES OUT')
  main(Path(sys.argv[1]), Path(sys.argv[2]))
