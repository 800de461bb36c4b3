"""The Conformer experiments: AlgoPerf's counts, what is refused, and what is never seen."""

import math
import shutil

import pytest

from laser_pax import configs
from laser_pax.costs import facts
from laser_pax.errors import UserError
from laser_pax.experiment import family
from tests.support import small_speech


@pytest.mark.parametrize('kind', ['Standard', 'Laser'])
def test_the_model_is_algoperfs_to_the_weight(kind):
  f = facts.facts(getattr(configs, f'LibriSpeech{kind}Conformer')().on())
  assert f.parameters == 32_321_792
  counts = {'subsampling': 0, 'fflayer': 0, 'trans_atten': 0, 'lconv': 0, 'final_ln': 0}
  for v in f.variables:
    if v.name.startswith('params.') and '.encoder.' in f'.{v.name}':
      (part,) = (name for name in counts if name in v.name)
      counts[part] += math.prod(v.shape)
  assert counts == {
    'subsampling': 7_608_320,
    'fflayer': 4 * 2 * 2_100_736,
    'trans_atten': 4 * 1_051_712,
    'lconv': 4 * 792_576,
    'final_ln': 4 * 1_024,
  }
  statistics = [v for v in f.variables if v.name.startswith('non_trainable.')]
  assert sum(math.prod(v.shape) for v in statistics) == 4_096


def test_a_step_of_the_full_size_has_1998_frames_and_500_positions():
  experiment = configs.LibriSpeechLaserConformer().on()
  assert experiment.units_per_step() == 256 * 1_998
  assert experiment.sizes().seq_len == 500
  # 6 operations for each product: the convolutions have more of them than the blocks.
  sizes = experiment.sizes()
  convolutions = 9 * 512 * (999 * 40 + 512 * 500 * 20)
  rest = 500 * (10_240 * 512 + 512 * 1_024 + 4 * sizes.layer_weights())
  assert sizes.multiplications() == pytest.approx(convolutions + rest, rel=1e-3)


@pytest.mark.parametrize('pod', ['v5p-4chips', 'v5p-2x64chips', 'cpu'])
def test_each_chip_has_all_weights(pod):
  experiment = configs.LibriSpeechLaserConformer().on(pod)
  assert experiment.mesh() == [experiment.pod().chips, 1, 1]


@pytest.mark.parametrize(
  ('changed', 'words'),
  [
    ({'ICI_MESH_SHAPE': [2, 2, 1]}, 'lie whole on each chip'),
    ({'HIDDEN_DIMS': 700}, 'must be a multiple of MODEL_DIMS = 512: set it to 2048'),
    ({'NUM_HEADS': 7}, 'MODEL_DIMS'),
    ({'MAX_LABELS': 0}, 'MAX_LABELS must be at least 1'),
    ({'MICRO_BATCHES': 2}, 'batch norm is over the whole batch'),
    ({'WARMUP_STEPS': 60_000}, 'WARMUP_STEPS'),
  ],
)
def test_sizes_that_do_not_fit_are_refused(changed, words):
  experiment = configs.LibriSpeechLaserConformer().on()
  for name, value in changed.items():
    setattr(experiment, name, value)
  with pytest.raises(UserError, match=words):
    experiment.check()


def test_data_and_vocabulary_are_checked(tmp_path):
  experiment = configs.LibriSpeechLaserConformer().on()
  experiment.DATA_DIR, experiment.VOCAB = small_speech.prepared()
  with pytest.raises(UserError, match='lacks dev_other, train_clean360, train_other500'):
    experiment.check_data()
  experiment.TRAIN_SPLITS, experiment.VALIDATION_SPLITS = ('train_clean100',), ('dev_clean',)
  with pytest.raises(UserError, match=f'set VOCAB_SIZE = {small_speech.VOCAB_SIZE}'):
    experiment.check_data()
  experiment.VOCAB_SIZE = small_speech.VOCAB_SIZE
  experiment.check_data()
  experiment.MAX_SECONDS = 0.1
  with pytest.raises(UserError, match='none of the first 5 utterances has at most MAX_SECONDS'):
    experiment.check_data()
  experiment.MAX_SECONDS = 20.0
  names = [config.name for config in experiment.datasets()]
  assert names == ['train', 'validation']  # There is no split to test on.
  experiment.DATA_DIR = str(tmp_path)
  with pytest.raises(UserError, match='make it with: python -m laser_pax prepare librispeech'):
    experiment.check_data()


@pytest.mark.parametrize('use', ['VALIDATION_SPLITS', 'TEST_SPLITS'])
def test_a_file_that_is_cut_or_missing_is_refused(tmp_path, use):
  data_dir, vocab = small_speech.prepared()
  data_dir = shutil.copytree(data_dir, tmp_path / 'data')
  experiment = configs.LibriSpeechLaserConformerTiny().on()
  experiment.DATA_DIR, experiment.VOCAB = str(data_dir), vocab
  experiment.VOCAB_SIZE = small_speech.VOCAB_SIZE
  experiment.MAX_LABELS = 256
  experiment.TRAIN_SPLITS = experiment.VALIDATION_SPLITS = ('train_clean100',)
  setattr(experiment, use, ('dev_clean',))
  experiment.check_data()
  (file,) = data_dir.glob('librispeech/default/2.1.1/librispeech-dev_clean.tfrecord*')
  file.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(UserError, match='dev_clean.tfrecord.*: cut short'):
    experiment.check_data()
  file.unlink()
  with pytest.raises(UserError, match='dev_clean.tfrecord.*: missing, .*prepare librispeech'):
    experiment.check_data()


def test_silence_is_what_knows_nothing():
  assert configs.LibriSpeechLaserConformer().chance() == family.Chance('silence', 1.0)
