"""Compiles the C4 experiments, and writes the figures into docs/pods.md.

The page's prose stays; what stands between `<!-- NAME -->` and `<!-- end of NAME -->` is replaced.
Each report is kept, in docs/results, as a line of JSON.
"""

import json
import pathlib
import re
import time
from collections.abc import Iterable, Iterator

import jax

from laser_pax import configs
from laser_pax.pods import report as reporting
from laser_pax.pods import show, slices

DOCS = pathlib.Path(__file__).parents[2] / 'docs'
PAGE = DOCS / 'pods.md'
PODS, MESHES = DOCS / 'results' / 'pods.jsonl', DOCS / 'results' / 'meshes.jsonl'

_GIB = 2**30


# Those whose slice the paper names, and its largest; the 234M differs little from the 300M.
SIZES = ('300M', '1B', '2B', '7B')


def pairs() -> list[tuple[str, str]]:
  """Returns the pairs that the page shows, standard attention first."""
  return [(f'C4Standard{size}', f'C4Laser{size}') for size in SIZES]


def pods_of(name: str) -> list[str]:
  """Returns the slice that an experiment is planned for, and that of v5e with as many chips."""
  planned = slices.find(getattr(configs, name).POD)
  alike = [slices.find(n) for n in slices.names()]
  return [planned.name] + [
    pod.name
    for pod in alike
    if pod.chip.name == 'v5e' and (pod.chips, pod.slices) == (planned.chips, planned.slices)
  ]


def write_pods() -> int:
  """Compiles each pair for its slices, train and evaluation step; twenty minutes on two cores.

  Returns:
    The exit code: 1 where one does not fit.
  """
  found = _compile_all(
    PODS,
    (
      reporting.report(getattr(configs, name)().on(pod))
      for pair in pairs()
      for pod in pods_of(pair[0])
      for name in pair
    ),
  )
  replace('pods', pods_tables(found))
  return 0 if all(r['fits'] for r in found) else 1


def write_meshes() -> int:
  """Compiles several layouts of each LASER experiment for its slice; about half an hour.

  Returns:
    The exit code: 1 where the rule's own does not fit.
  """
  sizes = [laser for _, laser in pairs()]
  found = _compile_all(
    MESHES,
    (r for name in sizes for r in show.compile_layouts(getattr(configs, name)().on())),
  )
  replace('meshes', meshes_tables(found))
  return 0 if all(r['fits'] for r in found if r['is_rule']) else 1


def pods_tables(found: list[dict]) -> str:
  """Returns the tables of the pairs on their slices, of reports as kept in `PODS`."""
  return f'{_pods_table(found)}\n\n{_ratio_table(found)}'


def meshes_tables(found: list[dict]) -> str:
  """Returns the tables of layouts, of reports as kept in `MESHES`."""
  names = dict.fromkeys(r['experiment'] for r in found)
  return '\n\n'.join(_mesh_table(found, name) for name in names)


def _compile_all(kept: pathlib.Path, reports: Iterable[reporting.Report]) -> list[dict]:
  """Keeps each report in a file as it comes, says so, and returns them all."""
  start, found = time.time(), []
  kept.parent.mkdir(exist_ok=True)
  part = kept.with_suffix('.part')  # So that what was kept before stays until all is there.
  with open(part, 'w') as file:
    for r in reports:
      fields = r.to_json() | {'is_rule': r.layout == _ruled(r)}
      found.append(fields)
      file.write(json.dumps(fields) + '\n')
      file.flush()
      where = f'{r.experiment} on {r.pod.name}, {reporting.describe(r.layout)}'
      print(f'{time.time() - start:6.0f} s  {where}: {show.verdict(r)}', flush=True)
      jax.clear_caches()
  part.replace(kept)
  return found


def _ruled(r: reporting.Report):
  """The layout that the rule gives a report's experiment."""
  return getattr(configs, r.experiment)().on(r.pod.name).layout()


def replace(name: str, text: str, page: pathlib.Path = PAGE) -> None:
  """Puts text into its place on a page."""
  before, begin, end = page.read_text(), f'<!-- {name} -->', f'<!-- end of {name} -->'
  pattern = re.compile(f'{begin}.*?{end}', re.DOTALL)
  page.write_text(pattern.sub(lambda _: f'{begin}\n\n{text}\n\n{end}', before))


