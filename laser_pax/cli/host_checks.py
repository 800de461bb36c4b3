"""Checks that scripts/tpu_pod.sh makes on each host before it starts a job."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import socket

from laser_pax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
# Lists each file that `tpu_pod.sh setup` copied to this host, one a line: `sha256  path`.
MANIFEST = ROOT / '.manifest'


def check(code: str, pod: str, data: str, vocab: str, job_log_dir: str) -> list[str]:
  """Makes all checks that one host can make.

  Returns:
    Five lines: code, versions, chips, data with vocabulary, and job folder. Each is `ok: STATE` or
    `wrong: WHAT TO DO`.
  """
  checks = (
    lambda: check_code(code),
    check_versions,
    lambda: check_chips(pod),
    lambda: check_data(data, vocab),
    lambda: check_job_log_dir(job_log_dir),
  )
  results = []
  for one_check in checks:
    try:
      results.append(f'ok: {one_check()}')
    except Exception as e:  # noqa: BLE001  # Each kind of storage has its own exceptions.
      results.append(f'wrong: {e}')
  return results


def check_code(expected: str) -> str:
  """Compares the files here with the files that `setup` brought. Returns the hash of all files.

  Args:
    expected: The hash of the checkout that `tpu_pod.sh` is part of.
  """
  fix = 'run: scripts/tpu_pod.sh setup'
  if not MANIFEST.exists():
    raise UserError(f'no code was brought here; {fix}')
  for line in MANIFEST.read_text().splitlines():
    digest, path = line.split('  ', 1)
    file = ROOT / path
    if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
      raise UserError(f'{path} is not as setup brought it; {fix}')
  code = hashlib.sha256(MANIFEST.read_bytes()).hexdigest()[:12]
  if code != expected:
    raise UserError(f'the code here is {code}, that of tpu_pod.sh is {expected}; {fix}')
  return code


def check_versions() -> str:
  """Compares the packages with the requirements. Returns the versions that matter most."""
  from laser_pax.cli import doctor

  environment = doctor.read_environment(pathlib.Path())
  findings = [*doctor.check_python(environment), *doctor.check_packages(environment)]
  if wrong := [f for f in findings if f.state == 'wrong']:
    first = wrong[0]
    raise UserError(f'{first.subject}: {first.actual}; run: scripts/tpu_pod.sh setup')
  return f'python {platform.python_version()}, jax {importlib.metadata.version("jax")}'


def check_chips(pod: str) -> str:
  """Counts the chips of this host without taking them. Returns their number and name."""
  from laser_pax.experiment import slices

  chip = slices.find(pod).chip
  if chip.platform == 'tpu':
    from laser_pax import pax_fixes

    chips = pax_fixes.count_tpu_chips()
  else:
    import jax

    chips = jax.local_device_count()
  if chips != chip.chips_per_host:
    raise UserError(
      f'expected {chip.chips_per_host} {chip.name} chips, found {chips}: make the slice anew with '
      f'scripts/tpu_pod.sh delete and create'
    )
  return f'{chips} {chip.name}'


def check_data(data: str, vocab: str) -> str:
  """Looks for the prepared data, and for the vocabulary of texts. Reads a byte of each split.

  A folder may hold several data sets, and the job's is not known here. So a vocabulary may be
  missing if one of them needs none; a job that needs it says so when it starts.
  """
  if not data and not vocab:
    return 'the sample'

  from etils import epath

  from laser_pax.data import datasets, sources, vocabulary

  folder = sources.find_data_dir(data).path
  prepared = [spec for spec in datasets.specs() if spec.find(folder)]
  if not prepared:
    known = ', '.join(spec.folder for spec in datasets.specs())
    raise UserError(f'no prepared data: expected one of {known} in {folder}, whole: copy it there')
  for spec in prepared:
    for pattern in spec.file_patterns():
      with min(epath.Path(spec.find(folder)).glob(pattern)).open('rb') as f:
        f.read(1)
  if not vocab:
    texts = dict.fromkeys(spec.name for spec in prepared if spec.is_text())
    if all(spec.is_text() for spec in prepared):
      raise UserError(
        f'DATA_DIR is set and VOCAB is not: set the vocabulary that goes with {", ".join(texts)}'
      )
    note = f'; no VOCAB for {", ".join(texts)}' if texts else ''
    return ', '.join(dict.fromkeys(spec.name for spec in prepared)) + note
  if not epath.Path(vocab).exists():
    raise UserError(f'no vocabulary: {vocab} is not there: copy it, or set VOCAB to where it is')
  return f'{vocabulary.vocabulary_size(vocab)} pieces'


def check_job_log_dir(job_log_dir: str) -> str:
  """Writes a file into the job's folder, and removes it."""
  from etils import epath

  folder = epath.Path(job_log_dir).expanduser()
  probe = folder / f'.probe-{socket.gethostname()}-{os.getpid()}'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe.write_text('')
    probe.unlink()
  except Exception as e:  # noqa: BLE001  # Each kind of storage has its own exceptions.
    reason = getattr(e, 'strerror', None) or str(e)
    raise UserError(f'cannot write to {job_log_dir} ({reason}): name one that you may write') from e
  return 'writable'
