"""`python -m laser_pax doctor`: the environment, its faults, and the commands that mend them."""

from __future__ import annotations

import glob
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import typer

from laser_pax import folders, pax_names
from laser_pax.errors import UserError

PYTHONS = ((3, 11), (3, 13))
# A PAX run depends on the versions of these packages. For any other package, another version is
# only noted.
PINNED = (
  'paxml',
  'praxis',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'numpy',
  'seqio',
  't5',
  'tensorflow-cpu',
  'tensorflow-text',
  'tensorflow-datasets',
  'lingvo',
)
# Pairs of packages that install into the same folder and break each other.
CLASHES = (
  ('tensorflow-datasets', 'tfds-nightly'),
  ('seqio', 'seqio-nightly'),
  ('tensorflow-cpu', 'tensorflow'),
)
_ROOT = pathlib.Path(__file__).parents[2]
_CURRENT = 'requirements-current.txt'  # The file of the set "current"; the others are pinned.
_DEVICES_TIMEOUT_S = 60
_DEVICES_PROGRAM = (
  'import json, jax; print(json.dumps([f"{d.platform} {d.device_kind}" for d in jax.devices()]))'
)


class Finding(NamedTuple):
  """One line of the report.

  Attributes:
    subject: The thing that was checked.
    state: The result: `ok`, `note` (only some runs need it) or `wrong` (it must be mended).
    actual: The state of the thing, in words.
    fix: The command that mends it, in one line. It is empty if nothing is to be done.
  """

  subject: str
  state: Literal['ok', 'note', 'wrong']
  actual: str
  fix: str = ''


@dataclass(frozen=True)
class Environment:
  """The facts that the checks use.

  Attributes:
    python: Major and minor version of Python.
    installed: Versions of the installed packages, by normalised name.
    required: Versions that the requirements file pins, by normalised name.
    requirements: Path of the requirements file for this kind of machine and this set.
    has_names: Whether Python gives today's jax the names that PAX needs, when it starts.
    environ: The environment variables.
    has_tpu: Whether the machine has a TPU.
    has_nvidia: Whether the machine has an NVIDIA GPU.
    job_dir: The folder that a run would write to.
  """

  python: tuple[int, int]
  installed: Mapping[str, str]
  required: Mapping[str, str]
  requirements: str
  has_names: bool
  environ: Mapping[str, str]
  has_tpu: bool
  has_nvidia: bool
  job_dir: pathlib.Path


class Devices(NamedTuple):
  """The answer of jax to the question for its devices.

  Attributes:
    names: The `platform kind` of each device; empty if jax failed.
    error: The reason of the failure, in one line.
  """

  names: tuple[str, ...]
  error: str = ''


def doctor(
  job_log_dir: Annotated[
    str, typer.Option('--job_log_dir', help='Check that a run could write here.')
  ] = '.',
) -> None:
  """Prints versions, devices, data and vocabulary, and the commands that mend faults.

  The exit code is 0 if nothing is wrong, else 1.
  """
  environment = read_environment(folders.resolve_local(job_log_dir))
  findings = diagnose(environment, _ask_devices)
  _print(findings)
  if any(f.state == 'wrong' for f in findings):
    raise typer.Exit(1)


def diagnose(environment: Environment, ask_devices) -> list[Finding]:
  """Runs every check.

  Args:
    environment: The facts to check.
    ask_devices: A function that returns the `Devices`. It is called only where jax would answer.
  """
  libtpu = check_libtpu(environment)
  if any(f.state == 'wrong' for f in libtpu) and 'JAX_PLATFORMS' not in environment.environ:
    devices = [Finding('devices', 'note', 'jax was not asked: with this libtpu it would hang')]
  else:
    devices = check_devices(environment, ask_devices())
  return [
    *check_python(environment),
    *check_set(environment),
    *check_packages(environment),
    *check_clashes(environment),
    *libtpu,
    *devices,
    *check_data(environment),
    *check_folders(environment),
  ]


def check_python(environment: Environment) -> list[Finding]:
  """Checks that the pinned packages exist for this version of Python."""
  version = '.'.join(map(str, environment.python))
  if PYTHONS[0] <= environment.python <= PYTHONS[1]:
    return [Finding('Python', 'ok', version)]
  expected = ' to '.join('.'.join(map(str, version)) for version in PYTHONS)
  return [Finding('Python', 'wrong', f'{version}; expected {expected}', 'scripts/setup.sh')]


def check_set(environment: Environment) -> list[Finding]:
  """Names the set of packages, and checks that today's jax gets the names that PAX needs."""
  if not environment.requirements.endswith(_CURRENT):
    return [Finding('set', 'ok', f'pinned, {environment.requirements}')]
  if environment.has_names:
    return [Finding('set', 'ok', f'current, experimental, {environment.requirements}')]
  fix = f'{sys.executable} -m laser_pax.pax_names'
  return [Finding('set', 'wrong', 'current, without the names of jax that PAX needs', fix)]


