"""A headless browser, where this machine has one: Debian's chromium-headless-shell."""

import pathlib
import shutil
import subprocess
import tempfile

import pytest

_NAMES = ('chromium-headless-shell', 'chromium', 'chromium-browser', 'google-chrome')
_FLAGS = (
  '--headless',
  '--no-sandbox',  # Tests may run as root.
  '--disable-gpu',
  '--disable-dev-shm-usage',
  '--hide-scrollbars',
  '--enable-logging=stderr',
  '--host-resolver-rules=MAP * ~NOTFOUND',  # No network.
)
# What Chromium writes before a message of a page's console.
CONSOLE = 'CONSOLE'


def command() -> str:
  """Returns the browser's program; skips the test where there is none."""
  program = next(filter(None, map(shutil.which, _NAMES)), None)
  if program is None:
    pytest.skip('no browser: apt-get install chromium-headless-shell')
  return program


def open_page(url: str, screenshot: pathlib.Path, height: int = 4_000) -> list[str]:
  """Opens a page, takes a picture of it, and returns the messages of its console.

  Raises:
    subprocess.CalledProcessError: The browser failed.
  """
  with tempfile.TemporaryDirectory() as profile:
    arguments = [*_FLAGS, f'--user-data-dir={profile}', f'--window-size=1150,{height}']
    result = subprocess.run(
      [command(), *arguments, f'--screenshot={screenshot}', url],
      check=True,
      capture_output=True,
      text=True,
      timeout=120,
    )
  return [line for line in result.stderr.splitlines() if CONSOLE in line]
