"""The SuperGLUE experiments: steps by rule, what is refused, and the places of data and weights."""

import contextlib
import functools
import json

import pytest
from etils import epath

from laser_pax import configs
from laser_pax.data import sample
from laser_pax.errors import UserError
from laser_pax.experiment import equal_models, jobs, modes, saved_models
from laser_pax.experiment.evaluation import MeanProgram
from laser_pax.experiment.superglue import SuperGlueLM
from tests.support import small_superglue


def planned(name='SuperGlueLaser2B', **changes):
  experiment = getattr(configs, name)().on()
  for attribute, value in changes.items():
    setattr(experiment, attribute, value)
  return experiment


def here(**changes):
  """Returns a Tiny experiment on the small rows of all tasks."""
  experiment = configs.SuperGlueLaserTiny()
  changes = {'TASK': 'mixture', 'DATA_DIR': small_superglue.prepared(), **changes}
  for attribute, value in changes.items():
    setattr(experiment, attribute, value)
  experiment.check_overrides()
  return experiment


@pytest.mark.parametrize(
  ('changes', 'steps'),
  [
    ({}, 14_403),  # 10 x (185,673 - 1,322) / 128, rounded up: T5's mixture without DPR.
    ({'TASK': 'copa'}, 32),  # 4,000 / 128 = 31.25
    ({'TASK': 'boolq', 'GLOBAL_BATCH_SIZE': 64}, 1_473),
    ({'TASK': 'wsc', 'EPOCHS': 3, 'GLOBAL_BATCH_SIZE': 64}, 13),
    ({'NUM_TRAIN_STEPS': 100}, 100),
  ],
)
def test_steps_follow_from_the_epochs_unless_they_are_set(changes, steps):
  experiment = planned(**changes)
  experiment.check_overrides()
  assert steps == experiment.NUM_TRAIN_STEPS
  assert steps // 10 == experiment.WARMUP_STEPS
  assert max(1, round(steps / experiment.EPOCHS)) == experiment.EVAL_INTERVAL_STEPS
  assert experiment.task().train.num_train_steps == steps


def test_other_rows_are_counted():
  # Seven rows each. MultiRC has 2 or 4 answers, ReCoRD 1 or 2, and of WSC's three labels are true.
  examples = dict.fromkeys(('boolq', 'cb', 'copa', 'rte', 'wic'), 7)
  examples |= {'multirc': 4 * 2 + 3 * 4, 'record': 4 * 1 + 3 * 2, 'wsc': 3}
  experiment = here(GLOBAL_BATCH_SIZE=8)
  assert experiment.examples() == examples
  assert -(-10 * sum(examples.values()) // 8) == experiment.NUM_TRAIN_STEPS
  assert planned('SuperGlueLaserTiny').examples() == {'boolq': sample.QUESTIONS}


def test_a_subclass_may_set_what_follows_from_others():
  class Mine(SuperGlueLM, configs.C4LaserTiny):
    NUM_TRAIN_STEPS = 7
    INPUTS_LEN, TARGETS_LEN = 20, 4

  assert (Mine().NUM_TRAIN_STEPS, Mine().SEQ_LEN, Mine().WARMUP_STEPS) == (7, 24, 0)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'TASK': 'mnli'}, "TASK = 'mnli': expected mixture or one of boolq, cb"),
    ({'EPOCHS': 0}, 'EPOCHS must be at least 1'),
    ({'TARGETS_LEN': 1}, 'TARGETS_LEN must be at least 2'),
    ({'SEQ_LEN': 512}, 'SEQ_LEN = 512 must be INPUTS_LEN . TARGETS_LEN = 640'),
    ({'EVAL_SPLITS': ('test',)}, r"EVAL_SPLITS = .* expected \('validation',\)"),
  ],
)
def test_what_does_not_fit_is_refused(changes, words):
  with pytest.raises(UserError, match=words):
    planned(**changes).check()


def test_inputs_of_all_tasks_and_their_mean():
  experiment = here()
  names = [config.name for config in experiment.datasets()]
  tasks = list(experiment.tasks())
  splits = [f'{task}_{split}' for split in ('train', 'validation') for task in tasks]
  assert names == ['train', *splits]
  assert [config.name for config in experiment.decode_datasets()] == splits
  *programs, mean = experiment.eval_programs()
  assert isinstance(mean, MeanProgram) and mean.eval_input.name == experiment.METRIC.split == 'mean'
  for number, program in enumerate(programs):
    program.scores[5] = 100.0 * (number - len(tasks))
  assert mean._tasks == programs[len(tasks) :]
  assert here(TASK='cb').METRIC.split == 'cb_validation'
  assert len(here(TASK='cb').eval_programs()) == 2


