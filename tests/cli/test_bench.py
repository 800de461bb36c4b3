"""`bench`: its refusals, its lines and tables, and a whole small run on the CPU."""

import json
import types

import jax
import numpy as np
import pytest

from laser_pax import cli, configs
from laser_pax.cli import bench as bench_module
from laser_pax.costs import bench_lines, measured_attention, measured_steps, rounds
from laser_pax.errors import UserError
from tests.support.commands import QUICK_COMPILE

PAIR = ['--exp=C4LaserTiny', '--against=C4StandardTiny']


def changed(name, **attributes):
  """Returns an experiment with some attributes changed."""
  experiment = getattr(configs, name)()
  for attribute, value in attributes.items():
    setattr(experiment, attribute, value)
  return experiment


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    ([], 'which two experiments'),
    (['--exp=C4LaserTiny'], 'which two experiments'),
    (['--exp=C4LaserTiny', '--against=laser_pax.configs.C4LaserTiny'], 'both named C4LaserTiny'),
    ([*PAIR, '--lengths=128,x'], '--lengths=128,x: expected positive numbers'),
    ([*PAIR, '--lengths=0'], '--lengths=0: expected positive numbers'),
    ([*PAIR, '--rounds=0'], 'rounds'),
    ([*PAIR, '--out='], 'names no file or folder'),
    ([*PAIR, '--steps=3'], "unexpected '--steps=3'"),
    ([*PAIR, '--fdl.NUM_LAYER=1'], 'did you mean NUM_LAYERS'),
    ([*PAIR, '--fdl.NUMERICS=best'], 'C4LaserTiny.NUMERICS'),
    ([*PAIR, '--fdl.ICI_MESH_SHAPE=[1,2,1]'], 'set ICI_MESH_SHAPE .* to'),
    (['--exp=C4Laser2B', '--against=C4Standard2B'], "set POD = 'cpu'"),
  ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_compiled(
  words, message, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(measured_steps, 'Step', lambda *_: pytest.fail('it compiles'))
  with pytest.raises(SystemExit) as e:
    cli.main(['bench', *words])
  assert e.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: ')
  with pytest.raises(UserError, match=message):
    raise UserError(line)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('first', 'second', 'message'),
  [
    ('C4LaserTiny', 'ImageNetStandardViTTiny', 'UNIT is tokens in one and images in the other'),
    ('C4LaserTiny', 'WikipediaStandardBertTiny', 'GLOBAL_BATCH_SIZE is 8 in one and 256'),
    (
      changed('C4LaserTiny', GLOBAL_BATCH_SIZE=256),
      'WikipediaStandardBertTiny',
      'different families: ids, weights and masked_ids, masked_pos',
    ),
    ('C4LaserTiny', changed('C4StandardTiny', SEQ_LEN=64), r'ids is \[8, 128\] in one and \[8, 64'),
    ('C4LaserTiny', changed('C4StandardTiny', VOCAB_SIZE=64), 'different ranges'),
  ],
)
def test_two_that_cannot_share_a_batch_are_refused(first, second, message):
  pair = [changed(x) if isinstance(x, str) else x for x in (first, second)]
  with pytest.raises(UserError, match=message):
    measured_steps.common_batch(*pair)


class StandInStep:
  """Takes the place of a step, which would be compiled."""

  made = []

  def __init__(self, experiment, batch):
    self.experiment, self.batch = experiment, batch
    self.parameters, self.program_bytes, self.compile_seconds = 10, 2**30, 1.0
    case = types.SimpleNamespace(lengths=(128, 128))
    self.path = types.SimpleNamespace(case=case, text=lambda *_: 'none')
    self.made.append(self)


@pytest.fixture
def without_compiling(monkeypatch):
  """Lets steps and attention give fixed seconds: three rounds, of which one is disturbed."""
  monkeypatch.setattr(StandInStep, 'made', [])
  figures = [[0.3, 0.9, 0.33], [0.2, 0.6, 0.3]]
  measured = [
    measured_steps.Measured(seconds=x, steps=2, peak_bytes=3 * 2**29, last_loss=1.0)
    for x in figures
  ]
  alone = {
    'pass': 'forward', 'length': 256, 'rows': 4, 'heads': {}, 'head_size': {}, 'dtype': {},
    'kernel': {'C4LaserTiny': 'splash', 'C4StandardTiny': 'splash'},
    'seconds': {'C4LaserTiny': 0.006, 'C4StandardTiny': 0.003},
    'rounds': {'C4LaserTiny': [0.006, 0.005], 'C4StandardTiny': [0.003, 0.004]},
  }  # fmt: skip
  asked = []
  monkeypatch.setattr(measured_steps, 'Step', StandInStep)
  monkeypatch.setattr(measured_steps, 'measure', lambda steps, num_rounds: measured)
  monkeypatch.setattr(measured_steps, 'peak_rate', lambda experiment: 1e12)
  measure = lambda *args: asked.append(args) or iter([alone])  # noqa: E731
  monkeypatch.setattr(measured_attention, 'measure', measure)
  return asked


def run(capsys, *words):
  with pytest.raises(SystemExit) as e:
    cli.main(['bench', *PAIR, *words])
  assert not e.value.code
  return capsys.readouterr().out


