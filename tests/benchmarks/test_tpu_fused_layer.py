"""The figures of docs/fused.md: their claims hold."""

import json

import pytest

from benchmarks import page
from benchmarks.tpu import fused_layer

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
