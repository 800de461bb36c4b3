"""Asterisk's spoken prompts in LibriSpeech's layout: half an hour of one voice, to try speech with.

The Debian packages asterisk-core-sounds-en-wav (audio, 8 kHz) and asterisk-core-sounds-en (texts)
have them, by Allison Smith, under CC BY-SA 3.0. They are fetched by `apt-get download`, which needs
no rights. The audio is resampled to 16 kHz. Texts become upper case, numbers words, and a text that
was there before is left out. Every tenth prompt, from the sixth on, is of dev-clean, and the others
are of train-clean-100.
"""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from laser_pax import folders
from laser_pax.data.prepare.librispeech import RATE, TRANSCRIPTS
from laser_pax.errors import UserError

PACKAGES = ('asterisk-core-sounds-en-wav', 'asterisk-core-sounds-en')

_EVERY, _FIRST = 10, 5
# fmt: off
_NUMBERS = [
  'ZERO', 'ONE', 'TWO', 'THREE', 'FOUR', 'FIVE', 'SIX', 'SEVEN', 'EIGHT', 'NINE', 'TEN', 'ELEVEN',
  'TWELVE', 'THIRTEEN', 'FOURTEEN', 'FIFTEEN', 'SIXTEEN', 'SEVENTEEN', 'EIGHTEEN', 'NINETEEN',
  'TWENTY',
]
# fmt: on


def fetch(folder: Path) -> None:
  """Fetches the prompts, and writes them below `folder`.

  Args:
    folder: Folder of the subsets, which must not exist. It appears when it is complete.

  Raises:
    UserError: The packages cannot be fetched.
  """
  folders.make_folder(folder.parent)
  with tempfile.TemporaryDirectory(dir=folder.parent) as work:
    root = _unpack(Path(work))
    complete = Path(work) / 'complete'
    _write(root, complete)
    complete.rename(folder)


def _unpack(work: Path) -> Path:
  """Returns a folder of what is in the packages."""
  missing = [tool for tool in ('apt-get', 'dpkg-deb') if shutil.which(tool) is None]
  if missing:
    raise UserError(
      f'the speech to try with is fetched by apt-get, and {" and ".join(missing)} is not here: '
      'name data of your own with --data and --vocab'
    )
  try:
    _run(['apt-get', 'download', *PACKAGES], work)
    for package in work.glob('*.deb'):
      _run(['dpkg-deb', '-x', str(package), 'files'], work)
  except subprocess.CalledProcessError as e:
    lines = (e.stderr or '').strip().splitlines() or ['no message']
    raise UserError(
      f'cannot fetch {" and ".join(PACKAGES)} ({lines[-1]}): check the network and `apt-get '
      'update`, or name data of your own with --data and --vocab'
    ) from e
  return work / 'files'


def _run(command: list[str], work: Path) -> None:
  subprocess.run(command, cwd=work, check=True, capture_output=True, text=True)


def _write(root: Path, out: Path) -> None:
  """Writes each prompt that has a plain text, as a FLAC file beside its transcript."""
  import soundfile
  from scipy import signal

  text_file = next(root.glob('**/core-sounds-en.txt.gz'))
  audio = next(root.glob('**/en_US_f_Allison'))
  lines: dict[str, list[str]] = {'train-clean-100': [], 'dev-clean': []}
  number, seen = 0, set()
  for line in gzip.decompress(text_file.read_bytes()).decode().splitlines():
    name, _, text = line.partition(':')
    text = plain(text)
    file = audio / f'{name}.wav'
    if not text or text in seen or not file.exists():
      continue
    seen.add(text)
    subset = 'dev-clean' if number % _EVERY == _FIRST else 'train-clean-100'
    key = f'1-1-{number:04d}'
    samples, rate = soundfile.read(file)
    samples = signal.resample_poly(samples, RATE, rate)
    target = out / subset / '1' / '1' / f'{key}.flac'
    target.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(target, samples.clip(-1, 1 - 2**-15), RATE, subtype='PCM_16')
    lines[subset].append(f'{key} {text}\n')
    number += 1
  for subset, own in lines.items():
    (out / subset / '1' / '1' / f'1-1{TRANSCRIPTS}').write_text(''.join(own), 'utf-8')


def plain(text: str) -> str:
  """Returns a prompt's text as LibriSpeech writes it; nothing if the text does not say all.

  Args:
    text: The text: sounds are in brackets, and numbers may be digits.
  """
  if re.search(r'[\[(<;]', text):
    return ''
  text = re.sub(r'\d+', lambda m: _NUMBERS[int(m[0])] if int(m[0]) <= 20 else m[0], text)
  if re.search(r'\d', text):
    return ''
  return ' '.join(re.sub(r"[^A-Z' ]", ' ', text.upper().replace('\u2019', "'")).split())
