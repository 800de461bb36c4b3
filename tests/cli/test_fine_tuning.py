"""A fine-tuning starts from its pre-training, shows T5's metrics, and refuses other checkpoints."""

import json

import jax
import numpy as np
import pytest
from paxml import base_experiment

from laser_pax import configs
from laser_pax.cli.train import Job, _check_overrides
from laser_pax.data import sample
from laser_pax.errors import UserError
from laser_pax.evaluation.restored import Restored
from laser_pax.experiment import saved_models
from tests.support import small_superglue
from tests.support.commands import QUICK_COMPILE

SIZES = {'NUM_LAYERS': 1, 'MODEL_DIMS': 32, 'DIMS_PER_HEAD': 16, 'HIDDEN_DIMS': 32}
PRETRAINING = {'NUM_TRAIN_STEPS': 2, 'WARMUP_STEPS': 1, 'SEQ_LEN': 16, 'EVAL_INTERVAL_STEPS': 0}
TUNING = {'INPUTS_LEN': 24, 'TARGETS_LEN': 4, 'NUM_TRAIN_STEPS': 3, 'EVAL_INTERVAL_STEPS': 3}
TUNING |= {'TASK': 'cb', 'CHECKPOINT_EVERY_N_STEPS': 3}


@pytest.fixture(scope='module')
def train(commands):
  """Returns a function that trains an experiment with overrides."""

  def run(name, folder, changes, *flags, **env):
    overrides = [f'--fdl.{attribute}={value}' for attribute, value in changes.items()]
    words = ['train', f'--fdl_config={name}', f'--job_log_dir={folder}', *flags, *overrides]
    return commands.run('laser_pax', words, env={'XLA_FLAGS': QUICK_COMPILE, **env})

  return run


@pytest.fixture(scope='module')
def pretrained(train, tmp_path_factory):
  """The job of a small pre-training."""
  folder = tmp_path_factory.mktemp('pretrained')
  result = train('C4LaserTiny', folder, SIZES | PRETRAINING)
  assert result.returncode == 0, result.stdout + result.stderr
  return folder


@pytest.fixture(scope='module')
def tuned(train, pretrained, tmp_path_factory):
  """The job of a small fine-tuning, and what it printed."""
  folder = tmp_path_factory.mktemp('tuned')
  flags = f'--data={small_superglue.prepared()}', f'--init_from={pretrained}'
  result = train('SuperGlueLaserTiny', folder, SIZES | TUNING, *flags)
  assert result.returncode == 0, result.stdout + result.stderr
  return folder, result.stdout


def weights(name, changes, job, step):
  experiment = getattr(configs, name)()
  for attribute, value in {**changes, 'VOCAB': str(sample.VOCAB)}.items():
    setattr(experiment, attribute, value)
  saved = saved_models.find(str(job / 'checkpoints' / f'checkpoint_{step:08d}'))
  return Restored(experiment, saved).weights


@pytest.mark.slow
def test_the_first_weights_are_those_of_the_pre_training(pretrained, tuned):
  expected = weights('C4LaserTiny', SIZES | PRETRAINING, pretrained, 2)
  actual = weights('SuperGlueLaserTiny', SIZES | TUNING, tuned[0], 0)
  jax.tree.map(np.testing.assert_array_equal, dict(expected), dict(actual))
  changed = weights('SuperGlueLaserTiny', SIZES | TUNING, tuned[0], 3)
  assert not np.array_equal(changed['lm.softmax.logits_ffn.linear.w'],
                            actual['lm.softmax.logits_ffn.linear.w'])  # fmt: skip


@pytest.mark.slow
def test_metrics_are_t5s_of_what_was_decoded(tuned):
  folder, printed = tuned
  assert 'step 3: cb_validation score' in printed and 'step 3: cb_train score' in printed
  lines = (folder / 'progress.jsonl').read_text().splitlines()
  scores = {r['split']: r['score'] for r in map(json.loads, lines) if r['kind'] == 'eval'}
  classes = ('entailment', 'contradiction', 'neutral')
  for split, rows in {'cb_train': 7, 'cb_validation': 5}.items():
    (file,) = folder.glob(f'decoder_out/{split}/decoder_out_3_*.jsonl')
    decoded = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(decoded) == rows
    # A decoding loop that jax had read back from its folder of programs would give zeros alone.
    assert all(any(_value(x)['decoded_ids']) for x in decoded)
    answers = [x.get('decoded_substr', '') for x in map(_value, decoded)]
    targets = [classes[x['seqio_targets']] for x in map(_value, decoded)]
    right = [a == t for a, t in zip(answers, targets, strict=True)]
    (metrics,) = folder.glob(f'decoder_out/{split}/*-metrics.jsonl')
    written = json.loads(metrics.read_text().splitlines()[-1])
    assert written['accuracy'] == pytest.approx(100 * np.mean(right))
    assert scores[split] == pytest.approx((written['accuracy'] + written['mean_3class_f1']) / 2)


def _value(line):
  return line[1] if isinstance(line, list) else line.get('value', line)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'changes', 'env', 'words'),
  [
    ('SuperGlueStandardTiny', {}, {}, 'goes on from one of laser_pax.configs.C4StandardTiny'),
    (
      'SuperGlueLaserTiny',
      {'HIDDEN_DIMS': 64},
      {},
      'ffn_layer1.linear.w is [1, 32, 32] there and [1, 32, 64] in the experiment',
    ),
    (
      'SuperGlueLaserTiny',
      {'ATTEN_LOGIT_CAP': 0},
      {},
      'with ATTEN_LOGIT_CAP=50.0, but SuperGlueLaserTiny has ATTEN_LOGIT_CAP=0.0: give',
    ),
    ('SuperGlueLaserTiny', {}, {'LASER_PAX_VOCAB': 'other'}, 'is not the vocabulary of'),
  ],
)
def test_other_checkpoints_are_refused(train, pretrained, tmp_path, name, changes, env, words):
  if env:
    env = {'LASER_PAX_VOCAB': str(tmp_path / 'other.model')}
    model = sample.VOCAB.read_bytes()
    # One letter of one piece differs.
    (tmp_path / 'other.model').write_bytes(model.replace(b'government', b'governmens', 1))
  flags = f'--data={small_superglue.prepared()}', f'--init_from={pretrained}'
  result = train(name, tmp_path / 'job', SIZES | TUNING | changes, *flags, **env)
  assert result.returncode == 2
  (error,) = (line for line in result.stderr.splitlines() if line.startswith('error: '))
  assert words in error
  assert not (tmp_path / 'job' / 'checkpoints').exists()


def test_init_from_is_for_experiments_of_this_package():
  class OfPax(base_experiment.BaseExperiment):
    """An experiment that has nothing of ours."""

  job = Job(
    experiment='other.OfPax',
    selector='exp',
    folder='runs/other',
    flags=(),
    attributes={'INIT_FROM': 'runs/c4'},
    profile=None,
  )
  with pytest.raises(UserError, match=r'other.OfPax has no INIT_FROM, it starts anew'):
    _check_overrides(OfPax, job)
