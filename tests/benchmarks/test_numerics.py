"""The kept errors of LASER: they are those of this code, and stay within what the docs promise."""

import json

import pytest

from benchmarks import numerics, page


@pytest.fixture(scope='module')
def kept():
  return [json.loads(line) for line in numerics.KEPT.read_text().splitlines()]


@pytest.mark.slow
def test_errors_are_the_kept_ones(kept):
  """The case is small values under flat attention, by einsum, blocks, a kernel and `laser`."""
  case = {'dtype': 'bfloat16', 'keys': 512, 'logits': 'flat', 'scale': numerics.SCALES[8]}
  wanted = [row for row in kept if case.items() <= row.items()]
  found = numerics.errors(**case)
  assert [row['way'] for row in found] == [row['way'] for row in wanted]
  for ours, theirs in zip(found, wanted, strict=True):
    for what in numerics.OUTPUTS:
      assert ours[what] == pytest.approx(theirs[what], rel=0.02)


def limits(way, scale):
  """Returns limits of output and gradients; a kernel's own rounding shows: docs/numerics.md."""
  if way != 'LASER, kernel':
    return 1.3, 1.5
  return (1.36, 2.0) if 0.4 < scale < 5 else (1.3, 1.56)


@pytest.mark.parametrize('keys', numerics.HEADS)
@pytest.mark.parametrize('logits', numerics.LOGITS)
@pytest.mark.parametrize('way', ['LASER, einsum', 'LASER, blocks', 'LASER, kernel'])
def test_errors_in_bfloat16_are_near_those_of_standard_attention(keys, logits, way, kept):
  ratios = numerics.ratios(kept, 'bfloat16', keys, logits, way)
  assert list(ratios) == list(numerics.SCALES)
  for scale, ratio in ratios.items():
    output, gradients = limits(way, scale)
    assert ratio['output'] <= output, scale
    assert max(ratio[what] for what in numerics.OUTPUTS[1:]) <= gradients, scale


def test_errors_in_float32(kept):
  found = [row for row in kept if row['dtype'] == 'float32' and row['way'] in numerics.OUR_WAYS]
  cases = {(row['keys'], row['logits'], row['scale']) for row in found}
  assert cases == {
    (keys, logits, scale)
    for keys in numerics.HEADS
    for logits in numerics.LOGITS
    for scale in numerics.SCALES
  }
  assert max(row[what] for row in found for what in numerics.OUTPUTS) <= 3e-6


def test_the_page_has_the_table(kept):
  assert numerics.worst_table(kept) in (page.DOCS / 'numerics.md').read_text()
