"""The list of a training's checkpoints."""

import re

import pytest

from laser_pax.cli import checkpoints as command
from laser_pax.errors import UserError
from laser_pax.experiment import checkpoints, jobs
from tests.support import random_checkpoint

STEP = random_checkpoint.STEP


@pytest.fixture(scope='module')
def job(tmp_path_factory):
  folder = tmp_path_factory.mktemp('job')
  random_checkpoint.save(folder, 'C4StandardTiny')
  checkpoints.write_list(folder / 'checkpoints' / f'checkpoint_{STEP:08d}')
  checkpoints.remember_figure(folder, STEP, 3.25)
  return folder


def shown(capsys, *args, code=0):
  if code:
    with pytest.raises(SystemExit) as exit_of:
      command.list_checkpoints(*args)
    assert exit_of.value.code == code
  else:
    command.list_checkpoints(*args)
  return capsys.readouterr().out


def test_step_size_weights_figure_and_what_it_belongs_to(job, capsys):
  text = shown(capsys, str(job))
  assert text.startswith(f'{job}: laser_pax.configs.C4StandardTiny ')
  folder = job / 'checkpoints' / f'checkpoint_{STEP:08d}'
  size = sum(p.stat().st_size for p in folder.rglob('*') if p.is_file())
  assert re.search(rf'^ +{STEP} +{size:,} +[\d,]+ +3\.2500 +whole *$', text, re.MULTILINE)
  assert f'the newest whole checkpoint is {STEP}' in text


def test_damage_is_found_by_verify_alone(job, capsys):
  assert 'whole, verified' in shown(capsys, str(job), str(STEP))
  file = max((job / 'checkpoints').rglob('state/**/*0*'), key=lambda p: p.stat().st_size)
  content = file.read_bytes()
  file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  try:
    assert ' whole' in shown(capsys, str(job))
    text = shown(capsys, str(job), 'all', code=1)
    name = file.relative_to(file.parents[2])
    assert f'checkpoint {STEP} is not whole: {name} is damaged: its checksum is' in text
  finally:
    file.write_bytes(content)


def test_what_is_not_there_is_said(job, tmp_path):
  with pytest.raises(UserError, match='no finished checkpoint is in'):
    command.list_checkpoints(str(tmp_path))
  with pytest.raises(UserError, match=f'--verify=8: expected `all` or one of {STEP}'):
    command.list_checkpoints(str(job), '8')


def test_a_checkpoint_without_checksums_says_so(job, capsys, tmp_path):
  random_checkpoint.save(tmp_path, 'C4StandardTiny')
  (tmp_path / jobs.MARK).unlink(missing_ok=True)
  text = shown(capsys, str(tmp_path), 'all')
  assert 'whole, no checksums' in text and f'no {jobs.MARK} says of which' in text
