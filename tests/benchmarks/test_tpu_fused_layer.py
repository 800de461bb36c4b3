"""The figures of docs/fused.md: what they promise, and that the TPU compiler still gives them."""

import json

import pytest

from benchmarks.tpu import fused_layer, page
from laser_pax.costs import libtpu

COMMITTED = page.RESULTS / 'fused.jsonl'


def _committed() -> dict:
  found = (json.loads(line) for line in COMMITTED.read_text().splitlines())
  return {(r['attention'], r['chip'], r['tokens']): r for r in found}


@pytest.mark.parametrize('chip', fused_layer.CHIPS)
@pytest.mark.parametrize('kind', ['', 'Laser'])
def test_a_layers_temporaries_are_a_tenth_of_the_plain_paths(kind, chip):
  found = _committed()
  plain, by_kernel = (
    found[f'{kind}{name}DotProductAttention', chip, 8_192]['temporary_bytes']
    for name in ('', 'Fused')
  )
  assert plain is None or by_kernel <= plain / 10  # None: it does not fit at all.


def test_long_sequences_fit_and_laser_takes_a_tenth_of_standards_plain_path():
  found = _committed()
  for chip in fused_layer.CHIPS:
    for tokens in fused_layer.TOKENS:
      laser, standard = (
        found[f'{kind}FusedDotProductAttention', chip, tokens] for kind in ('Laser', '')
      )
      assert laser['fits'] and standard['fits']
    plain = found['DotProductAttention', chip, 8_192]['temporary_bytes']
    by_kernel = found['LaserFusedDotProductAttention', chip, 8_192]['temporary_bytes']
    assert by_kernel <= plain / 10


@pytest.mark.slow
def test_a_layer_compiles_to_the_committed_figures(commands):
  libtpu.fetch()
  done = commands.run('tests.support.tpu_compiles', ['layers'], timeout=600)
  assert done.returncode == 0, done.stderr
  costs = json.loads(done.stdout.splitlines()[-1])
  assert len(costs) == 2
  for cost in costs:
    known = _committed()[cost['attention'], cost['chip'], cost['tokens']]
    assert cost['fits']
    assert cost['temporary_bytes'] == pytest.approx(known['temporary_bytes'], rel=0.02)