def rows(header: Iterable[str], body: Iterable[Iterable[str]]) -> str:
  """A table in Markdown."""
  header = list(header)
  lines = [header, ['---'] * len(header), *body]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _layout_cells(r: dict) -> list[str]:
  return [
    str(r['ici_mesh_shape']),
    r['checkpoint_policy'].lower().removeprefix('save_').replace('_', ' '),
    str(r['micro_batches']),
  ]


def _pods_table(found: list[dict]) -> str:
  header = ['experiment', 'pod', 'mesh', 'layers keep', 'parts', 'state', 'temporaries', 'peak']
  header += ['of the memory', "evaluation's peak", 'sent', 'compute, ms', 'send, ms', 'memory, ms']
  header += ['MFU bound', 'compile, s']
  return rows(header, (_pods_row(r) for r in found))


def _pods_row(r: dict) -> Iterator[str]:
  train, seconds = r['train'], r['seconds']
  yield from [f'`{r["experiment"]}`', r['pod'], *_layout_cells(r)]
  for number in (train['state_bytes'], train['temporary_bytes'], train['peak_bytes']):
    yield f'{number / _GIB:.2f}' if number is not None else ''
  peak = max(step['peak_bytes'] for step in (train, r['eval']))
  yield f'{"" if r["fits"] else "DOES NOT FIT, "}{peak / r["usable_bytes"]:.0%}'
  yield f'{r["eval"]["peak_bytes"] / _GIB:.2f}'
  if seconds is None:  # The compiler gave up.
    yield from [''] * 6
    return
  yield f'{r["sent_bytes"] / _GIB:.2f}'
  yield f'{_computed(seconds) * 1e3:.0f}'
  yield f'{(seconds["ici"] + seconds["dcn"]) * 1e3:.0f}'
  yield f'{seconds["memory"] * 1e3:.0f}'
  yield f'{r["mfu_bound"]:.3f}'
  yield f'{train["seconds"] + r["eval"]["seconds"]:.0f}'


def _computed(parts: dict) -> float:
  """The sum of what is computed, of FLOPs or of seconds."""
  return parts['weights'] + parts['attention'] + parts['rematerialisation'] - parts['skipped']


def _ratio_table(found: list[dict]) -> str:
  by_name = {(r['experiment'], r['pod']): r for r in found}
  body = []
  for (name, pod), laser in by_name.items():
    if 'Laser' not in name:
      continue
    standard = by_name[name.replace('Laser', 'Standard'), pod]
    if not (laser['seconds'] and standard['seconds']):
      continue
    values = [
      laser['train']['temporary_bytes'] / standard['train']['temporary_bytes'],
      laser['train']['peak_bytes'] / standard['train']['peak_bytes'],
      laser['sent_bytes'] / standard['sent_bytes'],
      _computed(laser['flops']) / _computed(standard['flops']),
    ]
    body.append([f'`{name}`', pod, *(f'{value:.4f}' for value in values)])
  return rows(['LASER over standard', 'pod', 'temporaries', 'peak', 'sent', 'FLOPs'], body)


def _mesh_table(found: list[dict], name: str) -> str:
  own = [r for r in found if r['experiment'] == name]
  header = ['mesh', 'layers keep', 'parts', 'peak', 'by the estimate', 'sent']
  header += ['compute, ms', 'send, ms', 'memory, ms', 'in turn, ms', 'MFU bound', '']
  order = sorted(own, key=lambda r: (not r['fits'], r['seconds'] and r['seconds']['in_turn']))
  table = rows(header, (_mesh_row(r) for r in order))
  return f'`{name}` on {own[0]["pod"]}:\n\n{table}'


def _mesh_row(r: dict) -> list[str]:
  peaks = [f'{n / _GIB:.2f}' for n in (r['train']['peak_bytes'], r['estimated_bytes'])]
  seconds = r['seconds']
  if seconds is None:  # The compiler gave up.
    return [*_layout_cells(r), *peaks, *[''] * 6, 'does not fit']
  sending = seconds['ici'] + seconds['dcn']
  return [
    *_layout_cells(r),
    *peaks,
    f'{r["sent_bytes"] / _GIB:.2f}',
    f'{(seconds["in_turn"] - sending - seconds["memory"]) * 1e3:.0f}',
    f'{sending * 1e3:.0f}',
    f'{seconds["memory"] * 1e3:.0f}',
    f'{seconds["in_turn"] * 1e3:.0f}',
    f'{r["mfu_bound"]:.3f}',
    'the rule' if r['is_rule'] else '',
  ]
