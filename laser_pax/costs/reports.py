"""What the TPU compiler says of an experiment on a slice: memory, collectives, bounds of its speed.

docs/pods.md has the formulas.
"""

import dataclasses
import math

from laser_pax.costs import compiler, flops, hlo
from laser_pax.errors import UserError
from laser_pax.experiment import layouts, slices
from laser_pax.experiment.base import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
  """Least seconds of one step, item by item, at the chip's published rates.

  Attributes:
    weights: Of the model's matrix products, forward and backward.
    attention: Of attention's two products.
    rematerialisation: Of what is computed twice.
    skipped: Of what fused attention leaves out of the two, to be taken off.
    ici: Of what a chip sends within its slice.
    dcn: Of what it sends to other slices.
    memory: Of the update, and of what layers keep, in a chip's memory.
  """

  weights: float
  attention: float
  rematerialisation: float
  skipped: float
  ici: float
  dcn: float
  memory: float

  @property
  def compute(self) -> float:
    """Seconds of the matrix products."""
    return self.weights + self.attention + self.rematerialisation - self.skipped

  @property
  def overlapped(self) -> float:
    """The roofline: computing, sending and the memory's work at the same time."""
    return max(self.compute, self.ici, self.dcn, self.memory)

  @property
  def in_turn(self) -> float:
    """One after the other."""
    return self.compute + self.ici + self.dcn + self.memory

  @property
  def mfu_bound(self) -> float:
    """The greatest share of the peak rate that the model's own products can have."""
    return (self.weights + self.attention) / self.overlapped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """An experiment compiled for a slice.

  Attributes:
    experiment: Its name.
    pod: The slice.
    parameters: Trainable numbers.
    layout: The mesh and the rest.
    estimated_bytes: Peak of a chip by the rule's own estimate.
    train: The train step, compiled.
    evaluation: The evaluation's step, compiled; None where it was not asked for.
    collectives: Of the train step; none where the compiler gave up.
    flops: Of the train step, over all chips.
    times: None where the chip's rates are not known, or the compiler gave up.
    is_unrolled: Whether no loop over layers hides costs from XLA's own counts.
  """

  experiment: str
  pod: slices.Slice
  parameters: int
  layout: layouts.Layout
  estimated_bytes: int
  train: compiler.Step
  evaluation: compiler.Step | None
  collectives: list[hlo.Collective]
  flops: flops.Flops
  times: Times | None
  is_unrolled: bool

  @property
  def fits(self) -> bool:
    """Whether the train step's and the evaluation's peak are within what a chip has."""
    limit = self.pod.chip.usable_hbm_bytes
    steps = [step for step in (self.train, self.evaluation) if step]
    return all(s.temporary_bytes is not None and s.peak_bytes <= (limit or math.inf) for s in steps)

  @property
  def sent_bytes(self) -> int | None:
    """What a chip sends in one step; None where the compiler gave up."""
    return sum(c.sent_bytes for c in self.collectives) if self.train.text else None

  def to_json(self) -> dict:
    """Returns the report as JSON's types; bytes are of one chip."""
    fields = {
      'experiment': self.experiment,
      'pod': self.pod.name,
      'chips': self.pod.chips,
      'parameters': self.parameters,
      'ici_mesh_shape': list(self.layout.ici_mesh_shape),
      'dcn_mesh_shape': list(self.layout.dcn_mesh_shape),
      'checkpoint_policy': self.layout.checkpoint_policy.name,
      'micro_batches': self.layout.micro_batches,
      'fits': self.fits,
      'usable_bytes': self.pod.chip.usable_hbm_bytes,
      'estimated_bytes': self.estimated_bytes,
      'train': _step_json(self.train),
      'eval': _step_json(self.evaluation) if self.evaluation else None,
      'collectives': [dataclasses.asdict(c) for c in self.collectives],
      'sent_bytes': self.sent_bytes,
      'flops': dataclasses.asdict(self.flops),
      'seconds': None,
      'mfu_bound': None,
    }
    if self.times:
      times = dataclasses.asdict(self.times)
      times |= {'overlapped': self.times.overlapped, 'in_turn': self.times.in_turn}
      fields |= {'seconds': times, 'mfu_bound': self.times.mfu_bound}
    return fields


def _step_json(step: compiler.Step) -> dict:
  fields = dataclasses.asdict(step)
  del fields['text']
  return fields


class DoesNotFit(UserError):
  """The state of an experiment alone does not fit a chip."""


def check_room(experiment: Experiment) -> None:
  """Checks, before anything is compiled, that the state alone leaves room on a chip.

  Raises:
    DoesNotFit: it does not; the message has the smallest slice that should do.
  """
  pod, layout = experiment.pod(), experiment.layout()
  limit = pod.chip.usable_hbm_bytes
  state = layouts.state_bytes(experiment.sizes(), layout)
  if limit and state > limit:
    raise DoesNotFit(
      f'{type(experiment).__name__} DOES NOT FIT {pod.name}: weights and moments alone are '
      f'{state / 2**30:.1f} GiB on each chip of the mesh {layout.mesh()}, and a chip has '
      f'{limit / 2**30:.2f} GiB. {advice(experiment)}'
    )


