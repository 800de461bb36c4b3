"""The TPU compiler is fetched once, whoever else fetches it at the same time."""

import concurrent.futures
import pathlib
import subprocess
import time
import types

import pytest

from laser_pax.costs import libtpu
from laser_pax.errors import UserError


@pytest.fixture
def pip(monkeypatch, tmp_path):
  """A stand-in for pip, which takes a while; returns the folders that it was asked to fill."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  targets = []

  def run(command, **_):
    target = pathlib.Path(command[command.index('--target') + 1])
    targets.append(target)
    time.sleep(0.3)
    (target / 'libtpu').mkdir(parents=True)
    (target / 'libtpu' / 'libtpu.so').write_text(str(len(targets)))
    return types.SimpleNamespace(returncode=0, stderr='')

  monkeypatch.setattr(subprocess, 'run', run)
  return targets


def test_one_of_several_fetches_downloads_and_none_loses_the_file(pip):
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    paths = [future.result() for future in [pool.submit(libtpu.fetch) for _ in range(4)]]
  assert len(pip) == 1
  assert len(set(paths)) == 1 and paths[0].read_text() == '1'


def test_what_an_interrupted_download_left_is_replaced(pip, tmp_path):
  part = tmp_path / 'laser_pax' / f'libtpu-{libtpu.RELEASE.version}' / 'libtpu'
  part.mkdir(parents=True)
  assert libtpu.fetch().read_text() == '1'


def test_a_failure_of_pip_is_told_in_one_line_and_leaves_nothing(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  failure = types.SimpleNamespace(returncode=1, stderr='notice\nERROR: no such version\n')
  monkeypatch.setattr(subprocess, 'run', lambda *_, **__: failure)
  with pytest.raises(UserError, match='could not fetch libtpu .*: no such version'):
    libtpu.fetch()
  assert not list((tmp_path / 'laser_pax').glob('libtpu-*/'))
