"""A decoder leaves PAX bit for bit, computes the same elsewhere, and comes back."""

import functools
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from laser_pax.cli.checkpoint import open_experiment, open_run
from laser_pax.data import sample, vocabulary
from laser_pax.errors import UserError
from laser_pax.evaluation import (
  export,
  exported_folder,
  import_weights,
  safetensors_files,
  stored_arrays,
)
from laser_pax.evaluation.reference import numpy_forward
from laser_pax.experiment import checkpoints, saved_models
from laser_pax.ops import oracle
from tests.support import random_checkpoint

# What differs in the checkpoints: the loop over layers, and the caps.
RUNS = {
  'C4LaserTiny': dict(LAYERS_PER_BLOCK=2),
  'C4StandardTiny': dict(USE_REPEATED_LAYER=False, ATTEN_LOGIT_CAP=0.0, SOFTMAX_CAP_LOGITS=0.0),
  'SuperGlueLaserTiny': dict(INPUTS_LEN=24, TARGETS_LEN=8),
}
IDS = np.random.default_rng(1).integers(2, 4096, (2, 24))
IDS[:, 0] = 0


@pytest.fixture(scope='module')
def make_run(tmp_path_factory):
  """Returns a function: a job's folder, the weights that PAX saved there, and its export."""

  @functools.cache
  def make(name):
    folder = tmp_path_factory.mktemp(name)
    weights = random_checkpoint.save(folder / 'job', name, **RUNS[name])
    experiment, saved = open_run(name, str(folder / 'job'))
    parameters = export.export(experiment, saved, folder / 'out')
    assert parameters == sum(w.size for w in weights.values())
    return folder / 'job', weights, folder / 'out'

  return make


@pytest.fixture(params=['C4LaserTiny', 'C4StandardTiny'])
def run(request, make_run):
  return make_run(request.param)


@pytest.fixture
def laser(make_run):
  return make_run('C4LaserTiny')


def _forward(out, ids=IDS):
  config, weights = _config(out), numpy_forward.read_weights(out)
  return np.stack([numpy_forward.forward(config, weights, list(row)) for row in ids])


def _config(out):
  return json.loads((out / 'config.json').read_text())


def _load(out):
  """Reads an export by the safetensors library."""
  return {
    k: w for f in out.glob('*.safetensors') for k, w in safetensors.numpy.load_file(f).items()
  }


def test_the_weights_stay_bit_for_bit_under_their_names(run):
  _, weights, out = run
  exported = _load(out)
  assert sum(w.size for w in exported.values()) == sum(w.size for w in weights.values())
  prefix, loops = 'lm.transformer.', 'lm.transformer.repeat.sub.x_layers_1.self_attention.post.w'
  if loops in weights:  # Two layers a turn: the second of the second turn is the fourth.
    expected = weights[loops][1]
  else:
    expected = weights[prefix + 'x_layers_3.self_attention.post.w']
  np.testing.assert_array_equal(exported['layers.3.attention.out.w'], expected)
  np.testing.assert_array_equal(
    exported['embedding.w'], weights['lm.softmax.logits_ffn.linear.w'], strict=True
  )


