"""TPU slices, from configs/pods: a file a slice, a file a kind of chip.

This module imports nothing of the package but its error, so that the experiments can read it too.
"""

import dataclasses
import difflib
import itertools
import math
import os
import pathlib
import re
import tomllib
from collections.abc import Sequence

from laser_pax.errors import UserError

_DEFAULT_FOLDER = pathlib.Path(__file__).parents[2] / 'configs' / 'pods'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """A kind of chip. Rates are published peaks of one chip; None where none is stated.

  Attributes:
    name: As slices name it, 'v5p'.
    platform: jax's, 'tpu' or 'cpu'.
    device_kinds: jax's names for it, by which a running job recognises its chips.
    chips_per_host: Chips of one virtual machine.
    source: Where the figures are from.
    compiler_name: libtpu's, 'v5p'.
    host_bounds: How a host's chips lie in the topology.
    peak_bf16_tflops: 1e12 floating-point operations a second.
    hbm_gib: Memory as published, GiB.
    usable_hbm_gib: Memory that the compiler lets a program use, GiB.
    hbm_gbps: Its bandwidth, 1e9 bytes a second.
    ici_gbps: Bandwidth to the other chips of the slice, all links, one way, 1e9 bytes a second.
    dcn_gbps_per_host: Bandwidth between slices, one way, 1e9 bytes a second and host.
    runtime_version: Google Cloud's software of the virtual machines.
  """

  name: str
  platform: str
  device_kinds: tuple[str, ...]
  chips_per_host: int
  source: str
  compiler_name: str | None = None
  host_bounds: tuple[int, ...] | None = None
  peak_bf16_tflops: float | None = None
  hbm_gib: float | None = None
  usable_hbm_gib: float | None = None
  hbm_gbps: float | None = None
  ici_gbps: float | None = None
  dcn_gbps_per_host: float | None = None
  runtime_version: str | None = None

  @property
  def usable_hbm_bytes(self) -> int | None:
    """Bytes that a program may use; None where no limit is stated."""
    return None if self.usable_hbm_gib is None else round(self.usable_hbm_gib * 2**30)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
  """Chips that one job runs on: one slice, or several of the same form.

  Attributes:
    name: The file's, 'v5p-256chips'.
    chip: Their kind.
    chips: Over all slices.
    slices: How many there are.
    hosts: Over all slices.
    topology: Of one slice, '4x8x8'; None for the local machine.
    accelerator_type: Google Cloud's name of one slice.
  """

  name: str
  chip: Chip
  chips: int
  slices: int
  hosts: int
  topology: str | None = None
  accelerator_type: str | None = None

  @property
  def chips_per_slice(self) -> int:
    """Chips of one slice."""
    return self.chips // self.slices

  def can_lay_out(self, mesh: Sequence[int]) -> bool:
    """Whether jax can lay a mesh out on one slice.

    It takes the mesh's axes from the last to the first, and each must be the product of whole axes
    of the topology that are left. A topology that is not known takes any mesh of its size.
    """
    if math.prod(mesh) != self.chips_per_slice:
      return False
    left = [int(n) for n in self.topology.split('x')] if self.topology else []
    for size in reversed(mesh if left else ()):
      subsets = (s for n in (3, 2, 1) for s in itertools.combinations(range(len(left)), n))
      taken = next((s for s in subsets if math.prod(left[i] for i in s) == size), None)
      if taken is None and size > 1:
        return False
      left = [n for i, n in enumerate(left) if i not in (taken or ())]
    return True


def folder() -> pathlib.Path:
  """Returns the folder of the slices' files: LASER_PAX_PODS, or the repository's configs/pods."""
  return pathlib.Path(os.environ.get('LASER_PAX_PODS', _DEFAULT_FOLDER))


def names() -> list[str]:
  """Returns the names of all slices, smaller ones first."""
  found = [path.stem for path in folder().glob('*.toml')]
  return sorted(found, key=lambda name: (find(name).chip.name, find(name).chips, name))


