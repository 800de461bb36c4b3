"""Numbers that do not fit are refused, and each message has a fix that fits."""

import re

import pytest
from absl import flags

from laser_pax import configs
from laser_pax.errors import UserError
from laser_pax.experiment import checks


@pytest.mark.parametrize(
  ('check', 'arguments', 'fix'),
  [
    (checks.check_heads, (1024, 7, 128), 'NUM_HEADS = 8'),
    (checks.check_heads, (1000, 8, 128), '896 or 1024'),
    (checks.check_mesh, ([1, 8], {}), 'three positive numbers'),
    (checks.check_mesh, ([1, 8, 0], {}), 'three positive numbers'),
    (checks.check_mesh, ([1, 1, 3], {'NUM_HEADS': 8}), '6 or 9'),
    (checks.check_mesh, ([1, 3, 1], {'MODEL_DIMS': 256}), '255 or 258'),
    (checks.check_devices, ([1, 64, 1], 8), r'\[1, 8, 1\]'),
    (checks.check_devices, ([1, 64, 4], 128), r'\[1, 32, 4\]'),
    (checks.check_batch, (8, 3, 1), '6 or 9'),
    (checks.check_batch, (2, 4, 1), 'set it to 4'),
    (checks.check_batch, (12, 4, 8), '8 or 16'),
    (checks.check_schedule, (60, 20), 'WARMUP_STEPS = 2'),
    (checks.check_block, (3, 4, True), r'\[1, 2, 4\]'),
    (checks.check_block, (0, 4, True), r'\[1, 2, 4\]'),
    (checks.check_block, (2, 4, False), 'USE_REPEATED_LAYER'),
  ],
)
def test_refuses_with_a_fix(check, arguments, fix):
  with pytest.raises(UserError, match=fix):
    check(*arguments)


@pytest.mark.parametrize(
  ('check', 'arguments'),
  [
    (checks.check_heads, (1024, 8, 128)),
    (checks.check_mesh, ([2, 4, 2], {'MODEL_DIMS': 256, 'NUM_HEADS': 4})),
    (checks.check_devices, ([2, 4, 2], 16)),
    (checks.check_batch, (1024, 256, 64)),
    (checks.check_schedule, (0, 1)),
    (checks.check_block, (2, 4, True)),
    (checks.check_block, (1, 4, False)),
  ],
)
def test_accepts_what_fits(check, arguments):
  check(*arguments)


def test_the_fix_for_a_batch_fits():
  with pytest.raises(UserError) as e:
    checks.check_batch(100, 48, 5)
  for size in re.search(r'set it to (\d+)', str(e.value)).groups():
    checks.check_batch(int(size), 48, 5)


def test_an_override_of_no_attribute_is_refused_with_near_names():
  experiment = configs.C4LaserTiny()
  experiment.NUM_LAYER = 3
  with pytest.raises(UserError, match='NUM_LAYERS'):
    experiment.validate()


def test_a_misspelt_attribute_of_a_subclass_is_refused_but_a_new_one_is_not():
  class Mine(configs.C4LaserTiny):
    MY_OWN_CONSTANT = 1

  Mine().validate()

  class Misspelt(configs.C4LaserTiny):
    NUM_LAYER = 9

  with pytest.raises(UserError, match='NUM_LAYER, which nothing reads; did you mean NUM_LAYERS'):
    Misspelt().validate()


@pytest.fixture
def job_folder(tmp_path):
  """The folder of paxml's --job_log_dir."""
  from paxml import main  # noqa: F401  It defines the flag.

  flag = flags.FLAGS['job_log_dir']
  before, flag.value = flag.value, tmp_path
  yield tmp_path
  flag.value = before


def test_a_folder_that_paxml_began_is_kept_for_its_experiment(job_folder):
  configs.C4LaserTiny().validate()
  assert (job_folder / 'experiment.txt').read_text() == 'laser_pax.configs.C4LaserTiny\n'
  (job_folder / 'checkpoints').mkdir()
  configs.C4LaserTiny().validate()
  with pytest.raises(UserError, match='holds a run of laser_pax.configs.C4LaserTiny'):
    configs.C4StandardTiny().validate()
  assert (job_folder / 'experiment.txt').read_text() == 'laser_pax.configs.C4LaserTiny\n'


def test_an_override_changes_the_model():
  experiment = configs.C4LaserTiny()
  experiment.NUM_LAYERS = 3
  experiment.validate()
  assert experiment.task().model.lm_tpl.stacked_transformer_tpl.x_times == 3


def test_a_large_experiment_without_accelerators_is_refused_before_anything_starts():
  with pytest.raises(UserError, match='planned for v5p-256chips; this job has 1 CPU'):
    configs.C4Laser2B().validate()


def test_a_mesh_for_other_devices_is_refused_before_anything_starts():
  experiment = configs.C4LaserTiny()
  experiment.GLOBAL_BATCH_SIZE, experiment.ICI_MESH_SHAPE = 256, [256, 1, 1]
  with pytest.raises(UserError, match='needs 256 devices; this job has 1'):
    experiment.validate()


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'NUM_HEADS': 3}, 'NUM_HEADS'),
    ({'GLOBAL_BATCH_SIZE': 0}, 'GLOBAL_BATCH_SIZE'),
    ({'WARMUP_STEPS': 10_000}, 'WARMUP_STEPS'),
    ({'VOCAB_SIZE': 5_000}, 'VOCAB_SIZE'),
    ({'DATA_DIR': 'nowhere'}, 'nowhere'),
  ],
)
def test_a_bad_combination_is_refused_at_once(overrides, message):
  experiment = configs.C4LaserTiny()
  for name, value in overrides.items():
    setattr(experiment, name, value)
  with pytest.raises(UserError, match=message):
    experiment.validate()