def test_both_get_the_same_batch_and_only_one_the_attribute_that_it_alone_has(
  without_compiling, tmp_path, capsys
):
  run(capsys, f'--out={tmp_path}', '--fdl.NUMERICS=paper', '--fdl.NUM_LAYERS=2')
  laser, standard = StandInStep.made
  assert laser.batch is standard.batch
  specs = laser.experiment.input_specs(laser.experiment.GLOBAL_BATCH_SIZE)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), laser.batch) == jax.tree.map(
    lambda x: (x.shape, x.dtype), specs
  )
  assert np.unique(laser.batch.ids).size > 500
  assert laser.experiment.NUMERICS == 'paper' and not hasattr(standard.experiment, 'NUMERICS')
  assert laser.experiment.NUM_LAYERS == standard.experiment.NUM_LAYERS == 2


def test_the_ratio_is_that_of_the_rounds_and_the_table_shows_it(
  without_compiling, tmp_path, capsys
):
  out = run(capsys, f'--out={tmp_path}', '--lengths=256,64,256')
  ((paths, lengths, positions, num_rounds),) = without_compiling
  assert (list(paths), lengths, positions, num_rounds) == (
    ['C4LaserTiny', 'C4StandardTiny'], [64, 256], 8 * 128, 9,
  )  # fmt: skip
  laser, standard, alone = map(json.loads, (tmp_path / bench_lines.FILE).read_text().splitlines())
  for line, base in ((laser, standard), (standard, standard)):
    expected = rounds.ratio(line['rounds'], base['rounds'])
    assert line['ratio'] == expected._asdict()
    assert line['seconds_per_step'] == sorted(line['rounds'])[1]
    assert line['units_per_second'] == pytest.approx(8 * 128 / line['seconds_per_step'])
    flops = configs.C4LaserTiny().model_flops(10)
    model = flops.weights + flops.attention
    assert line['mfu'] == pytest.approx(model / line['seconds_per_step'] / 1e12)
  assert alone['ratio']['rounds'] == [2.0, 1.25]
  # 1.5 is the median of 1.5, 1.5 and 1.1; medians of seconds would give 1.1.
  row, base, attention = (
    next(line for line in out.splitlines() if line.startswith(start))
    for start in (' C4LaserTiny ', ' C4StandardTiny ', ' forward ')
  )
  mfu = f'{laser["mfu"]:.3f}'
  assert row.split()[1:] == ['330.0', '3,103', mfu, '1.50', '1.00', '1.500', '(1.300', 'to',
                             '1.500)']  # fmt: skip
  assert base.split()[-1] == '1'
  assert '6.00' in attention and '1.625 (1.438 to 1.812)' in attention and 'splash' in attention


def test_a_second_run_adds_to_the_first(without_compiling, tmp_path, capsys):
  run(capsys, f'--out={tmp_path}')
  file, picture = tmp_path / bench_lines.FILE, tmp_path / 'bench-1.png'
  first, drawn = file.read_text(), picture.read_bytes()
  with open(file, 'a') as cut:
    cut.write('{"run": 1, "pa')
  run(capsys, f'--out={tmp_path}', '--rounds=2')
  assert file.read_text().startswith(first) and picture.read_bytes() == drawn
  assert drawn.startswith(b'\x89PNG') and (tmp_path / 'bench-2.png').exists()
  *_, last = file.read_text().splitlines()
  assert json.loads(last)['run'] == 2


def test_too_little_memory_is_told_in_one_line():
  pair = [configs.C4LaserTiny(), configs.C4StandardTiny()]
  telling = bench_module._telling_of_memory
  told = pytest.raises(UserError, match='8, MICRO_BATCHES 1 and 1: give a smaller')
  with told, telling(pair):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 2 GiB\nmore')
  with pytest.raises(jax.errors.JaxRuntimeError), telling(pair):
    raise jax.errors.JaxRuntimeError('INTERNAL: other')


@pytest.mark.slow
def test_a_pair_is_measured_on_this_machine(commands, tmp_path):
  small = {'NUM_LAYERS': 1, 'MODEL_DIMS': 32, 'HIDDEN_DIMS': 32, 'VOCAB_SIZE': 64, 'SEQ_LEN': 32}
  words = [*PAIR, '--rounds=2', '--lengths=48', f'--out={tmp_path}']
  words += [f'--fdl.{name}={value}' for name, value in small.items()]
  env = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': QUICK_COMPILE}
  command = commands.run('laser_pax', ['bench', *words], cwd=tmp_path, env=env)
  assert command.returncode == 0, command.stdout + command.stderr
  lines = [json.loads(x) for x in (tmp_path / bench_lines.FILE).read_text().splitlines()]
  steps, alone = lines[:2], lines[2:]
  assert [line['experiment'] for line in steps] == ['C4LaserTiny', 'C4StandardTiny']
  assert steps[0]['parameters'] == steps[1]['parameters']
  for line in steps:
    assert len(line['rounds']) == 2 and min(line['rounds']) > 0
    assert line['mfu'] is None and line['peak_bytes'] is None, 'a CPU tells neither'
    assert line['program_bytes'] > 4 * 3 * line['parameters']
    assert 0 < line['last_loss'] < np.log(64)  # It learns the batch.
  for line in alone:
    assert line['rows'] == 8 * 32 // 48 and line['length'] == 48
    assert set(line['heads'].values()) == {1} and set(line['kernel'].values()) == {'blocks'}
    assert min(map(min, line['rounds'].values())) > 0
  assert [line['pass'] for line in alone] == ['forward', 'forward and backward']
  common = ('run', 'pair', 'overrides', 'device', 'platform', 'devices', 'cores', 'versions')
  assert all(line[name] == lines[0][name] for line in lines for name in common)
  assert set(lines[0]['versions']) == {'jax', 'jaxlib', 'paxml', 'praxis'}
  for word in ('train step', 'attention alone', 'blocks', 'run 1'):
    assert word in command.stdout
