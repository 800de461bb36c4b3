"""Progress bars that are drawn without a thread."""

import time

from rich import console, progress

_SECONDS_BETWEEN_DRAWINGS = 0.1


class _Bar(progress.Progress):
  """A bar that is drawn where its units are counted.

  rich draws by a thread, and imports modules whenever it draws. While TensorFlow's data sets are
  imported, they replace Python's own `__import__`, and such a thread fails.
  """

  _drawn_at = 0.0

  def advance(self, *args, **kwargs) -> None:
    """As the base's, and draws the bar if it was not drawn a moment ago."""
    super().advance(*args, **kwargs)
    if time.monotonic() - self._drawn_at > _SECONDS_BETWEEN_DRAWINGS:
      self.refresh()
      self._drawn_at = time.monotonic()


def bytes_bar() -> progress.Progress:
  """Returns a bar that counts bytes, on the standard error."""
  return _Bar(
    progress.TextColumn('{task.description}'),
    progress.BarColumn(),
    progress.DownloadColumn(),
    progress.TransferSpeedColumn(),
    progress.TimeRemainingColumn(),
    console=console.Console(stderr=True),
    auto_refresh=False,
  )


def requests_bar() -> progress.Progress:
  """Returns a bar that counts requests to a model, on the standard error."""
  return _Bar(
    progress.TextColumn('{task.description}'),
    progress.BarColumn(),
    progress.MofNCompleteColumn(),
    progress.TimeRemainingColumn(),
    console=console.Console(stderr=True),
    auto_refresh=False,
  )