def advice(experiment: Experiment) -> str:
  """Says what would fit by the estimate: another layout of the same slice, else another slice."""
  pod, sizes, tried = experiment.pod(), experiment.sizes(), experiment.layout()
  free = layouts.choose(sizes, pod)
  if free != tried and layouts.fits(sizes, free, pod):
    return f'By the estimate, this fits: {describe(free)}'
  if lean := _leaner(experiment):
    return f'Next best: {describe(lean)}'
  if names := _smallest(sizes, pod):
    return f'By the estimate, the smallest slices that hold it: {names}'
  return 'By the estimate, no other slice of configs/pods holds it'


def _leaner(experiment: Experiment) -> layouts.Layout | None:
  """Returns the layout with twice the micro-batches, if the batch can be divided so."""
  pod, layout = experiment.pod(), experiment.layout()
  replica, data, _ = layout.mesh()
  parts = 2 * layout.micro_batches
  if experiment.GLOBAL_BATCH_SIZE % (replica * data * parts) or not pod.chip.usable_hbm_bytes:
    return None
  lean = dataclasses.replace(layout, micro_batches=parts)
  return lean if layouts.state_bytes(experiment.sizes(), lean) < pod.chip.usable_hbm_bytes else None


def _smallest(sizes: layouts.Sizes, tried: slices.Slice) -> str:
  """Names the smallest slice of each kind of chip that the estimate says will do."""
  by_chip = {}
  for name in slices.names():
    if name == tried.name:
      continue
    pod = slices.find(name)
    shared = pod.chip.platform == 'tpu' and sizes.global_batch_size % pod.chips == 0
    if shared and layouts.fits(sizes, layouts.choose(sizes, pod), pod):
      by_chip.setdefault(pod.chip.name, name)  # Names come smaller ones first.
  return ', '.join(by_chip.values())


def describe(layout: layouts.Layout) -> str:
  """A layout as the attributes that set it."""
  text = f'ICI_MESH_SHAPE={list(layout.ici_mesh_shape)}'
  if math.prod(layout.dcn_mesh_shape) > 1:
    text += f' DCN_MESH_SHAPE={list(layout.dcn_mesh_shape)}'
  text += f" CHECKPOINT_POLICY='{layout.checkpoint_policy.value}'"
  return f'{text} MICRO_BATCHES={layout.micro_batches}'


def report(experiment: Experiment, *, evaluation: bool = True) -> Report:
  """Compiles an experiment for the slice that it is planned for, and reports.

  Args:
    experiment: Planned by `on`.
    evaluation: Whether to compile the step of an evaluation too.

  Raises:
    UserError: its sizes do not fit each other.
    DoesNotFit: its state alone does not fit a chip.
  """
  experiment.check()
  experiment.check_pod()
  check_room(experiment)
  pod, layout = experiment.pod(), experiment.layout()
  traced = compiler.trace_train(experiment, pod)
  counted = flops.step_flops(experiment, traced.parameters, traced.jaxpr)
  train = compiler.compile_step(traced)
  slice_of = [getattr(device, 'slice_index', 0) for device in traced.mesh.devices.flat]
  sent = hlo.collectives(train.text, pod.chips, slice_of) if train.text else []
  traffic = layouts.memory_traffic(experiment.sizes(), layout)
  return Report(
    experiment=type(experiment).__name__,
    pod=pod,
    parameters=traced.parameters,
    layout=layout,
    estimated_bytes=layouts.peak_bytes(experiment.sizes(), layout),
    train=train,
    evaluation=compiler.compile_step(compiler.trace_eval(experiment, pod)) if evaluation else None,
    collectives=sent,
    flops=counted,
    times=_times(counted, sent, traffic, pod) if train.text else None,
    is_unrolled=not experiment.USE_REPEATED_LAYER and layout.micro_batches == 1,
  )


def _times(
  counted: flops.Flops, sent: list[hlo.Collective], traffic: int, pod: slices.Slice
) -> Times | None:
  """Divides each item by its rate."""
  chip = pod.chip
  if not (chip.peak_bf16_tflops and chip.ici_gbps and chip.hbm_gbps):
    return None
  rate = pod.chips * chip.peak_bf16_tflops * 1e12
  between = sum(c.sent_between_slices for c in sent)
  if between and not chip.dcn_gbps_per_host:
    raise UserError(f'{chip.name} has no dcn_gbps_per_host: add it to its file in configs/pods')
  dcn = between / (chip.dcn_gbps_per_host * 1e9 / chip.chips_per_host) if between else 0.0
  return Times(
    weights=counted.weights / rate,
    attention=counted.attention / rate,
    rematerialisation=counted.rematerialisation / rate,
    skipped=counted.skipped / rate,
    ici=sum(c.sent_bytes for c in sent) / (chip.ici_gbps * 1e9),
    dcn=dcn,
    memory=traffic / (chip.hbm_gbps * 1e9),
  )
