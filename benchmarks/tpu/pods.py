"""Compiles the pairs for their slices, and writes the tables of docs/pods.md.

`python -m benchmarks.tpu.pods` compiles each pair, train and evaluation step, in some fifty
minutes on two cores. With `--meshes` it compiles several layouts of each LASER decoder, in about
half an hour. The exit code is 1 where one does not fit. docs/results keeps each report as a line of
JSON.
"""

import json
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator

import jax

from benchmarks import page
from laser_pax import configs
from laser_pax.costs import console, libtpu, reports, search
from laser_pax.experiment import layouts

PAGE = page.DOCS / 'pods.md'
PODS, MESHES = page.RESULTS / 'pods.jsonl', page.RESULTS / 'meshes.jsonl'

_GIB = 2**30


# Those whose slice the paper names, and its largest. The 234M differs little from the 300M.
DECODERS = [(f'C4Standard{size}', f'C4Laser{size}') for size in ('300M', '1B', '2B', '7B')]
# The pairs that the page shows, standard attention first.
PAIRS = [
  *DECODERS,
  ('WikipediaStandardBert2B', 'WikipediaLaserBert2B'),
  ('ImageNetStandardViTS16', 'ImageNetLaserViTS16'),
  ('ImageNetStandardViTS16QkNorm', 'ImageNetLaserViTS16QkNorm'),
  ('LibriSpeechStandardConformer', 'LibriSpeechLaserConformer'),
]


def write_pods() -> int:
  """Compiles each pair for its slices.

  Returns:
    The exit code: 1 where one does not fit.
  """
  records = _compile_all(
    PODS,
    (
      reports.report(getattr(configs, name)().on(pod))
      for pair in PAIRS
      for pod in search.slices_to_compare(getattr(configs, pair[0])())
      for name in pair
    ),
  )
  page.replace('pods', pods_tables(records), PAGE)
  return 0 if all(r['fits'] for r in records) else 1


def write_meshes() -> int:
  """Compiles several layouts of each LASER decoder for its slice.

  Returns:
    The exit code: 1 where the rule's own does not fit.
  """
  names = [laser for _, laser in DECODERS]
  records = _compile_all(
    MESHES,
    (r for name in names for r in search.compile_layouts(getattr(configs, name)().on())),
  )
  page.replace('meshes', meshes_tables(records), PAGE)
  return 0 if all(r['fits'] for r in records if r['is_rule']) else 1


def pods_tables(records: list[dict]) -> str:
  """Returns the tables of the pairs on their slices, from reports as kept in `PODS`."""
  return f'{_pods_table(records)}\n\n{_ratio_table(records)}'


def meshes_tables(records: list[dict]) -> str:
  """Returns the tables of layouts, from reports as kept in `MESHES`."""
  names = dict.fromkeys(r['experiment'] for r in records)
  return '\n\n'.join(_mesh_table(records, name) for name in names)


def _compile_all(kept: pathlib.Path, compiled: Iterable[reports.Report]) -> list[dict]:
  """Writes each report to a file as it comes, prints a line, and returns all reports."""
  start, records = time.time(), []
  kept.parent.mkdir(exist_ok=True)
  part = kept.with_suffix('.part')  # The earlier file stays until the new one is complete.
  with open(part, 'w') as file:
    for r in compiled:
      fields = r.to_json() | {'is_rule': r.layout == _ruled(r)}
      records.append(fields)
      file.write(json.dumps(fields) + '\n')
      file.flush()
      where = f'{r.experiment} on {r.pod.name}, {reports.describe(r.layout)}'
      print(f'{time.time() - start:6.0f} s  {where}: {console.verdict(r)}', flush=True)
      jax.clear_caches()
  part.replace(kept)
  return records


def _ruled(r: reports.Report) -> layouts.Layout:
  """Returns the layout that the rule gives a report's experiment."""
  return getattr(configs, r.experiment)().on(r.pod.name).layout()


def _layout_cells(r: dict) -> list[str]:
  return [
    str(r['ici_mesh_shape']),
    r['checkpoint_policy'].lower().removeprefix('save_').replace('_', ' '),
    str(r['micro_batches']),
  ]


def _pods_table(records: list[dict]) -> str:
  header = ['experiment', 'pod', 'mesh', 'layers keep', 'parts', 'state', 'temporaries', 'peak']
  header += ['of the memory', "evaluation's peak", 'sent', 'compute, ms', 'send, ms', 'memory, ms']
  header += ['MFU bound', 'compile, s']
  return page.rows(header, (_pods_row(r) for r in records))


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
  """Returns the sum over what is computed, in FLOPs or in seconds."""
  return parts['weights'] + parts['attention'] + parts['rematerialisation'] - parts['skipped']


def _ratio_table(records: list[dict]) -> str:
  reports_by_plan = {(r['experiment'], r['pod']): r for r in records}
  body = []
  for (name, pod), laser in reports_by_plan.items():
    if 'Laser' not in name:
      continue
    standard = reports_by_plan[name.replace('Laser', 'Standard'), pod]
    if not (laser['seconds'] and standard['seconds']):
      continue
    values = [
      laser['train']['temporary_bytes'] / standard['train']['temporary_bytes'],
      laser['train']['peak_bytes'] / standard['train']['peak_bytes'],
      laser['sent_bytes'] / standard['sent_bytes'],
      _computed(laser['flops']) / _computed(standard['flops']),
    ]
    body.append([f'`{name}`', pod, *(f'{value:.4f}' for value in values)])
  return page.rows(['LASER over standard', 'pod', 'temporaries', 'peak', 'sent', 'FLOPs'], body)


def _mesh_table(records: list[dict], name: str) -> str:
  own = [r for r in records if r['experiment'] == name]
  header = ['mesh', 'layers keep', 'parts', 'peak', 'by the estimate', 'sent']
  header += ['compute, ms', 'send, ms', 'memory, ms', 'in turn, ms', 'MFU bound', '']
  order = sorted(own, key=lambda r: (not r['fits'], r['seconds'] and r['seconds']['in_turn']))
  table = page.rows(header, (_mesh_row(r) for r in order))
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


if __name__ == '__main__':
  libtpu.use()
  sys.exit(write_meshes() if '--meshes' in sys.argv[1:] else write_pods())