def test_the_numpy_reference_gives_the_logits_of_pax(run):
  job, weights, out = run
  experiment, _ = open_run(None, str(job))
  expected = random_checkpoint.logits(experiment, weights, IDS)
  assert expected.std() > 0.5
  np.testing.assert_allclose(_forward(out), expected, rtol=0, atol=1e-4)
  if hasattr(experiment, 'NUMERICS'):
    experiment.NUMERICS = 'paper'
    expected = random_checkpoint.logits(experiment, weights, IDS)
    np.testing.assert_allclose(_forward(out), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('spread', [1e-3, 1.0, 300.0])
def test_values_of_any_size_are_mixed_as_the_oracle_does(spread):
  rng = np.random.default_rng(2)
  q, k, v = rng.standard_normal((3, 1, 16, 2, 4))
  v = (v * spread).astype(np.float32)
  is_seen = np.tri(16, dtype=bool)
  expected = oracle.laser_oracle(q, k, v, is_seen)
  logits = np.einsum('btnh,bsnh->nts', q, k) / 2
  log_p = numpy_forward.log_softmax(np.where(is_seen, logits, -np.inf)).astype(np.float32)
  mixed = numpy_forward.mix_exponentials(log_p, v[0].swapaxes(0, 1))
  np.testing.assert_allclose(mixed.swapaxes(0, 1), expected[0], rtol=2e-6, atol=2e-6)


def test_the_reference_runs_alone_with_numpy(laser):
  _, _, out = laser
  words = [sys.executable, '-I', 'numpy_forward.py']
  ids = [str(i) for i in IDS[0, 1:]]
  printed = subprocess.run([*words, 'loss', *ids], cwd=out, capture_output=True, text=True)
  losses = [float(line.split()[1]) for line in printed.stdout.splitlines()]
  log_p = numpy_forward.log_softmax(_forward(out)[0])
  expected = -log_p[np.arange(23), IDS[0, 1:]]
  np.testing.assert_allclose(losses, [*expected, expected.mean()], atol=2e-6)
  printed = subprocess.run([*words, 'next', *ids], cwd=out, capture_output=True, text=True)
  assert int(printed.stdout.split()[0]) == log_p[-1].argmax()


def test_the_way_back_gives_a_checkpoint_that_pax_goes_on_training(run, tmp_path):
  import jax

  job, weights, out = run
  exported = exported_folder.read_export(out)
  experiment = open_experiment(
    exported.run.experiment, exported.run.overrides, out / exported_folder.TOKENIZER
  )
  import_weights.import_weights(experiment, exported, tmp_path / 'job')
  saved = saved_models.find(str(tmp_path / 'job'))
  assert saved.run == saved_models.find(str(job)).run and saved.step == random_checkpoint.STEP
  assert saved_models.vocabulary(saved).read_bytes() == sample.VOCAB.read_bytes()
  state = random_checkpoint.restore(experiment, saved)
  back = random_checkpoint.by_name(state)
  assert back.keys() == weights.keys()
  for name, weight in weights.items():
    np.testing.assert_array_equal(np.asarray(back[name]), weight, strict=True)
  rest = [np.asarray(x) for x in jax.tree.leaves(state.opt_states)]
  assert int(state.step) == random_checkpoint.STEP
  assert all((x == (0 if x.dtype == np.float32 else random_checkpoint.STEP)).all() for x in rest)
  assert any(x.dtype == np.int32 for x in rest)


def test_a_fine_tuned_model_is_exported_and_comes_back(make_run, tmp_path):
  """PAX decodes it in another way, which is no part of the model."""
  _, weights, out = make_run('SuperGlueLaserTiny')
  post = weights['lm.transformer.repeat.sub.x_layers_0.self_attention.post.w']
  np.testing.assert_array_equal(_load(out)['layers.3.attention.out.w'], post[3])
  exported = exported_folder.read_export(out)
  experiment = open_experiment(exported.run.experiment, exported.run.overrides, None)
  import_weights.import_weights(experiment, exported, tmp_path / 'job')


def test_large_models_are_divided_into_files_with_an_index(laser, tmp_path, monkeypatch):
  job, _, out = laser
  monkeypatch.setattr(safetensors_files, 'FILE_BYTES', 100_000)
  experiment, saved = open_run(None, str(job))
  export.export(experiment, saved, tmp_path / 'out')
  index = json.loads((tmp_path / 'out/model.safetensors.index.json').read_text())
  files = sorted(set(index['weight_map'].values()))
  assert files == sorted(p.name for p in (tmp_path / 'out').glob('*.safetensors'))
  assert len(files) > 1 and files[0] == f'model-00001-of-{len(files):05d}.safetensors'
  expected = _load(out)
  for name, file in index['weight_map'].items():
    array = safetensors.numpy.load_file(tmp_path / 'out' / file)[name]
    np.testing.assert_array_equal(array, expected[name])
  assert index['weight_map'].keys() == expected.keys()


def test_arrays_of_many_chunks_are_read_chunk_by_chunk(laser, tmp_path, monkeypatch):
  """As a job on many devices saves them, padded too."""
  job, weights, out = laser
  shutil.copytree(job, tmp_path / 'job')
  saved = saved_models.find(str(tmp_path / 'job'))
  for name in ('lm.softmax.logits_ffn.linear.w', next(n for n in weights if 'layer1.linear' in n)):
    folder = saved.folder / 'state' / f'mdl_vars.params.{name}'
    shutil.rmtree(folder)
    weight = np.pad(weights[name], [(0, 0)] * (weights[name].ndim - 1) + [(0, 8)])
    chunk = [-(-size // 3) for size in weight.shape]
    store = stored_arrays.create_array(folder.parent, folder.name, weight.shape, '<f4', chunk)
    store.write(weight).result()
  checkpoints.write_list(saved.folder)
  experiment, _ = open_run(None, str(tmp_path / 'job'))
  export.export(experiment, saved, tmp_path / 'out')
  for name, weight in _load(out).items():
    np.testing.assert_array_equal(_load(tmp_path / 'out')[name], weight)


def test_written_chunks_are_small(monkeypatch):
  monkeypatch.setattr(stored_arrays, 'CHUNK_BYTES', 1000)
  chunk = stored_arrays.chunk_shape((10, 70, 3), 4)
  assert np.prod(chunk) * 4 <= 1000
  covered = np.zeros((10, 70, 3), int)
  for region in stored_arrays.regions((10, 70, 3), chunk):
    covered[region] += 1
  assert (covered == 1).all()


def _module(path: pathlib.Path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


TEXTS = ['The state of the union', ' two  spaces and é', 'a line\nand another', '']


def test_the_tokenizer_gives_the_ids_of_the_training(laser):
  pytest.importorskip('transformers', reason='transformers is not installed')
  import sentencepiece

  _, _, out = laser
  tokenizer = _module(out / 'tokenization_laser.py').LaserTokenizer.from_pretrained(out)
  pieces = sentencepiece.SentencePieceProcessor(model_file=str(sample.VOCAB))
  for text in TEXTS:
    assert tokenizer(text)['input_ids'] == [0, *pieces.EncodeAsIds(text)]
    assert tokenizer(text, add_special_tokens=False)['input_ids'] == pieces.EncodeAsIds(text)
  ids = pieces.EncodeAsIds(TEXTS[0])
  assert tokenizer.decode([0, *ids, 1], skip_special_tokens=True) == TEXTS[0]
  # lm_eval adds no start to a text that begins with the start's own text.
  assert tokenizer.decode([0, *ids]) == f'<pad>{TEXTS[0]}' and tokenizer.decode(0) == '<pad>'
  assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 0, 1)


@pytest.fixture
def torch_model(run, tmp_path, monkeypatch):
  """The export's model under transformers."""
  pytest.importorskip('torch', reason='torch is no part of the project; see docs/export.md')
  import torch
  import transformers
  from transformers import dynamic_module_utils

  monkeypatch.setattr(dynamic_module_utils, 'HF_MODULES_CACHE', str(tmp_path / 'modules'))
  load = transformers.AutoModelForCausalLM.from_pretrained
  with torch.no_grad():
    yield load(run[2], trust_remote_code=True, dtype=torch.float32)


def test_transformers_gives_the_logits_of_the_numpy_reference(run, torch_model):
  import torch

  logits = torch_model(torch.tensor(IDS)).logits.numpy()
  np.testing.assert_allclose(logits, _forward(run[2]), rtol=0, atol=1e-4)


def test_padding_on_the_left_and_the_cache_change_nothing(run, torch_model):
  import torch

  ids = torch.tensor(IDS[:1, :9])
  padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], -1)
  mask = torch.tensor([[0] * 5 + [1] * 9])
  plain, left = torch_model(ids).logits, torch_model(padded, attention_mask=mask).logits
  torch.testing.assert_close(left[:, 5:], plain, rtol=0, atol=2e-5)
  generate = lambda **how: torch_model.generate(  # noqa: E731
    max_new_tokens=8, do_sample=False, eos_token_id=None, **how
  )
  whole = generate(input_ids=ids, use_cache=False)[0, 9:].tolist()
  assert whole == generate(input_ids=ids, use_cache=True)[0, 9:].tolist()
  assert whole == generate(input_ids=padded, attention_mask=mask, use_cache=True)[0, 14:].tolist()
  assert whole[0] == _forward(run[2], IDS[:1, :9])[0, -1].argmax()


@pytest.mark.parametrize('spread', [1e-3, 1.0, 300.0])
def test_torch_mixes_values_of_any_size(spread):
  torch = pytest.importorskip('torch', reason='torch is no part of the project')
  folder = pathlib.Path(export.__file__).parent / 'reference'
  modeling = _module(folder / 'modeling_laser.py')
  rng = np.random.default_rng(3)
  v = (spread * rng.standard_normal((2, 16, 4))).astype(np.float32)
  logits = np.where(np.tri(16, dtype=bool), rng.standard_normal((2, 16, 16)), -np.inf)
  log_p = numpy_forward.log_softmax(logits).astype(np.float32)
  expected = numpy_forward.mix_exponentials(log_p, v)
  mixed = modeling.mix_exponentials(torch.tensor(log_p), torch.tensor(v)).numpy()
  np.testing.assert_allclose(mixed, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
  ('name', 'changes', 'expected'),
  [
    ('WikipediaLaserBertTiny', {}, 'export takes decoders alone'),
    ('ImageNetLaserViTTiny', {}, 'export takes decoders alone'),
    ('LibriSpeechLaserConformerTiny', {}, 'export takes decoders alone'),
    ('C4LaserTiny', {'USE_GATED_ACTIVATION': True}, 'use_gated_activation'),
    ('C4LaserTiny', {'USE_ROTARY_POSITION_EMB': True}, 'use_rotary_position_emb'),
  ],
)
def test_other_models_are_refused(laser, tmp_path, name, changes, expected):
  saved = saved_models.find(str(laser[0]))
  experiment = open_experiment(f'laser_pax.configs.{name}', changes, None)
  with pytest.raises(UserError, match=expected):
    export.export(experiment, saved, tmp_path / 'out')
  assert not [*tmp_path.iterdir()]


def _give_another_vocabulary(file):
  file.unlink()
  texts = [' '.join(f'word{i}' for i in range(100))] * 4
  vocabulary.train_vocabulary(texts, file, size=19, sentences=4)


def test_a_job_with_another_vocabulary_is_refused(laser, tmp_path):
  shutil.copytree(laser[0], tmp_path / 'job')
  _give_another_vocabulary(tmp_path / 'job' / 'vocab.model')
  with pytest.raises(UserError, match='has 19 pieces, .* = 4096: copy .*to .*/job/vocab.model'):
    export.export(*open_run(None, str(tmp_path / 'job')), tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_a_folder_with_content_is_never_overwritten(laser):
  job, _, out = laser
  before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
  with pytest.raises(UserError, match='never overwritten'):
    export.export(*open_run(None, str(job)), out)
  assert {path: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


DAMAGES = {
  'has no config.json': lambda out: (out / 'config.json').unlink(),
  'is not that of an export': lambda out: (out / 'config.json').write_text('{"laser_pax": 3}'),
  'has no tokenizer.model': lambda out: (out / 'tokenizer.model').unlink(),
  'has 19 pieces': lambda out: _give_another_vocabulary(out / 'tokenizer.model'),
  'cut short': lambda out: _cut(out / 'model.safetensors'),
  'embedding.w is missing': lambda out: (out / 'model.safetensors').unlink(),
  'final_norm.bias is .32,., not .16,.': lambda out: (out / 'config.json').write_text(
    json.dumps(_config(out) | {'hidden_size': 16})
  ),
}


def _cut(file):
  file.write_bytes(file.read_bytes()[:-99])


@pytest.mark.parametrize('fault', DAMAGES)
def test_a_damaged_export_is_told_in_a_line(laser, tmp_path, fault):
  shutil.copytree(laser[2], tmp_path / 'out')
  DAMAGES[fault](tmp_path / 'out')
  with pytest.raises(UserError, match=fault):
    exported_folder.read_export(tmp_path / 'out')