def test_the_mean_has_scores_that_an_earlier_process_wrote(tmp_path):
  """An evaluation that SIGTERM cut off is repeated without the tasks that had ended."""
  folder = tmp_path / 'decoder_out' / 'cb_validation'
  folder.mkdir(parents=True)
  lines = [{'step': 4, 'f1': 1.0}, {'step': 5, 'f1': 60.0, 'accuracy': 80.0}]
  (folder / 'cb-metrics.jsonl').write_text(''.join(f'{json.dumps(x)}\n' for x in lines))
  program = here(TASK='cb').eval_programs()[1]
  program._job_log_dir, program._name = epath.Path(tmp_path), 'cb_validation'
  assert program.score(5) == 70.0 and program.score(6) is None


def test_the_data_of_each_task_are_needed(tmp_path):
  with pytest.raises(UserError, match=r'looked for super_glue/boolq/1.0.2.* prepare superglue'):
    here(DATA_DIR=str(tmp_path)).check_data()


def test_a_checkpoint_to_start_from_is_needed(monkeypatch, tmp_path):
  words = r'nothing to start from: .*LASER_PAX_INIT_FROM.* run of laser_pax.configs.C4LaserTiny'
  with pytest.raises(UserError, match=words):
    here().check_start()
  monkeypatch.setenv('LASER_PAX_INIT_FROM', str(tmp_path / 'none'))
  with pytest.raises(UserError, match=r'LASER_PAX_INIT_FROM=.*/none: there is no such folder'):
    here().check_start()
  with pytest.raises(UserError, match=r'INIT_FROM=.*: no finished checkpoint is in'):
    here(INIT_FROM=str(tmp_path)).check_start()


@pytest.mark.parametrize(('mode', 'steps'), [('train', [0]), ('eval', [])])
def test_a_run_that_has_begun_needs_no_pre_training(monkeypatch, tmp_path, mode, steps):
  monkeypatch.setattr(modes, 'mode', lambda: mode)
  monkeypatch.setattr(modes, 'job_folder', lambda: str(tmp_path))
  (tmp_path / 'vocab.model').write_bytes(sample.VOCAB.read_bytes())
  experiment = here(INIT_FROM=str(tmp_path / 'gone'))
  if mode == 'train':
    with pytest.raises(UserError, match='gone: there is no such folder'):
      experiment.check_start()
  for step in steps:
    saved = saved_models.Saved(str(tmp_path), step, None).folder
    for part, text in {'state': 'an array', 'metadata': '{}'}.items():
      (saved / part).mkdir(parents=True)
      (saved / part / part).write_text(text)
  monkeypatch.setattr(experiment, 'check_own', lambda folder: None)  # This one has no arrays.
  experiment.check_data()
  experiment.check_start()
  assert experiment.vocab() == str(tmp_path / 'vocab.model')
  assert experiment.executor() is None  # Nothing is to be loaded.


def test_an_evaluation_beside_the_training_closes_its_programs(monkeypatch):
  closed = []
  monkeypatch.setattr(modes, 'mode', lambda: 'eval')
  monkeypatch.setattr(modes, 'close_at_exit', closed.append)
  programs = here().eval_programs()
  assert closed == [program.shutdown for program in programs] and len(closed) == 17


def test_what_is_closed_at_the_end_is_closed_once_and_in_reverse(monkeypatch):
  closed, at_exit = [], []
  monkeypatch.setattr(modes.atexit, 'register', at_exit.append)
  for name in 'ab':
    modes.close_at_exit(functools.partial(closed.append, name))
  modes.close_programs()
  for close in at_exit:
    close()
  assert closed == ['b', 'a']


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'ATTEN_LOGIT_CAP': 0.0}, None),
    (
      {'FPROP_DTYPE': 'bfloat16', 'NUMERICS': 'paper', 'ATTEN_LOGIT_CAP': 0.0},
      'SuperGlueLaserTiny --fdl.FPROP_DTYPE=float32 --fdl.NUMERICS=exact$',
    ),
  ],
)
def test_the_model_is_that_of_the_run_of_the_pre_training(changes, words):
  trained = {'ATTEN_LOGIT_CAP': 0, 'NUM_TRAIN_STEPS': 9, 'WARMUP_STEPS': 2, 'DROPOUT_PROB': 0.1}
  run = jobs.Run('laser_pax.configs.C4LaserTiny', {**trained, 'GLOBAL_BATCH_SIZE': 6})
  saved = saved_models.Saved('job', 1, run)
  refused = pytest.raises(UserError, match=words) if words else contextlib.nullcontext()
  with refused:
    equal_models.check(here(**changes), configs.C4LaserTiny, saved, own=vars(SuperGlueLM))


def test_the_model_is_that_of_the_pre_training_and_decodes_until_the_eos():
  experiment = planned('SuperGlueLaserTiny')
  assert experiment.pretrained() is configs.C4LaserTiny
  assert planned().pretrained() is configs.C4Laser2B
  own, theirs = experiment.task().model, configs.C4LaserTiny().on().task().model
  assert own.lm_tpl == theirs.lm_tpl
  decoder = own.decoder_tpl
  assert (decoder.max_decode_steps, decoder.eos_id, decoder.fprop_for_prefix) == (16, 1, True)
