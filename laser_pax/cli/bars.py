"""A progress bar that survives the imports of others."""

import io

from rich import console, progress


def bytes_bar() -> progress.Progress:
  """Returns a bar that counts bytes, on the standard error.

  A thread draws the bar. rich imports some of its modules when it first draws; while TensorFlow's
  data sets are imported, they replace Python's own `__import__`, and the thread would fail. So the
  bar is drawn here once, before it starts.
  """
  columns = [
    progress.TextColumn('{task.description}'),
    progress.BarColumn(),
    progress.DownloadColumn(),
    progress.TransferSpeedColumn(),
    progress.TimeRemainingColumn(),
  ]
  bar = progress.Progress(*columns, console=console.Console(stderr=True))
  task = bar.add_task('[bold]', total=2, completed=1)
  for is_terminal in (True, False):
    console.Console(file=io.StringIO(), force_terminal=is_terminal).print(bar.get_renderable())
  bar.remove_task(task)
  return bar
