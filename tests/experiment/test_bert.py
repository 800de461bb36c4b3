"""BERT: padding and neighbours in a row change nothing; its data are checked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from praxis import base_layer

from laser_pax import configs
from laser_pax.configs import WikipediaLaserBertTiny, WikipediaStandardBertTiny
from laser_pax.data import text_mlm
from laser_pax.errors import UserError
from laser_pax.ops import devices
from tests.support import small_records
from tests.support.programs import compiled

PAIR = [WikipediaStandardBertTiny, WikipediaLaserBertTiny]


def rows(rng, lengths, seq_len):
  """Returns a batch of one row that packs random documents of these lengths."""
  row = {name: np.zeros(seq_len, spec.dtype) for name, spec in text_mlm.batch_specs(1, 1).items()}
  place = 0
  for number, length in enumerate(lengths, 1):
    own = slice(place, place + length)
    row['labels'][own] = rng.integers(104, 4096, length)
    row['masked_ids'][own] = np.where(rng.random(length) < 0.2, 103, row['labels'][own])
    row['masked_pos'][own] = row['masked_ids'][own] == 103
    row['segment_ids'][own], row['segment_pos'][own] = number, np.arange(length)
    place += length
  row['paddings'] = (row['segment_ids'] == 0).astype(np.float32)
  return base_layer.NestedMap({name: jnp.asarray(x)[None] for name, x in row.items()})


@pytest.mark.parametrize('cls', PAIR)
@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
def test_neighbours_and_padding_change_nothing(cls, platform, request):
  """The second document of a row alone, and the same document in a row of its own."""
  if platform == 'tpu':
    request.getfixturevalue('interpreted_kernels')
  task = cls().on().task().Instantiate()
  rng = np.random.default_rng(0)
  packed = rows(rng, [40, 60], 128)
  alone = packed.Transform(lambda x: jnp.roll(jnp.where(packed.segment_ids == 2, x, 0), -40, 1))
  alone.paddings = (alone.segment_ids == 0).astype(jnp.float32)
  other = packed.Transform(lambda x: x)
  other.masked_ids = jnp.where(packed.segment_ids == 1, 105, packed.masked_ids)
  other.masked_ids = jnp.where(packed.segment_ids == 0, 7, other.masked_ids)
  with base_layer.JaxContext.new_context(hparams=base_layer.JaxContext.HParams(do_eval=True)):
    first = compiled(task.model.init)(jax.random.PRNGKey(0), packed)

    @compiled
    def losses(variables, batch):
      predictions = task.model.apply(variables, batch, method=task.model.compute_predictions)
      return predictions.per_example_xent[0]

    def all_losses(attention):
      variables = jax.tree_util.tree_map_with_path(
        lambda path, x: x * (attention if 'self_attention' in str(path) else 3), first
      )
      return [np.asarray(losses(variables, batch)) for batch in (packed, alone, other)]

    # LASER's shift of a column is 0 where values are small beside 1. Otherwise it depends on the
    # least of the whole row, and a neighbour may change how a result is rounded.
    wide_whole, _, wide_changed = all_losses(attention=3)
    whole, own, changed = all_losses(attention=0.4)
  np.testing.assert_allclose(whole[40:100], own[:60], rtol=2e-4, atol=2e-4)
  np.testing.assert_array_equal(whole[40:100], changed[40:100])
  np.testing.assert_allclose(wide_whole[40:100], wide_changed[40:100], rtol=1e-5)
  assert np.abs(whole[:40] - changed[:40]).max() > 0.1
  assert devices.platform() == platform


@pytest.mark.parametrize('cls', PAIR)
def test_the_batch_is_as_specified(cls, tmp_path):
  experiment = cls().on()
  experiment.DATA_DIR, experiment.VOCAB_SIZE = str(small_records.write(tmp_path)), 300
  train, evaluation = (x.Instantiate() for x in experiment.datasets())
  specs = experiment.input_specs(experiment.GLOBAL_BATCH_SIZE)
  batch = train.get_next_padded()
  assert {k: (v.shape, v.dtype) for k, v in specs.items()} == {
    k: (batch[k].shape, batch[k].dtype) for k in specs
  }
  assert evaluation.get_next_padded().labels.shape[1] == experiment.SEQ_LEN


def test_a_vocabulary_of_another_size_is_refused(tmp_path):
  experiment = configs.WikipediaLaserBert2B().on()
  experiment.DATA_DIR = str(small_records.write(tmp_path))
  experiment.check_data()  # MLPerf's own records have no vocabulary beside them.
  experiment.VOCAB_SIZE = 200
  with pytest.raises(UserError, match='eval_10k has the token 29., .*VOCAB_SIZE = 200'):
    experiment.check_data()
  experiment.VOCAB_SIZE = 30_522
  from laser_pax.data import sample

  (tmp_path / 'vocab.txt').write_text(sample.WORDPIECE.read_text())
  with pytest.raises(UserError, match='has 4096 pieces.*VOCAB_SIZE = 30522'):
    experiment.check_data()


@pytest.mark.parametrize('name', ['part-00001-of-00002', 'eval_10k'])
def test_records_that_are_cut_short_are_refused(tmp_path, name):
  experiment = WikipediaLaserBertTiny().on()
  experiment.DATA_DIR = str(small_records.write(tmp_path))
  data = (tmp_path / name).read_bytes()
  (tmp_path / name).write_bytes(data[:-3])
  with pytest.raises(UserError, match=f'{name}: cut short.*prepare wikipedia'):
    experiment.check_data()


def test_records_of_which_a_part_is_missing_are_refused(tmp_path):
  experiment = WikipediaLaserBertTiny().on()
  experiment.DATA_DIR = str(small_records.write(tmp_path))
  (tmp_path / 'part-00001-of-00002').rename(tmp_path / 'part-00001-of-00003')
  with pytest.raises(UserError, match='several wholes, of 2 and of 3 parts'):
    experiment.check_data()
  (tmp_path / 'part-00001-of-00003').unlink()
  with pytest.raises(UserError, match='missing: part-00001-of-00002; copy it .*prepare wikipedia'):
    experiment.check_data()


@pytest.mark.parametrize('name', ['part-00000-of-00002', 'eval_10k'])
def test_records_of_another_layout_are_refused(tmp_path, name):
  import tensorflow as tf

  experiment = WikipediaLaserBertTiny().on()
  experiment.DATA_DIR = str(small_records.write(tmp_path))
  example = tf.train.Example()
  example.features.feature['text'].bytes_list.value.append(b'Words.')
  with tf.io.TFRecordWriter(str(tmp_path / name)) as writer:
    writer.write(example.SerializeToString())
  with pytest.raises(UserError, match=f'{name}: .*expected input_ids, .*got none.*prepare'):
    experiment.check_data()


def test_missing_records_are_told_with_the_command(tmp_path):
  experiment = configs.WikipediaLaserBert2B().on()
  experiment.DATA_DIR = str(tmp_path)
  with pytest.raises(UserError, match='prepare wikipedia SOURCE'):
    experiment.check_data()


def test_chance_is_repeating_and_the_commonest_token(tmp_path):
  experiment = WikipediaLaserBertTiny().on()
  experiment.DATA_DIR = str(small_records.write(tmp_path))
  pairs = []
  for record in small_records.read(tmp_path, 'eval_10k'):
    ids, places, originals = (
      record[f'{name}'].numpy() for name in ('input_ids', 'masked_lm_positions', 'masked_lm_ids')
    )
    pairs += [(ids[p], t) for p, t in zip(places, originals, strict=True) if t]
  hidden = [t for read, t in pairs if read == 103]
  right = sum(read == t for read, t in pairs) + max(map(hidden.count, hidden))
  assert experiment.chance() == ('by frequency', right / len(pairs))
