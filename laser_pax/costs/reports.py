"""Reports by the compiler on an experiment and a slice: memory, collectives, bounds of speed.

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
    weights: Time of the weights' matrix products, forward and backward.
    attention: Time of attention's two products, forward and backward.
    rematerialisation: Time of products that are computed a second time.
    skipped: Time of products that fused attention leaves out. It is subtracted from the sum.
    ici: Time of sending to chips of the same slice.
    dcn: Time of sending to other slices.
    memory: Time of memory traffic, for the update and for activations that layers keep.
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
    """Seconds by the roofline: computing, sending and memory traffic at the same time."""
    return max(self.compute, self.ici, self.dcn, self.memory)

  @property
  def in_turn(self) -> float:
    """Seconds of computing, sending and memory traffic, one after the other."""
    return self.compute + self.ici + self.dcn + self.memory

  @property
  def mfu_bound(self) -> float:
    """Greatest possible MFU: the share of the peak rate that the model's own products reach."""
    return (self.weights + self.attention) / self.overlapped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """An experiment compiled for a slice.

  Attributes:
    experiment: Name of the experiment.
    pod: The slice.
    parameters: Number of trainable parameters.
    layout: Layout of the step on the slice.
    estimated_bytes: Peak of a chip, by the estimate of the layout rule.
    train: The compiled train step.
    evaluation: The compiled evaluation step, or None if it was not requested.
    collectives: Collectives of the train step. The list is empty if the compiler gave up.
    flops: Operations of the train step, over all chips.
    times: Times of the train step, or None if the chip's rates are not known or the compiler gave
      up.
    is_unrolled: Whether the step has no loop, which would hide costs from XLA's own counts.
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
    """Whether the peaks of the train step and the evaluation fit a chip's memory."""
    limit = self.pod.chip.usable_hbm_bytes
    steps = [step for step in (self.train, self.evaluation) if step]
    return all(s.temporary_bytes is not None and s.peak_bytes <= (limit or math.inf) for s in steps)

  @property
  def sent_bytes(self) -> int | None:
    """Bytes that a chip sends in one step, or None if the compiler gave up."""
    return sum(c.sent_bytes for c in self.collectives) if self.train.text else None

  def to_json(self) -> dict:
    """Returns the report in types of JSON. Bytes are those of one chip."""
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
  """Checks that the state alone fits a chip, before anything is compiled.

  Raises:
    DoesNotFit: It does not; the message has the smallest slices that fit by the estimate.
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
  """Returns advice: a layout of the same slice that fits by the estimate, else another slice."""
  pod, sizes = experiment.pod(), experiment.sizes()
  best = layouts.choose(sizes, pod)
  if best != experiment.layout() and layouts.fits(sizes, best, pod):
    return f'By the estimate, this fits: {describe(best)}'
  if lean := _leaner(experiment):
    return f'Next best: {describe(lean)}'
  if names := _smallest(sizes, pod):
    return f'By the estimate, the smallest slices that hold it: {names}'
  return 'By the estimate, no other slice of configs/pods holds it'


def _leaner(experiment: Experiment) -> layouts.Layout | None:
  """Returns the layout with twice the micro-batches, or None if that cannot help."""
  pod, layout = experiment.pod(), experiment.layout()
  replica, data, _ = layout.mesh()
  parts = 2 * layout.micro_batches
  if experiment.GLOBAL_BATCH_SIZE % (replica * data * parts) or not pod.chip.usable_hbm_bytes:
    return None
  lean = dataclasses.replace(layout, micro_batches=parts)
  return lean if layouts.state_bytes(experiment.sizes(), lean) < pod.chip.usable_hbm_bytes else None


def _smallest(sizes: layouts.Sizes, tried: slices.Slice) -> str:
  """Returns the names of the smallest slices that fit by the estimate, one a kind of chip."""
  smallest = {}
  for name in slices.names():
    if name == tried.name:
      continue
    pod = slices.find(name)
    is_candidate = pod.chip.platform == 'tpu' and sizes.global_batch_size % pod.chips == 0
    if is_candidate and layouts.fits(sizes, layouts.choose(sizes, pod), pod):
      smallest.setdefault(pod.chip.name, name)  # The smaller slices come first.
  return ', '.join(smallest.values())


def describe(layout: layouts.Layout) -> str:
  """Returns a layout in words: the attributes of an experiment that set it."""
  text = f'ICI_MESH_SHAPE={list(layout.ici_mesh_shape)}'
  if math.prod(layout.dcn_mesh_shape) > 1:
    text += f' DCN_MESH_SHAPE={list(layout.dcn_mesh_shape)}'
  text += f" CHECKPOINT_POLICY='{layout.checkpoint_policy.value}'"
  return f'{text} MICRO_BATCHES={layout.micro_batches}'


def report(experiment: Experiment, *, evaluation: bool = True) -> Report:
  """Compiles an experiment for the slice that it is planned for, and returns the report.

  Args:
    experiment: Experiment whose slice was set by `on`.
    evaluation: Whether to compile the evaluation step too.

  Raises:
    UserError: The experiment's sizes do not fit each other or the slice.
    DoesNotFit: The state alone does not fit a chip.
  """
  experiment.check()
  experiment.check_pod()
  check_room(experiment)
  pod, layout = experiment.pod(), experiment.layout()
  traced = compiler.trace_train(experiment, pod)
  operations = flops.step_flops(experiment, traced.parameters, traced.jaxpr)
  train = compiler.compile_step(traced)
  chip_slices = [getattr(device, 'slice_index', 0) for device in traced.mesh.devices.flat]
  collectives = hlo.collectives(train.text, pod.chips, chip_slices) if train.text else []
  traffic = layouts.memory_traffic(experiment.sizes(), layout)
  return Report(
    experiment=type(experiment).__name__,
    pod=pod,
    parameters=traced.parameters,
    layout=layout,
    estimated_bytes=layouts.peak_bytes(experiment.sizes(), layout),
    train=train,
    evaluation=compiler.compile_step(compiler.trace_eval(experiment, pod)) if evaluation else None,
    collectives=collectives,
    flops=operations,
    times=_times(operations, collectives, traffic, pod) if train.text else None,
    is_unrolled=not experiment.USE_REPEATED_LAYER and layout.micro_batches == 1,
  )


def _times(
  operations: flops.Flops, collectives: list[hlo.Collective], traffic: int, pod: slices.Slice
) -> Times | None:
  """Returns each item divided by its rate, or None if the chip's rates are not known."""
  chip = pod.chip
  if not (chip.peak_bf16_tflops and chip.ici_gbps and chip.hbm_gbps):
    return None
  rate = pod.chips * chip.peak_bf16_tflops * 1e12
  sent_between_slices = sum(c.sent_between_slices for c in collectives)
  if sent_between_slices and not chip.dcn_gbps_per_host:
    raise UserError(f'{chip.name} has no dcn_gbps_per_host: add it to its file in configs/pods')
  dcn = 0.0
  if sent_between_slices:
    dcn = sent_between_slices / (chip.dcn_gbps_per_host * 1e9 / chip.chips_per_host)
  return Times(
    weights=operations.weights / rate,
    attention=operations.attention / rate,
    rematerialisation=operations.rematerialisation / rate,
    skipped=operations.skipped / rate,
    ici=sum(c.sent_bytes for c in collectives) / (chip.ici_gbps * 1e9),
    dcn=dcn,
    memory=traffic / (chip.hbm_gbps * 1e9),
  )
