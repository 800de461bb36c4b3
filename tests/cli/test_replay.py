"""Steps that go wrong: they are told, they end a training, and they can be computed again."""

import json

import numpy as np
import pytest

from tests.support.commands import QUICK_COMPILE, ROOT

# The seventh batch has one word that is no number, and so has each batch after the ninth.
EXPERIMENT = """
import numpy as np
from paxml import experiment_registry
from tests.support import toy_family

class BrokenInput(toy_family.Input):
  def get_next(self):
    batch = super().get_next()
    if not self.reset_for_eval and (self._place == 7 or self._place > 9):
      batch.words[3, 5] = np.nan
    return batch

@experiment_registry.register
class Broken(toy_family.Bags):
  NUM_TRAIN_STEPS = 40
  MAX_SKIPPED_IN_A_ROW = 5

  def datasets(self):
    train, *others = super().datasets()
    train = train.clone()
    train.__dict__['__fn_or_cls__'] = BrokenInput
    return [train, *others]
"""


@pytest.fixture(scope='module')
def broken(commands, tmp_path_factory):
  """Returns what starts a command on the experiment, and the command that trained it."""
  folder = tmp_path_factory.mktemp('broken')
  (folder / 'broken_experiment.py').write_text(EXPERIMENT)
  env = {'PYTHONPATH': f'{folder}:{ROOT}', 'XLA_FLAGS': QUICK_COMPILE}

  def run(*words):
    return commands.run('laser_pax', words, cwd=folder, env=env)

  trained = run('train', '--exp=broken_experiment.Broken', f'--job_log_dir={folder}/job')
  return folder / 'job', run, trained


def records(folder):
  lines = (folder / 'progress.jsonl').read_text().splitlines()
  return {r['step']: r for r in map(json.loads, lines) if r['kind'] == 'train'}


@pytest.mark.slow
def test_skipped_steps_are_told_and_end_the_training(broken):
  job, _, trained = broken
  assert trained.returncode == 2, trained.stderr
  error = trained.stderr
  assert len(error.splitlines()) == 1, error
  assert error.startswith('error: steps 10 to 14 were skipped, as their gradients were not finite')
  assert (
    'the weights are those of step 9. `python -m laser_pax replay JOB_LOG_DIR --step=10`' in error
  )
  assert 'step 7 was skipped: its gradients are not finite (loss nan)' in trained.stdout
  assert records(job)[9]['skipped_steps'] == 1


@pytest.mark.slow
def test_a_step_is_computed_again(broken):
  job, run, _ = broken
  before = sorted(p for p in job.rglob('*') if 'replay' not in p.parts)
  again = run('replay', job, '--step=10')
  assert again.returncode == 0, again.stdout + again.stderr
  assert (
    'step 10: loss not finite, as recorded; so are those of the 1 steps before it' in again.stdout
  )
  folder = job / 'replay' / 'step_00000010'
  measured = json.loads((folder / 'gradients.json').read_text())
  assert 'of 3 gradients have values that are not finite' in again.stdout
  assert sum(values['not_finite'] for values in measured.values()) > 0
  batch = np.load(folder / 'batch.npz')
  assert batch['words'].shape == (64, 40) and np.isnan(batch['words']).sum() == 1
  assert sorted(p for p in job.rglob('*') if 'replay' not in p.parts) == before


@pytest.mark.slow
def test_a_sound_step_too_in_a_folder_of_choice(broken, tmp_path):
  job, run, _ = broken
  again = run('replay', job, '--step=6', f'--out={tmp_path / "out"}')
  assert again.returncode == 0, again.stdout + again.stderr
  assert f'step 6: loss {records(job)[6]["loss"]:.6f}, as recorded' in again.stdout
  measured = json.loads((tmp_path / 'out' / 'gradients.json').read_text())
  assert all(v['gradient_norm'] > 0 and v['not_finite'] == 0 for v in measured.values())


@pytest.mark.slow
def test_what_cannot_be_computed_again_is_refused(broken, tmp_path):
  job, run, _ = broken
  (tmp_path / 'mine').write_text('')
  for words, told in (
    ((job, '--step=0'), 'no whole checkpoint is from before step 0'),
    ((tmp_path, '--step=3'), 'expected a --job_log_dir'),
    ((job, '--step=3', f'--out={tmp_path}'), f'{tmp_path} holds something else: name a new folder'),
    ((job,), 'step'),
  ):
    refused = run('replay', *words)
    assert refused.returncode == 2 and told in refused.stderr, refused.stderr
