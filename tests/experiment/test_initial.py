"""What a run takes from another one that it starts from, what it leaves, and what is refused."""

import shutil

import jax
import numpy as np
import pytest
from praxis import optimizers, pax_fiddle

from laser_pax import configs
from laser_pax.data import sample
from laser_pax.errors import UserError
from laser_pax.experiment import initial, jobs, modes, saved_models
from tests.support import random_checkpoint

JOB = 'laser_pax.configs.C4StandardTiny'


def here(name='C4LaserTiny', **changes):
  experiment = getattr(configs, name)()
  sizes = random_checkpoint.SIZES if 'C4' in name else {}
  for attribute, value in {**sizes, **changes}.items():
    setattr(experiment, attribute, value)
  experiment.check_overrides()
  return experiment


@pytest.fixture(scope='module')
def job(tmp_path_factory):
  """The job of a standard decoder, with a checkpoint of step 7."""
  folder = tmp_path_factory.mktemp('standard')
  random_checkpoint.save(folder, 'C4StandardTiny')
  return folder


@pytest.fixture(scope='module')
def written(job):
  """The whole state of that checkpoint."""
  return random_checkpoint.restore(here('C4StandardTiny'), saved_models.find(str(job)))


def is_equal(tree, other):
  leaves, others = jax.tree.leaves(tree), jax.tree.leaves(other)
  assert len(leaves) == len(others) > 0
  return [np.array_equal(x, y) for x, y in zip(leaves, others, strict=True)]


def test_weights_alone_are_taken(job, written):
  state = random_checkpoint.start(here(INIT_FROM=str(job)), saved_models.find(str(job)))
  assert all(is_equal(state.mdl_vars, written.mdl_vars))
  assert int(state.step) == 0 and not any(np.any(x) for x in jax.tree.leaves(state.opt_states))


def test_all_is_the_optimiser_and_the_step_too(job, written):
  experiment = here(INIT_FROM=str(job), INIT_FROM_TAKES='all')
  state = random_checkpoint.start(experiment, saved_models.find(str(job)))
  assert all(is_equal(state.mdl_vars, written.mdl_vars))
  assert all(is_equal(state.opt_states, written.opt_states))
  assert int(state.step) == random_checkpoint.STEP


def test_moving_averages_are_taken_with_the_weights(tmp_path):
  experiment = here('LibriSpeechStandardConformerTiny', NUM_LAYERS=1, MAX_SECONDS=1.0)
  written = random_checkpoint.save_state(tmp_path, experiment)
  saved = saved_models.find(str(tmp_path))
  state = random_checkpoint.start(experiment, saved)
  averages = saved_models.shapes(saved, 'non_trainable')
  assert averages and len(jax.tree.leaves(state.mdl_vars['non_trainable'])) == len(averages)
  assert all(is_equal(state.mdl_vars, written.mdl_vars))


def test_what_fits_is_accepted_and_told(job):
  experiment = here(INIT_FROM=str(job))
  experiment.check_start()
  saved = experiment.initial()
  arrays = saved_models.shapes(saved)
  numbers = sum(int(np.prod(shape)) for shape in arrays.values())
  said = initial._lines(saved, type(experiment), 'weights')
  assert said == [
    f'starts from the weights of {job}, step 7: {len(arrays)} arrays, {numbers:,} numbers; a run '
    f'of {JOB} (standard attention there, LASER here)',
    'left there: optimiser, step and place in the data; they begin anew',
  ]
  said = initial._lines(saved, configs.C4StandardTiny, 'all')
  assert said[0].endswith(f'numbers), optimiser and step; a run of {JOB}')


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'HIDDEN_DIMS': 128}, r'linear.w is \[4, 32, 64\] there and \[4, 32, 128\] in the experiment'),
    ({'BETA': 'learned'}, r'beta.* is missing there and \[4, .*\] in the experiment'),
    ({'LAYERS_PER_BLOCK': 2}, r'x_layers_0.* is \[4, .*\] there and \[2, .*\] in the experiment'),
    ({'INIT_FROM_TAKES': 'all', 'NUM_TRAIN_STEPS': 7, 'WARMUP_STEPS': 1}, 'is at step 7'),
  ],
)
def test_what_does_not_fit_is_refused(job, changes, words):
  with pytest.raises(UserError, match=words):
    here(INIT_FROM=str(job), **changes).check_start()