def check_packages(environment: Environment) -> list[Finding]:
  """Compares the installed packages with the requirements file."""
  if not environment.required:
    return [Finding('packages', 'note', f'{environment.requirements} is not there to compare')]
  fix = f'{sys.executable} -m pip install --no-deps --requirement {environment.requirements}'
  findings, matching = [], 0
  for name in sorted(environment.required, key=lambda n: (n not in PINNED, n)):
    expected, installed = environment.required[name], environment.installed.get(name)
    if installed is None:
      findings.append(Finding(name, 'wrong', f'missing; expected {expected}', fix))
    elif installed != expected:
      state = 'wrong' if name in PINNED else 'note'
      mend = fix if name in PINNED else ''
      findings.append(Finding(name, state, f'{installed}; expected {expected}', mend))
    elif name in PINNED:
      findings.append(Finding(name, 'ok', installed))
    else:
      matching += 1
  return [*findings, Finding('other packages', 'ok', f'{matching} as required')]


def check_clashes(environment: Environment) -> list[Finding]:
  """Looks for two packages that share a folder. The later one has broken the earlier one."""
  return [
    Finding(
      f'{kept} and {stray}',
      'wrong',
      'both are installed, and share a folder',
      f'{sys.executable} -m pip uninstall --yes {stray} {kept} && {sys.executable} -m pip install '
      f'--no-deps --requirement {environment.requirements}',
    )
    for kept, stray in CLASHES
    if kept in environment.installed and stray in environment.installed
  ]


def check_libtpu(environment: Environment) -> list[Finding]:
  """Looks for libtpu on a machine without a TPU. There `jax.devices()` hangs for minutes."""
  stray = [name for name in ('libtpu', 'libtpu-nightly') if name in environment.installed]
  if environment.has_tpu or not stray:
    return []
  return [
    Finding(
      name,
      'wrong',
      'installed on a machine without a TPU: jax.devices() hangs',
      f'{sys.executable} -m pip uninstall --yes {name}',
    )
    for name in stray
  ]


def check_devices(environment: Environment, devices: Devices) -> list[Finding]:
  """Checks that jax answers, and that it sees the accelerator that the machine has."""
  if devices.error and environment.has_tpu:
    # All hosts of a slice must ask at once, and one process holds a host's chips.
    fix = f'{sys.executable} -m laser_pax doctor  # on every host at once, with no job running'
    return [Finding('devices', 'note', f'{devices.error}; other hosts, or a job, may hold it', fix)]
  if devices.error:
    fix = f'JAX_PLATFORMS=cpu {sys.executable} -c "import jax; print(jax.devices())"'
    return [Finding('devices', 'wrong', devices.error, fix)]
  counts = {name: devices.names.count(name) for name in devices.names}
  listed = ', '.join(f'{count} x {name}' for name, count in counts.items())
  if not all(name.startswith('cpu') for name in devices.names):
    return [Finding('devices', 'ok', listed)]
  if platforms := environment.environ.get('JAX_PLATFORMS'):
    return [Finding('devices', 'ok', f'{listed} (JAX_PLATFORMS={platforms})')]
  if environment.has_tpu:
    return [Finding('devices', 'wrong', f'{listed}; the TPU is not used', 'scripts/setup.sh tpu')]
  if environment.has_nvidia:
    return [Finding('devices', 'note', f'{listed}; the GPU is not used', 'scripts/setup.sh gpu')]
  return [Finding('devices', 'ok', listed)]


def check_data(environment: Environment) -> list[Finding]:
  """Looks for the prepared data, and a vocabulary for texts. The Tiny experiments need neither."""
  try:
    from laser_pax.data import datasets, sources
  except ModuleNotFoundError:  # check_packages says which package is missing.
    return []
  named_data = environment.environ.get(sources.DATA_DIR_VARIABLE)
  named_vocab = environment.environ.get(sources.VOCAB_VARIABLE)
  try:
    data_dir = named_data or sources.default_data_dir()
  except UserError:  # check_folders says what is missing.
    return []
  prepared = [spec for spec in datasets.specs() if spec.find(folders.resolve(data_dir))]
  variable = sources.DATA_DIR_VARIABLE if named_data else ''
  command = datasets.specs()[0].prepare_command(data_dir)
  names = f'{data_dir} ({", ".join(dict.fromkeys(spec.name for spec in prepared))})'
  findings = [
    Finding('data', 'ok', names) if prepared else _missing('data', variable, data_dir, command)
  ]
  if prepared and not named_vocab and not any(spec.is_text() for spec in prepared):
    return findings  # None of these data sets needs one.
  variable = sources.VOCAB_VARIABLE if named_vocab else ''
  command = sources.vocab_command(data_dir, named_vocab or 'vocab.model', 32_000)
  return [*findings, _check_vocab(variable, named_vocab or '', command)]


def _check_vocab(variable: str, path: str, command: str) -> Finding:
  """Looks for the vocabulary's file."""
  from etils import epath

  if path and epath.Path(folders.resolve(path)).exists():
    return Finding('vocabulary', 'ok', path)
  return _missing('vocabulary', variable, path, command)


