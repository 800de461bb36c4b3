"""What `generate` gives to a model, without one."""

import json

import pytest

from laser_pax import cli, configs
from laser_pax.cli import generate as command
from laser_pax.data import sample, vocabulary
from laser_pax.evaluation import generation, restored
from laser_pax.experiment.saved_models import Saved


@pytest.fixture
def generate(monkeypatch, tmp_path):
  """Returns a function that runs the command on an experiment: exit code and prompts' ids."""
  (tmp_path / 'vocab.model').write_bytes(sample.VOCAB.read_bytes())
  given = []

  def continue_all(restored, prompts, **drawn):
    del restored, drawn
    given.extend(prompts)
    return [[5, vocabulary.EOS_ID] for _ in prompts]

  monkeypatch.setattr(restored, 'Restored', lambda experiment, saved: None)
  monkeypatch.setattr(generation, 'compile_for', lambda *args, **drawn: 0.0)
  monkeypatch.setattr(generation, 'generate', continue_all)

  def run(name, *flags):
    experiment, saved = getattr(configs, name)(), Saved(str(tmp_path), 1, None)
    monkeypatch.setattr(command, 'open_run', lambda *_: (experiment, saved))
    with pytest.raises(SystemExit) as ended:
      cli.main(['generate', '--checkpoint=x', *flags])
    return ended.value.code, given

  return run


@pytest.mark.parametrize('name', ['ImageNetLaserViTTiny', 'WikipediaLaserBertTiny'])
def test_a_model_of_no_text_is_refused(generate, capsys, name):
  assert generate(name, '--prompt=x') == (2, [])
  assert f'{name} generates no text' in capsys.readouterr().err


@pytest.mark.parametrize(('name', 'end'), [('C4LaserTiny', []), ('SuperGlueLaserTiny', [1])])
def test_a_prompt_ends_as_in_training(generate, tmp_path, name, end):
  text = 'The state of the Union'
  code, given = generate(name, f'--prompt={text}', f'--out={tmp_path / "out.jsonl"}')
  tokenizer = generation.Tokenizer(configs.C4LaserTiny(), Saved(str(tmp_path), 1, None))
  ids = tokenizer.ids(text)
  assert code == 0 and given == [[*ids, *end]]
  (record,) = map(json.loads, (tmp_path / 'out.jsonl').read_text().splitlines())
  assert record['text'] == tokenizer.continuation(ids, [5])
