"""The kept errors of the family: they are those of this code, and stay within what the docs say."""

import json

import pytest

from benchmarks import beta, numerics, page


@pytest.fixture(scope='module')
def kept():
  return [json.loads(line) for line in beta.KEPT.read_text().splitlines()]


def chosen(kept, **fields):
  return [row for row in kept if fields.items() <= row.items()]


@pytest.mark.slow
def test_errors_are_the_kept_ones(kept):
  for found in beta.errors('bfloat16', ['einsum'], [1e-3]):
    (wanted,) = chosen(kept, **{name: found[name] for name in ('dtype', 'way', 'beta')})
    for what in numerics.OUTPUTS:
      assert found[what] == pytest.approx(wanted[what], rel=0.02)


@pytest.mark.parametrize(('way', 'limit'), [('einsum', 1.3), ('blocks', 1.3), ('kernel', 1.56)])
def test_near_zero_errors_in_bfloat16_are_those_of_standard_attention(way, limit, kept):
  (standard,) = chosen(kept, dtype='bfloat16', way=numerics.STANDARD)
  for b in (0.0, 1e-3):
    (row,) = chosen(kept, dtype='bfloat16', way=way, beta=b)
    assert row['output'] <= 1.3 * standard['output']
    assert all(row[what] <= limit * standard[what] for what in numerics.OUTPUTS)


def test_errors_in_float32(kept):
  rows = [row for row in chosen(kept, dtype='float32') if row['way'] in beta.WAYS]
  assert {(row['way'], row['beta']) for row in rows} == {
    (w, b) for w in beta.WAYS for b in beta.BETAS
  }
  assert max(row[what] for row in rows for what in numerics.OUTPUTS) <= 3e-6
  assert max(row[beta.OUTPUTS[-1]] for row in rows) <= 1e-5


def test_the_page_has_the_table(kept):
  assert beta.table(kept) in (page.DOCS / 'numerics.md').read_text()