def find(name: str) -> Slice:
  """Returns a slice by name.

  Raises:
    UserError: there is none of that name, or its file is not as expected.
  """
  path = folder() / f'{name}.toml'
  if not path.is_file():
    known = names()
    near = [n for n in known if find(n).accelerator_type == name]
    near = near or difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
    raise UserError(
      f'unknown pod {name!r}; did you mean {" or ".join(near)}? Pods are named by chips (Google '
      f"Cloud's v5p-512 counts cores: it is v5p-256chips); to add one, add a file to {folder()}"
    )
  fields = _read(path)
  chip_path = folder() / 'chips' / f'{fields.get("chip")}.toml'
  if not chip_path.is_file():
    raise UserError(f'{path} has chip = {fields.get("chip")!r}, but there is no {chip_path}')
  chip_fields = _read(chip_path)
  for listed in {'host_bounds', 'device_kinds'} & chip_fields.keys():
    chip_fields[listed] = tuple(chip_fields[listed])
  fields['chip'] = _make(Chip, chip_fields, chip_path)
  found = _make(Slice, {'name': name, **fields}, path)
  _check(found, path)
  return found


def like(
  *, platform: str, device_kind: str, chips: int, slices: int, topology: str | None
) -> Slice:
  """Returns the slice that a running job is on, named or not.

  Args:
    platform: jax's, 'tpu', 'gpu' or 'cpu'.
    device_kind: jax's.
    chips: Devices of the job.
    slices: Slices that they are spread over.
    topology: Of one slice; None where devices have no place.
  """
  known = [find(name) for name in names()]
  alike = [pod for pod in known if device_kind in pod.chip.device_kinds]
  for pod in alike:
    same_form = _form(pod.topology) == _form(topology)
    if (pod.chips, pod.slices) == (chips, slices) and same_form:
      return pod
  if alike:
    chip = alike[0].chip
  else:
    chip = Chip(
      name=device_kind,
      platform=platform,
      device_kinds=(device_kind,),
      chips_per_host=chips,
      source='none',
    )
  hosts = max(1, chips // chip.chips_per_host)
  return Slice(
    name=f'{chips} x {chip.name}',
    chip=chip,
    chips=chips,
    slices=slices,
    hosts=hosts,
    topology=topology,
  )


def _form(topology: str | None) -> str:
  """A topology without axes of one chip at its end: jax says 8x8x1 where Google says 8x8."""
  return re.sub(r'(x1)+$', '', topology or '')


def _read(path: pathlib.Path) -> dict:
  try:
    return tomllib.loads(path.read_text())
  except tomllib.TOMLDecodeError as e:
    raise UserError(f'{path} is not TOML: {e}') from e


def _make(cls: type, fields: dict, path: pathlib.Path):
  """Makes a Chip or Slice of a file's fields, which must be its attributes."""
  attributes = {field.name: field for field in dataclasses.fields(cls)}
  for name in fields:
    if name not in attributes:
      near = difflib.get_close_matches(name, attributes, n=1) or sorted(attributes)
      raise UserError(f'{path} has {name}, which nothing reads; did you mean {", ".join(near)}?')
  for name, field in attributes.items():
    if name not in fields and field.default is dataclasses.MISSING:
      raise UserError(f'{path} lacks {name}')
  return cls(**fields)


def _check(found: Slice, path: pathlib.Path) -> None:
  """Counts of chips must agree with each other."""
  if found.chips != found.hosts * found.chip.chips_per_host:
    raise UserError(
      f'{path}: {found.hosts} hosts of {found.chip.chips_per_host} chips each are not '
      f'{found.chips} chips'
    )
  if found.chips % found.slices:
    raise UserError(f'{path}: {found.chips} chips cannot be {found.slices} equal slices')
  if found.topology is None:
    return
  try:
    chips = math.prod(int(n) for n in found.topology.split('x'))
  except ValueError:
    raise UserError(f'{path}: topology must be like 4x8x8, got {found.topology!r}') from None
  if chips != found.chips_per_slice:
    raise UserError(
      f'{path}: topology {found.topology} has {chips} chips, but one of {found.slices} slice(s) of '
      f'{found.chips} chips has {found.chips_per_slice}'
    )
