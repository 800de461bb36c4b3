"""The bytes that a small program moves through HBM, and the figures of docs/fused.md."""

import json

from benchmarks import page
from benchmarks.tpu import accessed

COMMITTED = page.RESULTS / 'accessed.jsonl'

# x, 4 KiB, is copied to fast memory and used there; a slice of y is added; a row of z is replaced.
_TEXT = """HloModule m

%sliced (a: f32[1024], b: f32[4,1024]) -> f32[1024] {
  %a = f32[1024]{0} parameter(0)
  %b = f32[4,1024]{1,0} parameter(1)
  %c = f32[1,1024]{1,0} slice(%b), slice={[2:3], [0:1024]}
  %d = f32[1024]{0} bitcast(%c)
  ROOT %e = f32[1024]{0} add(%a, %d)
}

%updated (a: f32[4,1024], b: f32[1,1024], i: s32[]) -> f32[4,1024] {
  %a = f32[4,1024]{1,0} parameter(0)
  %b = f32[1,1024]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %u = f32[4,1024]{1,0} dynamic-update-slice(%a, %b, %i, %i)
}

ENTRY %main (x: f32[1024], y: f32[4,1024], z: f32[4,1024], i: s32[]) -> f32[4,1024] {
  %x = f32[1024]{0} parameter(0)
  %y = f32[4,1024]{1,0} parameter(1)
  %z = f32[4,1024]{1,0} parameter(2)
  %i = s32[]{:T(128)S(1)} parameter(3)
  %s = (f32[1024]{0:T(1024)S(1)}, f32[1024]{0}, u32[]{:S(2)}) copy-start(%x)
  %v = f32[1024]{0:T(1024)S(1)} copy-done(%s)
  %f = f32[1024]{0} fusion(%v, %y), kind=kLoop, calls=%sliced
  %g = f32[1,1024]{1,0} bitcast(%f)
  ROOT %r = f32[4,1024]{1,0} fusion(%z, %g, %i), kind=kLoop, calls=%updated
}
"""


def test_bytes_through_hbm():
  copied, added, updated = 4096, 4096 + 4096, 4096 + 4096
  assert accessed.hbm_bytes(_TEXT) == copied + added + updated


def _committed() -> list[dict]:
  return [json.loads(line) for line in COMMITTED.read_text().splitlines()]


def test_the_page_shows_the_committed_figures():
  assert accessed.table(_committed()) in (page.DOCS / 'fused.md').read_text()


def test_laser_moves_little_more_through_hbm():
  measured = _committed()
  for layers in accessed.LAYERS:
    standard, laser = (
      next(r for r in measured if (r['experiment'], r['layers']) == (name, layers))
      for name in accessed.PAIR
    )
    assert laser['hbm_bytes'] <= 1.03 * standard['hbm_bytes']
    assert laser['temporary_bytes'] <= 1.02 * standard['temporary_bytes']
  standard, laser = (accessed.extrapolate(measured, x, 'hbm_bytes', 64) for x in accessed.PAIR)
  assert laser <= 1.03 * standard
