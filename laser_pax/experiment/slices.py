"""TPU slices, read from configs/pods: one file for each slice, and one for each kind of chip.

This module imports only the package's error, so every other module can import it.
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
  """A kind of chip. Rates are published peaks of one chip, or None if none is published.

  Attributes:
    name: Name in the slices' files, such as 'v5p'.
    platform: Platform in jax's terms, 'tpu' or 'cpu'.
    device_kinds: Names that jax gives the chip. A running job recognises its chips by them.
    chips_per_host: Chips of one virtual machine.
    source: Source of the figures.
    compiler_name: Name that libtpu gives the chip, such as 'v5p'.
    host_bounds: Shape of one host's chips in the topology.
    peak_bf16_tflops: Peak speed in bfloat16, in 1e12 floating-point operations a second.
    hbm_gib: Published memory, in GiB.
    usable_hbm_gib: Memory that the compiler lets a program use, in GiB.
    hbm_gbps: Bandwidth of the memory, in 1e9 bytes a second.
    ici_gbps: Bandwidth to other chips of the slice over all links, one way, in 1e9 bytes a second.
    dcn_gbps_per_host: Bandwidth of a host to other slices, one way, in 1e9 bytes a second.
    runtime_version: Version of Google Cloud's software for the virtual machines.
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
    """Bytes of memory that a program may use, or None if no limit is stated."""
    return None if self.usable_hbm_gib is None else round(self.usable_hbm_gib * 2**30)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
  """The chips of one job: one slice, or several of the same shape.

  Attributes:
    name: Name of the slice's file, such as 'v5p-256chips'.
    chip: Kind of the chips.
    chips: Number of chips, over all slices.
    slices: Number of slices.
    hosts: Number of hosts, over all slices.
    topology: Topology of one slice, such as '4x8x8'. None stands for the local machine.
    accelerator_type: Name that Google Cloud gives one slice.
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
    """Number of chips of one slice."""
    return self.chips // self.slices

  def can_lay_out(self, mesh: Sequence[int]) -> bool:
    """Returns whether jax can lay a mesh out on one slice.

    jax takes the mesh's axes from the last to the first. Each must be the product of whole axes of
    the topology that no earlier one took. If the topology is not known, any mesh of its size fits.

    Args:
      mesh: Devices along replica, data and mdl within one slice.
    """
    if math.prod(mesh) != self.chips_per_slice:
      return False
    free_axes = [int(n) for n in self.topology.split('x')] if self.topology else []
    for size in reversed(mesh if free_axes else ()):
      subsets = (s for n in (3, 2, 1) for s in itertools.combinations(range(len(free_axes)), n))
      taken = next((s for s in subsets if math.prod(free_axes[i] for i in s) == size), None)
      if taken is None and size > 1:
        return False
      free_axes = [n for i, n in enumerate(free_axes) if i not in (taken or ())]
    return True


def folder() -> pathlib.Path:
  """Returns the folder of the slices' files: LASER_PAX_PODS, or the repository's configs/pods."""
  return pathlib.Path(os.environ.get('LASER_PAX_PODS', _DEFAULT_FOLDER))


def names() -> list[str]:
  """Returns the names of all slices, smaller ones first."""
  stems = [path.stem for path in folder().glob('*.toml')]
  return sorted(stems, key=lambda name: (find(name).chip.name, find(name).chips, name))


def find(name: str) -> Slice:
  """Returns a slice by name.

  Raises:
    UserError: No slice has that name, or its file is wrong.
  """
  path = folder() / f'{name}.toml'
  if os.path.basename(name) != name or not path.is_file():
    known = names()
    suggestions = [n for n in known if find(n).accelerator_type == name]
    suggestions = suggestions or difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
    raise UserError(
      f'unknown pod {name!r}; did you mean {" or ".join(suggestions)}? Pods are named by chips '
      "(Google Cloud's v5p-512 counts cores: it is v5p-256chips); to add one, add a file to "
      f'{folder()}'
    )
  fields = _read(path)
  chip_path = folder() / 'chips' / f'{fields.get("chip")}.toml'
  if not chip_path.is_file():
    raise UserError(f'{path} has chip = {fields.get("chip")!r}, but there is no {chip_path}')
  chip_fields = _read(chip_path)
  for field in {'host_bounds', 'device_kinds'} & chip_fields.keys():
    chip_fields[field] = tuple(chip_fields[field])
  fields['chip'] = _make(Chip, chip_fields, chip_path)
  pod = _make(Slice, {'name': name, **fields}, path)
  _check(pod, path)
  return pod


def from_devices(
  *, platform: str, device_kind: str, chips: int, slices: int, topology: str | None
) -> Slice:
  """Returns the slice of a running job: that of configs/pods which matches, else a new one.

  Args:
    platform: Platform of jax, 'tpu', 'gpu' or 'cpu'.
    device_kind: Name that jax gives the chip.
    chips: Number of devices of the job.
    slices: Number of slices of the job.
    topology: Topology of one slice. None stands for devices without coordinates.
  """
  known = [find(name) for name in names()]
  same_kind = [pod for pod in known if device_kind in pod.chip.device_kinds]
  for pod in same_kind:
    same_topology = _trim_ones(pod.topology) == _trim_ones(topology)
    if (pod.chips, pod.slices) == (chips, slices) and same_topology:
      return pod
  if same_kind:
    chip = same_kind[0].chip
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


def of_this_job() -> Slice:
  """Returns the slice of the devices that jax sees; it need not be one of configs/pods."""
  import jax

  devices = jax.devices()
  coordinates = [device.coords for device in devices if getattr(device, 'coords', None)]
  sizes = [str(max(axis) + 1) for axis in zip(*coordinates, strict=True)]
  return from_devices(
    platform=devices[0].platform,
    device_kind=devices[0].device_kind,
    chips=len(devices),
    slices=len({getattr(device, 'slice_index', 0) for device in devices}),
    topology='x'.join(sizes) or None,
  )


def _trim_ones(topology: str | None) -> str:
  """Returns a topology without axes of one chip at its end: jax writes 8x8x1, Google 8x8."""
  return re.sub(r'(x1)+$', '', topology or '')


def _read(path: pathlib.Path) -> dict:
  try:
    return tomllib.loads(path.read_text())
  except tomllib.TOMLDecodeError as e:
    raise UserError(f'{path} is not TOML: {e}') from e


def _make(cls: type, fields: dict, path: pathlib.Path):
  """Returns a Chip or Slice made from a file's fields, whose names must be its attributes."""
  attributes = {field.name: field for field in dataclasses.fields(cls)}
  for name in fields:
    if name not in attributes:
      suggestions = difflib.get_close_matches(name, attributes, n=1) or sorted(attributes)
      raise UserError(
        f'{path} has {name}, which nothing reads; did you mean {", ".join(suggestions)}?'
      )
  for name, field in attributes.items():
    if name not in fields and field.default is dataclasses.MISSING:
      raise UserError(f'{path} lacks {name}: add {name} = VALUE to it')
  return cls(**fields)


def _check(pod: Slice, path: pathlib.Path) -> None:
  """Checks that the counts of chips agree with each other."""
  if pod.chips != pod.hosts * pod.chip.chips_per_host:
    raise UserError(
      f'{path}: {pod.hosts} hosts of {pod.chip.chips_per_host} chips each are not {pod.chips} chips'
    )
  if pod.chips % pod.slices:
    raise UserError(f'{path}: {pod.chips} chips cannot be {pod.slices} equal slices')
  if pod.topology is None:
    return
  try:
    chips = math.prod(int(n) for n in pod.topology.split('x'))
  except ValueError:
    raise UserError(f'{path}: topology must be like 4x8x8, got {pod.topology!r}') from None
  if chips != pod.chips_per_slice:
    raise UserError(
      f'{path}: topology {pod.topology} has {chips} chips, but one of {pod.slices} slice(s) of '
      f'{pod.chips} chips has {pod.chips_per_slice}'
    )