def _missing(subject: str, variable: str, path: str, command: str) -> Finding:
  """Returns what to say of a missing file. It is wrong only if a variable names it."""
  where = f' in {path}' if path else ''
  if variable:
    return Finding(subject, 'wrong', f'none{where}, which {variable} names', command)
  return Finding(subject, 'note', f'none{where}: the Tiny experiments take the sample', command)


def check_folders(environment: Environment) -> list[Finding]:
  """Checks that files can be made in the job's folder and in the cache."""
  fix = f'{sys.executable} -m laser_pax doctor --job_log_dir=DIR'
  findings = [_check_folder('job folder', environment.job_dir, fix)]
  fix = 'export XDG_CACHE_HOME=DIR'
  try:
    findings.append(_check_folder('cache', folders.cache_dir(), fix))
  except UserError as e:
    findings.append(Finding('cache', 'wrong', str(e), fix))
  return findings


def _check_folder(subject: str, folder: pathlib.Path, fix: str) -> Finding:
  """Checks that a file can be made in a folder, or in the nearest parent that exists."""
  try:
    folder = folders.resolve_local(folder)
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    with tempfile.TemporaryFile(dir=existing):
      return Finding(subject, 'ok', f'{folder} can be written')
  except OSError as e:
    return Finding(subject, 'wrong', f'{folder} cannot be written: {e.strerror}', fix)


def read_environment(job_dir: pathlib.Path) -> Environment:
  """Returns the facts of this machine and this Python."""
  installed = {
    _normalised(name): d.version
    for d in importlib.metadata.distributions()
    if (name := d.metadata['Name'])  # A package that is half removed has none.
  }
  has_tpu = bool(glob.glob('/dev/accel*') + glob.glob('/dev/vfio/[0-9]*')) or any(
    name in os.environ for name in ('TPU_NAME', 'TPU_ACCELERATOR_TYPE', 'TPU_WORKER_ID')
  )
  if has_tpu:
    file = 'requirements-tpu.txt'
  else:
    file = 'requirements-gpu.txt' if 'jax-cuda12-plugin' in installed else 'requirements.txt'
  if platform.machine() in ('aarch64', 'arm64'):
    file = 'requirements-arm.txt'
  current = _read_requirements(_ROOT / _CURRENT)
  if current.get('jax', '') == installed.get('jax'):
    file = _CURRENT
  return Environment(
    python=sys.version_info[:2],
    installed=installed,
    required=_read_requirements(_ROOT / file),
    requirements=os.path.relpath(_ROOT / file),
    has_names=os.path.exists(pax_names.start_file()),
    environ=os.environ,
    has_tpu=has_tpu,
    has_nvidia=os.path.exists('/dev/nvidia0'),
    job_dir=job_dir,
  )


def _read_requirements(path: pathlib.Path) -> dict[str, str]:
  """Returns the pinned versions for this Python, by name; none if there is no such file."""
  from packaging.requirements import Requirement

  required = {}
  if path.exists():
    for line in path.read_text().splitlines():
      if re.match(r'\w', line):
        requirement = Requirement(line.rstrip('\\ '))
        if requirement.marker is None or requirement.marker.evaluate():
          required[_normalised(requirement.name)] = str(requirement.specifier).removeprefix('==')
  return required


def _normalised(name: str) -> str:
  return re.sub(r'[-_.]+', '-', name).lower()


def _ask_devices() -> Devices:
  """Asks jax in a separate process, which may hang or crash."""
  try:
    completed = subprocess.run(
      [sys.executable, '-c', _DEVICES_PROGRAM],
      capture_output=True,
      text=True,
      timeout=_DEVICES_TIMEOUT_S,
    )
  except subprocess.TimeoutExpired:
    return Devices((), f'jax gave no answer in {_DEVICES_TIMEOUT_S} s')
  except OSError as e:
    return Devices((), f'{sys.executable} cannot be started: {e.strerror}')
  if completed.returncode:
    lines = completed.stderr.strip().splitlines()
    return Devices((), f'jax failed: {lines[-1] if lines else completed.returncode}')
  return Devices(tuple(json.loads(completed.stdout.splitlines()[-1])))


def _print(findings: list[Finding]) -> None:
  from rich import box, console, table, text

  out = console.Console(highlight=False)
  styles = {'ok': 'green', 'note': 'yellow', 'wrong': 'bold red'}
  report = table.Table(box=box.SIMPLE, show_header=False)
  for finding in findings:
    words = (finding.state, finding.subject, finding.actual)
    report.add_row(*map(text.Text, words), style=styles[finding.state])
  out.print(report)
  for state, title in (('wrong', 'To mend:'), ('note', 'If you need it:')):
    fixes = dict.fromkeys(f.fix for f in findings if f.state == state and f.fix)
    if fixes:
      out.print(title)
    for fix in fixes:
      out.print(f'  {fix}', markup=False, soft_wrap=True)
