"""The bar of bytes is drawn whatever is imported meanwhile, and counts all sources together."""

import builtins
import gzip
import io
import json
import threading
import time

from rich import console

from laser_pax.cli import bars
from laser_pax.data.prepare import c4, parts


def test_nothing_is_drawn_while_others_import(monkeypatch):
  """tfds replaces __import__ for a while, and rich imports whenever it draws."""
  bar = bars.bytes_bar()
  bar.live.console = console.Console(
    file=io.StringIO(), force_terminal=True, width=200, no_color=True
  )
  threads = threading.active_count()
  with bar:
    task = bar.add_task('preparing', total=100)
    bar.advance(task, 25)
    with monkeypatch.context() as patch:
      patch.setattr(builtins, '__import__', None)
      time.sleep(0.3)  # rich's thread would draw three times.
    assert threading.active_count() == threads
    bar.advance(task, 75)
  drawn = bar.live.console.file.getvalue()
  assert '25/100 bytes' in drawn and '100/100 bytes' in drawn


def test_the_total_is_that_of_all_sources(tmp_path, monkeypatch):
  monkeypatch.setattr(parts, 'PART_BYTES', 1)
  for number in range(4):
    lines = ''.join(json.dumps({'text': f'{number}.{i}'}) + '\n' for i in range(200))
    (tmp_path / f'{number}.json.gz').write_bytes(gzip.compress(lines.encode()))
  size = sum(path.stat().st_size for path in tmp_path.iterdir())
  bar, totals = bars.bytes_bar(), []
  update = bar.update

  def spy(*args, **kwargs):
    update(*args, **kwargs)
    totals.append(bar.tasks[0].total)

  monkeypatch.setattr(bar, 'update', spy)
  bar.live.console = console.Console(file=io.StringIO())
  c4.prepare([tmp_path], tmp_path / 'out', progress=bar)
  assert set(totals) == {size}
  assert bar.tasks[0].completed == size
