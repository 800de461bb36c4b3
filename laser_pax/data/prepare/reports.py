"""The report of a prepared data set: what was taken, what was left out, and its shards."""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from laser_pax import folders
from laser_pax.data.datasets import DatasetSpec
from laser_pax.data.prepare import files
from laser_pax.errors import UserError

# The report's name in the folder of the data set.
FILE = 'report.json'
# So many names of what was left out are printed. The report has all.
SHOWN = 20

# The counts of one part of the work: `sources`, a row for each file with `path`, `documents` and
# `blank`, and `shards`, a row for each shard with `file`, `split`, `documents` and `bytes`.
Part = dict[str, Any]


def documents_by_split(dataset: DatasetSpec, parts: list[Part]) -> dict[str, int]:
  """Returns how many documents each split has."""
  shards = [shard for part in parts for shard in part['shards']]
  return {
    split: sum(shard['documents'] for shard in shards if shard['split'] == split)
    for split in dataset.splits
  }


def report(dataset: DatasetSpec, sources: files.Sources, parts: list[Part]) -> dict[str, Any]:
  """Returns the report. Documents in are documents written, and those left out as blank.

  Args:
    dataset: The data set.
    sources: What the search found.
    parts: The counts of all parts.

  Returns:
    `documents`, with the numbers `in`, `blank`, and of each split; `sources`, the files that were
    read; `copies`, those of them whose content an earlier one has; `left_out`, the files that were
    not read, with why; and `splits`, the shards by their names.
  """
  read = [row for part in parts for row in part['sources']]
  counts = {name: sum(row[name] for row in read) for name in ('documents', 'blank')}
  written = documents_by_split(dataset, parts)
  assert counts['documents'] == counts['blank'] + sum(written.values())
  return {
    'documents': {'in': counts['documents'], 'blank': counts['blank']} | written,
    'sources': read,
    'copies': [folders.shown(path) for path in sources.copies],
    'left_out': [{'path': folders.shown(x.path), 'reason': x.reason} for x in sources.left_out],
    'splits': _name_shards(dataset, parts),
  }


def written_bytes(folder: epath.PathLike) -> dict[str, int]:
  """Returns the bytes of each shard by its name, as the report of a data set has them.

  Args:
    folder: Folder of the data set, local or in a bucket. Without a report nothing is known.
  """
  try:
    splits = json.loads((epath.Path(folder) / FILE).read_text()).get('splits', {})
    return {shard['name']: shard['file_bytes'] for shards in splits.values() for shard in shards}
  except FileNotFoundError:
    return {}
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(
      f'{folder}/{FILE}: not the report that `prepare` wrote ({e!r}); copy it again, or remove it'
    ) from e


def report_items(
  dataset: DatasetSpec,
  unit: str,
  sources: files.Sources,
  shards: list[dict[str, Any]],
  left_out: Sequence[tuple[str, str]],
) -> dict[str, Any]:
  """Returns the report of a data set of items, such as images: those written, and those left out.

  Args:
    dataset: The data set.
    unit: What an item is called, in the plural.
    sources: What the search found.
    shards: A row for each shard, with `name`, `split`, `items`, `file_bytes`, and `changed` and
      `skipped`, pairs of an item's name and a reason.
    left_out: Pairs of items that were left out before.

  Returns:
    As `report`, with `unit`; and `changed`, the items that were made anew, with why.
  """
  skipped = [*left_out, *(pair for shard in shards for pair in shard['skipped'])]
  written = {
    split: sum(shard['items'] for shard in shards if shard['split'] == split)
    for split in dataset.splits
  }
  not_read = [{'path': folders.shown(x.path), 'reason': x.reason} for x in sources.left_out]
  return {
    'unit': unit,
    'documents': {'in': sum(written.values()) + len(skipped), 'blank': 0} | written,
    'sources': [{'path': folders.shown(path)} for path in sources.taken],
    'copies': [],
    'left_out': not_read + [{'path': name, 'reason': reason} for name, reason in skipped],
    'changed': [
      {'path': name, 'reason': reason} for shard in shards for name, reason in shard['changed']
    ],
    'splits': {
      split: [
        {'name': shard['name'], 'items': shard['items'], 'file_bytes': shard['file_bytes']}
        for shard in shards
        if shard['split'] == split
      ]
      for split in dataset.splits
    },
  }


def _name_shards(dataset: DatasetSpec, parts: list[Part]) -> dict[str, list[dict[str, Any]]]:
  """Returns the shards of each split, with their final names."""
  named: dict[str, list[dict[str, Any]]] = {}
  for split in dataset.splits:
    shards = [s for part in parts for s in part['shards'] if s['split'] == split]
    named[split] = [
      s | {'name': f'{dataset.name}-{split}.tfrecord-{i:05d}-of-{len(shards):05d}'}
      for i, s in enumerate(shards)
    ]
  return named


def lines(report: dict[str, Any]) -> list[str]:
  """Returns a report in words, for the end of `prepare`."""
  counts = dict(report['documents'])
  total, blank = counts.pop('in'), counts.pop('blank')
  splits = ', '.join(f'{number:,} {split}' for split, number in counts.items())
  left_out = report['left_out']
  reasons = collections.Counter(x['reason'] for x in left_out)
  unit = report.get('unit', 'documents')
  said = [f'read {len(report["sources"]):,} files, {total:,} {unit}: {splits}']
  if blank:
    said.append(f'left out {blank:,} documents without text')
  if changed := report.get('changed', []):
    why = _counted(collections.Counter(x['reason'] for x in changed))
    said.append(f'made {len(changed):,} {unit} anew ({why}), such as {changed[0]["path"]}')
  if left_out:
    kinds = 'files or folders' if unit == 'documents' else f'files, folders or {unit}'
    said.append(f'left out {len(left_out):,} {kinds} ({_counted(reasons)})')
    said += [f'  {x["path"]}: {x["reason"]}' for x in left_out[:SHOWN]]
  if len(left_out) > SHOWN:
    said.append(f'  and {len(left_out) - SHOWN:,} more; all are in {FILE}')
  if copies := report['copies']:
    said.append(f'note: {len(copies):,} of the files are copies of others, such as {copies[0]}')
  return said


def _counted(reasons: collections.Counter[str]) -> str:
  return ', '.join(f'{number:,}: {reason}' for reason, number in reasons.items())
