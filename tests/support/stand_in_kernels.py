"""Stand-ins for the kernels of fused attention: they record which of them is called."""

from laser_pax.ops import devices, fused

NAMES = {
  'splash': '_splash',
  'cudnn': '_cudnn',
  'triton': 'triton_attention',
  'blocks': 'attention_by_blocks',
}


def record(monkeypatch, platform):
  """Puts them in place, as on a platform, and returns the list to which each adds its name."""
  called = []

  def stand_in(name):
    return lambda query, key, value, *rest: called.append(name) or query

  monkeypatch.setattr(devices, 'platform', lambda mesh=None: platform)
  for name, function in NAMES.items():
    monkeypatch.setattr(fused, function, stand_in(name))
  return called