def test_the_state_of_another_optimiser_is_refused(job):
  class ByMomentum(configs.C4StandardTiny):
    """A decoder that is trained by momentum."""

    def task(self):
      task_p = super().task()
      task_p.train.learner.optimizer = pax_fiddle.Config(
        optimizers.ShardedSgd, lr_schedule=task_p.train.learner.optimizer.lr_schedule, momentum=0.9
      )
      return task_p

  experiment = ByMomentum()
  for attribute, value in {**random_checkpoint.SIZES, 'INIT_FROM': str(job)}.items():
    setattr(experiment, attribute, value)
  experiment.check_start()
  experiment.INIT_FROM_TAKES = 'all'
  with pytest.raises(UserError, match="another optimiser's state than ByMomentum: opt_states_0"):
    experiment.check_start()


def test_places_without_a_checkpoint_are_refused(job, tmp_path):
  with pytest.raises(UserError, match=r'INIT_FROM=.*/none: there is no such folder'):
    here(INIT_FROM=str(tmp_path / 'none')).check_start()
  with pytest.raises(UserError, match='no finished checkpoint is in'):
    here(INIT_FROM=str(tmp_path)).check_start()
  with pytest.raises(UserError, match='nothing to start from: give --init_from=DIR'):
    here(INIT_FROM_TAKES='all').check_start()
  cut = tmp_path / 'cut'
  shutil.copytree(job, cut)
  (cut / 'checkpoints' / 'checkpoint_00000007' / 'metadata' / 'metadata').unlink()
  with pytest.raises(UserError, match=r'none of the checkpoints \[7\] is whole'):
    here(INIT_FROM=str(cut)).check_start()


def test_another_vocabulary_is_refused(job, tmp_path):
  other = tmp_path / 'other.model'
  # One letter of one piece differs.
  other.write_bytes(sample.VOCAB.read_bytes().replace(b'government', b'governmens', 1))
  data_dir = sample.prepare_sample().data_dir
  experiment = here(INIT_FROM=str(job), VOCAB=str(other), DATA_DIR=data_dir)
  with pytest.raises(UserError, match=rf'is not the vocabulary of .*: give --vocab={job}'):
    experiment.check_start()


@pytest.mark.parametrize(
  ('name', 'family'),
  [('WikipediaLaserBertTiny', 'BertMLM'), ('ImageNetLaserViTTiny', 'ImageNetViT')],
)
def test_another_family_is_refused(job, name, family):
  words = f'holds a run of {JOB}, of the family DecoderLM, and {name} is of {family}'
  with pytest.raises(UserError, match=words):
    here(name, INIT_FROM=str(job)).check_start()


def test_fine_tuning_is_of_the_family_of_its_pre_training():
  assert initial._family(configs.SuperGlueLaserTiny) is initial._family(configs.C4StandardTiny)


def test_a_run_without_a_mark_is_judged_by_its_shapes(job, tmp_path):
  shutil.copytree(job, tmp_path / 'copy')
  (tmp_path / 'copy' / jobs.MARK).unlink()
  here(INIT_FROM=str(tmp_path / 'copy')).check_start()
  with pytest.raises(UserError, match='is no checkpoint of ImageNetLaserViTTiny: lm'):
    here('ImageNetLaserViTTiny', INIT_FROM=str(tmp_path / 'copy')).check_start()


@pytest.mark.parametrize('mode', ['train', 'eval'])
def test_a_run_that_goes_on_needs_no_other(monkeypatch, job, tmp_path, mode):
  monkeypatch.setattr(modes, 'mode', lambda: mode)
  monkeypatch.setattr(modes, 'job_folder', lambda: str(job))
  experiment = here(INIT_FROM=str(tmp_path / 'gone'))
  experiment.check_start()
  assert experiment.executor() is None
  monkeypatch.setattr(modes, 'job_folder', lambda: str(tmp_path))
  if mode == 'train':
    with pytest.raises(UserError, match='gone: there is no such folder'):
      experiment.check_start()
    assert experiment.executor() is not None


def test_a_run_whose_class_was_edited_is_refused_by_the_first_difference(job, monkeypatch):
  """Its mark is the same: the class itself was changed."""
  monkeypatch.setattr(modes, 'starts_anew', lambda: False)
  monkeypatch.setattr(modes, 'job_folder', lambda: str(job))
  here('C4StandardTiny').check_start()
  edited = here('C4StandardTiny', HIDDEN_DIMS=2 * random_checkpoint.SIZES['HIDDEN_DIMS'])
  with pytest.raises(
    UserError, match=r'checkpoint_00000007 is no checkpoint of C4StandardTiny: .* there and \['
  ):
    edited.check_start()
