"""benchmarks/replication.py: tables are means of the lines, sizes those of the models."""

import dataclasses
import json
import math
import statistics

import pytest

from benchmarks import page, replication
from laser_pax.cli import experiments
from laser_pax.costs import facts
from laser_pax.sweeps import outcomes, plans, spaces
from laser_pax.sweeps.outcomes import Outcome

RUNS = plans.every(spaces.read(replication.SPACE))
GAP = {'standard': 0.0, 'LASER': -0.01}


def outcome(run, parameters):
  attention = replication.ATTENTIONS[run.experiment]
  loss = 20 * parameters**-0.1 + GAP[attention] + 0.002 * run.seed
  return Outcome(
    point=run.point, experiment=run.experiment, overrides=run.overrides, seed=run.seed,
    status='complete', metric='loss', figure=loss, train_loss=loss, steps=1_200, units=9, unit='x',
    seconds=60.0, versions={},
  )  # fmt: skip


def measured(run):
  names = ('below 0.001', 'below 1e-07', 'std of V', 'gradient of logits, LASER over standard')
  return {
    'run': run.name,
    'train_loss': {'20': 5.0, '40': 4.0},
    'evaluations': {'40': 4.5},
    'gradients': dict.fromkeys(('logits', 'query', 'key', 'value'), 1.5),
    'layers': dict.fromkeys(names, [0.25, 0.75]),
  }


@pytest.fixture
def trained(tmp_path, monkeypatch):
  """A whole replication whose figures are made up, in a folder of its own."""
  for name in ('OUTCOMES', 'MEASURED', 'PAGE', 'PICTURE'):
    file = tmp_path / getattr(replication, name).name
    if name == 'PAGE':
      file.write_text(replication.PAGE.read_text())
    monkeypatch.setattr(replication, name, file)
  for run in RUNS:
    size = replication.Trained(run, None, {}).parameters
    outcomes.append(replication.OUTCOMES, outcome(run, size))
    with replication.MEASURED.open('a') as file:
      file.write(json.dumps(measured(run)) + '\n')
  return replication.read_trained()


def test_sizes_are_those_of_the_models():
  for run in RUNS[::6]:
    model = facts.facts(plans.resolved(run, experiments.load(run.experiment)))
    embedding = sum(math.prod(v.shape) for v in model.variables if 'softmax' in v.name)
    own = replication.Trained(run, None, {}).parameters
    # Beyond the matrices there are norms, biases and scales of single columns.
    assert own < model.parameters - embedding < 1.02 * own


def test_tables_are_means_over_seeds(trained):
  replication.write_page(trained)
  text = replication.PAGE.read_text()
  table = text.partition('<!-- losses -->')[2].partition('<!-- end')[0]
  rows = [line.strip('| ').split(' | ') for line in table.splitlines() if line.startswith('| ')]
  assert [row[0] for row in rows[2:]] == ['0.52M', '1.47M', '4.19M']
  smallest = [x for x in trained if x.parameters < 1e6 and x.attention == 'standard']
  mean = statistics.fmean(x.outcome.figure for x in smallest)
  assert rows[2][1] == f'{mean:.4f} ± 0.0012'
  assert rows[2][3:] == ['-0.0100 ± 0.0000', '3 of 3']
  assert '| 0.52M | LASER | 0.500 | 0.500 | 0.50 | 1.500 | 1.500 | 1.500 | 1.500 |' in text
  assert 'standard: alpha | 0.1 [' in text and replication.PICTURE.stat().st_size > 10_000


def test_a_run_without_both_its_lines_is_left_out(trained):
  lines = replication.MEASURED.read_text().splitlines()
  replication.MEASURED.write_text('\n'.join(lines[1:]) + '\n')
  assert [x.run for x in replication.read_trained()] == [x.run for x in trained[1:]]


def test_the_page_is_that_of_the_lines(tmp_path, monkeypatch):
  """What is published is what the kept lines give."""
  page_ = tmp_path / 'results.md'
  page_.write_text(replication.PAGE.read_text())
  monkeypatch.setattr(replication, 'PAGE', page_)
  monkeypatch.setattr(replication, 'PICTURE', tmp_path / 'picture.png')
  replication.write_page(replication.read_trained())
  assert page_.read_text() == (page.DOCS / 'results.md').read_text()


def test_a_loss_within_the_tolerance_is_the_published_one(trained, monkeypatch, capsys):
  published = next(x for x in trained if x.attention == 'LASER').outcome.figure
  monkeypatch.setattr(replication.subprocess, 'run', lambda *_, **__: None)
  for distance, holds in ((9e-4, True), (2e-3, False)):
    again = dataclasses.make_dataclass('Run', ['last'])(published + distance)
    monkeypatch.setattr(replication.runs, 'read_run', lambda *_, again=again: again)
    assert replication.check() is holds
    assert f'{published:.6f}' in capsys.readouterr().out
