"""Power laws: known ones come back, and the bands hold them as often as they say."""

import json

import numpy as np
import pytest

from laser_pax import cli
from laser_pax.analysis import power_law
from laser_pax.errors import UserError

SIZES = 1e6 * 4.0 ** np.arange(6)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
  monkeypatch.setattr(power_law, 'DRAWS', 600)


def points(limit, factor, exponent, sizes, noise=0.0, seeds=1, rng=None, variant='standard'):
  rng = rng or np.random.default_rng(0)
  losses = [limit + factor * n**-exponent for n in sizes for _ in range(seeds)]
  noisy = np.array(losses) * (1 + noise * rng.standard_normal(len(losses)))
  numbers = [n for n in sizes for _ in range(seeds)]
  return [power_law.Point(n, x, variant) for n, x in zip(numbers, noisy, strict=True)]


@pytest.mark.parametrize(
  ('law', 'sizes'), [((1.7, 400.0, 0.34), SIZES), ((0.0, 20.0, 0.08), SIZES[:3])]
)
def test_a_law_without_noise_comes_back(law, sizes):
  fit = power_law.fit(points(*law, sizes))
  assert fit.has_limit == (law[0] > 0)
  assert (fit.limit, fit.factor, fit.exponent) == pytest.approx(law, rel=1e-3, abs=1e-12)
  assert fit.loss(1e9) == pytest.approx(law[0] + law[1] * 1e9 ** -law[2], rel=1e-5)


@pytest.mark.parametrize(
  ('law', 'sizes', 'seeds', 'noise'),
  [((1.7, 400.0, 0.34), SIZES, 2, 0.003), ((0.0, 20.0, 0.08), SIZES[:3], 3, 0.005)],
)
def test_bands_hold_the_law_in_90_of_100_draws(law, sizes, seeds, noise):
  names = ('E', 'A', 'alpha')
  hits = dict.fromkeys(names, 0)
  for draw in range(100):
    rng = np.random.default_rng(draw)
    intervals = power_law.fit(points(*law, sizes, noise, seeds, rng)).intervals()
    for name, value in zip(names, law, strict=True):
      hits[name] += intervals[name].low <= value <= intervals[name].high
  assert all(hits[name] >= 90 for name in names), hits


def test_a_band_narrows_with_the_noise():
  wide, narrow = (
    power_law.fit(points(1.7, 400.0, 0.34, SIZES, noise, 2)).intervals()['alpha']
    for noise in (0.01, 0.001)
  )
  assert narrow.high - narrow.low < (wide.high - wide.low) / 3


def test_savings_are_the_ratio_of_parameters_at_equal_loss():
  standard = power_law.fit(points(1.7, 400.0, 0.34, SIZES))
  # The same law, of a model that acts as if it had a quarter more parameters.
  laser = power_law.fit(points(1.7, 400.0 * 1.25**-0.34, 0.34, SIZES))
  for saving in power_law.savings(standard, laser):
    assert saving.multiple.value == pytest.approx(1.25, rel=1e-3)
    assert saving.saved.value == pytest.approx(0.2, rel=1e-2)
    assert saving.multiple.low <= saving.multiple.value <= saving.multiple.high


def test_a_loss_that_the_baseline_never_reaches_takes_infinitely_many():
  standard = power_law.fit(points(1.7, 400.0, 0.34, SIZES))
  better = power_law.fit(points(1.0, 400.0, 0.34, SIZES))
  last = power_law.savings(standard, better)[-1]
  assert last.multiple.value == np.inf and last.saved.value == 1.0


def test_two_sizes_are_refused():
  with pytest.raises(UserError, match='needs 3 sizes or more; standard has 2'):
    power_law.fit(points(1.7, 400.0, 0.34, SIZES[:2], seeds=5))


def test_all_variants_take_one_form():
  """E is 0 for both if one has three sizes, or what LASER saves would compare two forms."""
  both = points(0.0, 20.0, 0.08, SIZES[:3]) + points(0.0, 19.0, 0.08, SIZES[:4], variant='LASER')
  laws = power_law.fit_each(both)
  assert [law.has_limit for law in laws.values()] == [False, False]
  assert laws['LASER'].exponent == pytest.approx(0.08, rel=1e-3)


def test_losses_that_rise_are_refused():
  rising = [power_law.Point(n, 3 + i / 10, 'LASER') for i, n in enumerate(SIZES[:3])]
  with pytest.raises(UserError, match='losses of LASER follow no power law.*Do they fall'):
    power_law.fit(rising)


def test_a_file_that_is_no_text_is_refused(tmp_path):
  (tmp_path / 'points.jsonl').write_bytes(b'\xff\xfe\x00')
  with pytest.raises(UserError, match='points.jsonl cannot be read'):
    power_law.read(tmp_path / 'points.jsonl')


@pytest.mark.parametrize(
  'line', ['{"parameters": 1, "loss": 2}', '{"parameters": 0, "loss": 2, "variant": "x"}', 'x']
)
def test_a_line_that_is_no_point_is_refused(tmp_path, line):
  file = tmp_path / 'points.jsonl'
  file.write_text(f'\n{line}\n')
  with pytest.raises(UserError, match='line 2: expected'):
    power_law.read(file)


def test_the_command_prints_and_writes_them(tmp_path, capsys):
  both = points(1.7, 400.0, 0.34, SIZES, 0.001)
  both += points(1.7, 380.0, 0.34, SIZES, 0.001, variant='LASER')
  file = tmp_path / 'points.jsonl'
  file.write_text(''.join(json.dumps(p._asdict()) + '\n' for p in both))
  with pytest.raises(SystemExit) as ended:
    cli.main(['scaling', str(file)])
  printed = capsys.readouterr().out
  assert ended.value.code == 0 and 'standard: 6 sizes, E fitted' in printed
  assert 'LASER at 1,000,000 parameters' in printed and 'standard needs' in printed
  assert (tmp_path / 'points.png').read_bytes().startswith(b'\x89PNG')
  record = json.loads((tmp_path / 'points.fits.json').read_text())
  assert record['fits']['standard']['alpha']['value'] == pytest.approx(0.34, rel=0.1)
  assert len(record['savings']['LASER']) == 6
