"""The figures of docs/fused.md: their claims hold, and the TPU compiler still gives them."""

import json

import pytest

from benchmarks.tpu import fused_layer, page
from laser_pax.costs import libtpu

COMMITTED = page.RESULTS / 'fused.jsonl'


def _committed() -> dict:
  records = (json.loads(line) for line in COMMITTED.read_text().splitlines())
  return {(r['attention'], r['chip'], r['tokens']): r for r in records}


@pytest.mark.parametrize('chip', fused_layer.CHIPS)
@pytest.mark.parametrize('kind', ['', 'Laser'])
def test_a_layers_temporaries_are_a_tenth_of_the_plain_paths(kind, chip):
  costs = _committed()
  plain, fused = (
    costs[f'{kind}{name}DotProductAttention', chip, 8_192]['temporary_bytes']
    for name in ('', 'Fused')
  )
  assert plain is None or fused <= plain / 10  # None means that it does not fit.


def test_long_sequences_fit_and_laser_takes_a_tenth_of_standards_plain_path():
  costs = _committed()
  for chip in fused_layer.CHIPS:
    for tokens in fused_layer.TOKENS:
      laser, standard = (
        costs[f'{kind}FusedDotProductAttention', chip, tokens] for kind in ('Laser', '')
      )
      assert laser['fits'] and standard['fits']
    plain = costs['DotProductAttention', chip, 8_192]['temporary_bytes']
    fused = costs['LaserFusedDotProductAttention', chip, 8_192]['temporary_bytes']
    assert fused <= plain / 10


@pytest.mark.slow
def test_a_layer_compiles_to_the_committed_figures(commands):
  libtpu.fetch()
  completed = commands.run('tests.support.tpu_compiles', ['layers'], timeout=600)
  assert completed.returncode == 0, completed.stderr
  costs = json.loads(completed.stdout.splitlines()[-1])
  assert len(costs) == 2
  for cost in costs:
    committed = _committed()[cost['attention'], cost['chip'], cost['tokens']]
    assert cost['fits']
    assert cost['temporary_bytes'] == pytest.approx(committed['temporary_bytes'], rel=0.02)
