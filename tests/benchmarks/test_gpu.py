"""benchmarks/gpu.py on a CPU, tiny: its figures mean nothing, and it says so."""

import ast
import json
import pathlib
import sys

import numpy as np
import pytest

from benchmarks import gpu
from laser_pax.costs import rounds, timing
from tests.support import capped_attention

TINY = ['--head-sizes=16', '--lengths=64', '--tokens=128', '--heads=1', '--rounds=1']
TINY += ['--error-length=64']


@pytest.fixture(scope='module')
def out(tmp_path_factory):
  """The lines of a whole tiny run."""
  file = tmp_path_factory.mktemp('gpu') / 'gpu.jsonl'
  gpu.main([*TINY, f'--out={file}'])
  return file


def test_each_part_has_its_line(out):
  rows = [json.loads(line) for line in out.read_text().splitlines()]
  assert len({row['part'] for row in rows}) == len(rows) == 3 * 5
  assert all(row['platform'] == 'cpu' for row in rows)
  assert not [row for row in rows if 'failed' in row]
  served = [row for row in rows if 'does_not_serve' not in row]
  assert {row['attention'] for row in served} == {'blocks capped packed'}
  for row in served[1:]:  # After the errors.
    assert set(row['ms']) == set(gpu.FORMS) and min(row['ms'].values()) > 0
    for form in ('exact', 'paper'):
      assert row['ratio'][form] == pytest.approx(row['ms'][form] / row['ms']['standard'])
    assert row['program_mib']['exact'] > 0


def test_errors_are_those_of_bfloat16(out):
  row = next(row for row in map(json.loads, out.read_text().splitlines()) if 'errors' in row)
  for form, spread in (('standard', 1), ('exact', 0.01), ('exact', 1), ('exact', 30)):
    found = row['errors'][f'{form}, values {spread:g}']
    assert 1e-5 < max(found.values()) < 0.02, (form, spread)
  # The paper's form loses small values, which shows that errors are seen.
  assert row['errors']['paper, values 0.01']['output'] > 0.02


def test_finished_parts_are_skipped_and_the_table_says_whose_figures_they_are(out, capsys):
  before = out.read_text()
  gpu.main([*TINY, f'--out={out}'])
  printed = capsys.readouterr().out
  assert out.read_text() == before
  assert 'THESE FIGURES ARE OF A CPU' in printed
  assert '| both | blocks capped packed | 16 | 64 |' in printed
  assert '| blocks capped packed | 16 | exact, values 30 |' in printed


def test_no_part_begins_after_the_deadline(tmp_path, capsys):
  gpu.main([*TINY, '--minutes=0', f'--out={tmp_path / "gpu.jsonl"}'])
  assert not (tmp_path / 'gpu.jsonl').exists()
  assert (
    '15 parts are left; the first: error, cudnn, head 16, length 64.' in capsys.readouterr().out
  )


def test_what_fails_is_kept_as_such(monkeypatch):
  def refuse(*args):
    raise RuntimeError('no such kernel\nfor this GPU')

  monkeypatch.setattr(gpu, 'measure', refuse)
  part = gpu.Part('both', gpu.Implementation('blocks', None, False), 16, 64)
  row = gpu.run(part, gpu.arguments(TINY))
  assert row == {'failed': 'RuntimeError: no such kernel\nfor this GPU'}
  about = {'device': 'x', 'jax': '0', 'platform': 'gpu', 'what': 'both', 'attention': 'blocks'}
  shown = gpu.table([{**about, 'head': 16, 'length': 64, **row}])
  assert '| failed: RuntimeError: no such kernel |' in shown
  assert 'CPU' not in shown


def test_rows_of_one_document_need_no_segments():
  part = gpu.Part('forward', gpu.Implementation('blocks', None, False), 16, 64)
  row = gpu.run(part, gpu.arguments(TINY))
  assert str(part) == 'forward, blocks, head 16, length 64'
  assert row['ms'].keys() == set(gpu.FORMS) and row['batch'] == 2


@pytest.mark.parametrize('is_laser', [False, True])
@pytest.mark.parametrize('cap', [None, 1.5])
def test_the_reference_is_right(cap, is_laser):
  inputs = [np.asarray(x, np.float64) for x in capped_attention.draw(24, 24)]
  ids = capped_attention.segments(24)
  seen = capped_attention.visible(24, 24, ids, ids, True)
  expected = capped_attention.exact(*inputs, seen, cap, is_laser)
  ours = gpu.reference(*(x[1, 1] for x in inputs), seen[1, 0], cap, is_laser)
  for x, y in zip(ours, expected, strict=True):
    np.testing.assert_allclose(x, y[1, 1], rtol=1e-9, atol=1e-12)


def test_what_matters_most_comes_first():
  order = [str(part) for part in gpu.parts([128, 64], [4096, 16384, 1024], 512)]
  timed = [name for name in order if not name.startswith('error')]
  assert timed[0] == 'both, cudnn, head 128, length 4096'
  assert timed[1] == 'both, triton capped packed, head 128, length 4096'
  assert all(name.startswith('both') for name in timed[: len(timed) // 2])


def _modules_that_need_an_install(module):
  tree = ast.parse(pathlib.Path(module.__file__).read_text())
  modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
  modules |= {x.name for node in ast.walk(tree) if isinstance(node, ast.Import) for x in node.names}
  return {m for m in modules if m.split('.')[0] not in sys.stdlib_module_names}


def test_it_needs_jax_numpy_the_mathematics_and_the_clock_alone():
  own = {'laser_pax.costs', 'laser_pax.costs.rounds', 'laser_pax.ops', 'laser_pax.ops.fused'}
  assert _modules_that_need_an_install(gpu) == {'jax', 'jax.numpy', 'numpy', *own}
  assert _modules_that_need_an_install(timing) == {'jax'}
  assert _modules_that_need_an_install(rounds) == set()
