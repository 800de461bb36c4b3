"""The base of every experiment: overrides, slice, layout, checks before the start, programs.

A family of experiments, such as the decoders of decoder.py, is a subclass of `Experiment` that adds
the members of `family.Family`. Tools know an experiment by these two alone.
"""

import difflib
import math
from collections.abc import Mapping
from typing import Self

import jax
from paxml import base_experiment, decode_programs, programs
from praxis import base_input, layers, pax_fiddle, py_utils

from laser_pax import pax_fixes
from laser_pax.errors import UserError
from laser_pax.experiment import (
  checks,
  family,
  initial,
  jobs,
  layouts,
  modes,
  overrides,
  retention,
  slices,
  training,
)
from laser_pax.ops import choice

pax_fixes.apply()  # Also for experiments that do not import laser_pax.configs.

# These packages read the capital attributes of their own classes.
_LIBRARIES = ('laser_pax', 'paxml', 'praxis')


class BatchSpecs(base_input.BaseInputSpecsProvider):
  """A provider, in PAX's sense, of batch shapes that are already known.

  Attributes:
    specs: A `jax.ShapeDtypeStruct` for each array of the batch.
  """

  specs: py_utils.NestedMap | None = None

  def get_input_specs(self) -> py_utils.NestedMap:
    """Returns the shapes."""
    return self.specs


class Experiment(initial.StartsFromARun, base_experiment.BaseExperiment, family.Family):
  """An experiment with a planned slice, a layout by rule, and checks before it starts.

  Capital attributes can be overridden from the command line, in PAX's own way:
  `--fdl_config=laser_pax.configs.C4LaserTiny --fdl.NUM_LAYERS=2`. Experiments of this package are
  registered as laser_pax.configs.<Name>, whichever file defines them. A subclass implements the
  members of `family.Family`.

  The next attributes may be None: ICI_MESH_SHAPE, DCN_MESH_SHAPE, CHECKPOINT_POLICY and
  MICRO_BATCHES. The rule of layouts.py then chooses them, from the sizes and the chips.

  Attributes:
    GLOBAL_BATCH_SIZE: Rows of one step, over all devices. It does not depend on their number.
    NUM_TRAIN_STEPS: Steps of the whole training.
    INIT_SEED: Seed of the initial weights and of dropout. Twins of one seed start alike.
    POD: The slice that the experiment is planned for. `show` and `aot` report on it. Training also
      runs on any other slice, with the same global batch.
    ICI_MESH_SHAPE: The mesh [replica, data, mdl] within a slice.
    DCN_MESH_SHAPE: The mesh over slices, in the same order.
    CHECKPOINT_POLICY: The activations that layers keep for the backward pass.
    MICRO_BATCHES: Number of parts of the batch. The parts are computed one after another.
    USE_REPEATED_LAYER: Whether layers run in a loop. A loop is compiled once for all of them.
    ATTENTION_KERNEL: The kernel that attention asks for, such as 'triton' on GPUs (docs/gpu.md).
      None, or where it cannot serve: `show` and the log say which one serves.
    ATTENTION_SUMMARY_QUERIES: Queries of a batch's first example whose attention TensorBoard shows:
      small probabilities, spread of values (docs/analysis.md). None for none.
    MAX_SKIPPED_IN_A_ROW: PAX skips a step whose gradients are not finite. So many in a row end the
      training; None for no end.
    CHECKPOINT_EVERY_N_STEPS: Steps between two checkpoints.
    CHECKPOINT_MAX_TO_KEEP: Number of the last checkpoints that stay; None for all. PAX also keeps
      one each twelve hours.
    CHECKPOINT_KEEP_EVERY_N_STEPS: Checkpoints of a multiple of so many steps stay too. None: none.
    CHECKPOINT_KEEP_BEST: So many of those whose evaluations were best stay too.
  """

  GLOBAL_BATCH_SIZE: int
  NUM_TRAIN_STEPS: int

  INIT_SEED = 1234  # [ours], PAX's default
  POD = 'cpu'
  ICI_MESH_SHAPE: list[int] | None = None
  DCN_MESH_SHAPE: list[int] | None = None
  CHECKPOINT_POLICY: layers.AutodiffCheckpointType | None = None
  MICRO_BATCHES: int | None = None
  USE_REPEATED_LAYER = True  # [ours]
  ATTENTION_KERNEL: choice.Kernel | None = None
  ATTENTION_SUMMARY_QUERIES: int | None = None

  SUMMARY_INTERVAL_STEPS = 100  # [ours]
  EVAL_INTERVAL_STEPS = 2_500  # [ours]
  MAX_SKIPPED_IN_A_ROW: int | None = 100  # [ours]
  CHECKPOINT_EVERY_N_STEPS = 2_500  # [ours]
  CHECKPOINT_MAX_TO_KEEP: int | None = 10  # [ours]
  CHECKPOINT_KEEP_EVERY_N_STEPS: int | None = None
  CHECKPOINT_KEEP_BEST = 1  # [ours]

  _pod: slices.Slice | None = None

  def __init_subclass__(cls, **kwargs):
    if cls.__module__.startswith('laser_pax.configs.'):
      cls.__module__ = 'laser_pax.configs'
    super().__init_subclass__(**kwargs)

  def on(self, pod: str | None = None) -> Self:
    """Plans this experiment for a slice, not for this job's devices, and returns the experiment.

    Args:
      pod: Name of a slice, which is a file of configs/pods. None stands for POD.

    Raises:
      UserError: There is no such slice.
    """
    self._pod = slices.find(pod or self.POD)
    return self

  def pod(self) -> slices.Slice:
    """Returns the slice that `on` set; without one, the slice that this job runs on."""
    return self._pod if self._pod is not None else slices.of_this_job()

  def layout(self) -> layouts.Layout:
    """Returns mesh, policy and micro-batches. The rule chooses those that are None here."""
    return layouts.choose(
      self.sizes(),
      self.pod(),
      ici_mesh_shape=self.ici_mesh_shape(),
      dcn_mesh_shape=self.DCN_MESH_SHAPE,
      checkpoint_policy=self.CHECKPOINT_POLICY,
      micro_batches=self.MICRO_BATCHES,
    )

  def ici_mesh_shape(self) -> list[int] | None:
    """Returns the mesh within a slice; None where the rule is to choose it."""
    return self.ICI_MESH_SHAPE

  def use_layout(self, layout: layouts.Layout) -> None:
    """Sets all four attributes of the layout, so that the rule chooses none."""
    self.ICI_MESH_SHAPE = list(layout.ici_mesh_shape)
    self.DCN_MESH_SHAPE = list(layout.dcn_mesh_shape)
    self.CHECKPOINT_POLICY = layout.checkpoint_policy
    self.MICRO_BATCHES = layout.micro_batches

  def mesh(self) -> list[int]:
    """Returns the number of devices along [replica, data, mdl], over all slices."""
    return self.layout().mesh()

  def micro_batches(self) -> int:
    """Returns the number of parts in which a step's batch is computed."""
    return self.layout().micro_batches

  def eval_batch_size(self) -> int:
    """Returns the rows of one evaluation step: as many as one part of a train step has."""
    return self.GLOBAL_BATCH_SIZE // self.micro_batches()

  def units(self) -> int:
    """Returns the number of units (tokens, images) of the whole training."""
    return self.NUM_TRAIN_STEPS * self.units_per_step()

  def get_input_specs_provider_params(self) -> pax_fiddle.Config[BatchSpecs]:
    """Returns the shapes of this process's share of a batch, without opening the data."""
    specs = self.input_specs(self.GLOBAL_BATCH_SIZE // jax.process_count())
    return pax_fiddle.Config(BatchSpecs, specs=specs)

  def set_intervals(self, task_p: family.Task) -> None:
    """Sets, for a family's `task`, the seed, when PAX saves and evaluates, and that data resume."""
    train = task_p.train
    train.random_seed = self.INIT_SEED
    train.save_interval_steps = self.CHECKPOINT_EVERY_N_STEPS
    train.save_max_to_keep = self.CHECKPOINT_MAX_TO_KEEP
    train.summary_interval_steps = self.SUMMARY_INTERVAL_STEPS
    train.eval_interval_steps = self.EVAL_INTERVAL_STEPS
    train.enable_input_checkpointing = True
    train.eval_skip_train = True  # Nothing reads an evaluation of a training batch.

  def train_programs(self) -> list[training.TrainProgram]:
    """Returns PAX's train program, which computes a step's batch in `micro_batches` parts."""
    limit = self.MAX_SKIPPED_IN_A_ROW
    return [training.TrainProgram(self.micro_batches(), max_skipped_in_a_row=limit)]

  def eval_programs(self) -> list[programs.BaseEvalProgram]:
    """Returns the evaluations, which are closed at the end, and whose figure is remembered."""
    return modes.figures_remembered(modes.closed_at_exit(self.evaluations()), self.METRIC)

  def evaluations(self) -> list[programs.BaseEvalProgram]:
    """Returns PAX's evaluations. A family with others overrides this."""
    return super().eval_programs()

  def retention(self) -> retention.Policy:
    """Returns which checkpoints stay beside the last CHECKPOINT_MAX_TO_KEEP."""
    best, every = self.CHECKPOINT_KEEP_BEST, self.CHECKPOINT_KEEP_EVERY_N_STEPS
    return retention.Policy(every, best, self.METRIC.better)

  def decode_programs(self) -> list[decode_programs.SingleTaskDecodeProgram]:
    """Returns PAX's decodings."""
    return modes.closed_at_exit(super().decode_programs())

  def validate(self) -> None:
    """Checks overrides, sizes, devices and data before anything is compiled.

    Raises:
      UserError: A value does not fit or is missing; the message has the fix.
    """
    super().validate()
    modes.follow_run(self)
    self.check_overrides()
    self.check_numbers()
    self.check()
    self.check_pod()
    checks.check_batch(self.GLOBAL_BATCH_SIZE, jax.device_count(), jax.process_count())
    self.check_data()
    self.check_start()
    modes.check_decodes(self)
    modes.claim_job_folder(self)

  def check_numbers(self) -> None:
    """Checks the numbers of the training itself.

    Raises:
      UserError: One is out of its range.
    """
    names = ('GLOBAL_BATCH_SIZE', 'NUM_TRAIN_STEPS', 'MICRO_BATCHES', 'SUMMARY_INTERVAL_STEPS')
    names += ('CHECKPOINT_EVERY_N_STEPS', 'CHECKPOINT_MAX_TO_KEEP', 'ATTENTION_SUMMARY_QUERIES')
    names += ('CHECKPOINT_KEEP_EVERY_N_STEPS', 'MAX_SKIPPED_IN_A_ROW')
    checks.check_at_least(self, 1, names)
    checks.check_at_least(self, 0, ('EVAL_INTERVAL_STEPS', 'CHECKPOINT_KEEP_BEST'))

  def check_layout(self, dims: Mapping[str, int]) -> None:
    """Checks that the mesh can divide the batch and the model.

    Args:
      dims: Sizes of the model by name, in the form of `checks.check_mesh`.

    Raises:
      UserError: It cannot; the message has the fix.
    """
    checks.check_batch(self.GLOBAL_BATCH_SIZE, math.prod(self.mesh()), num_processes=1)
    checks.check_mesh(self.mesh(), dims)
    checks.check_micro_batches(self.micro_batches(), self.GLOBAL_BATCH_SIZE, self.mesh())

  def check_pod(self) -> None:
    """Checks the mesh against the chips of the slice.

    Raises:
      UserError: The mesh has another number of chips, or cannot be laid out on them. Or jax found
        only a CPU where the experiment is planned for accelerators.
    """
    layout, pod, planned = self.layout(), self.pod(), slices.find(self.POD)
    if pod.chip.platform == 'cpu' != planned.chip.platform and self._pod is None:
      raise UserError(
        f'{type(self).__name__} is planned for {self.POD}; this job has {pod.chips} CPU device(s): '
        "jax found no accelerator. To train on the CPU nevertheless, set POD = 'cpu'"
      )
    checks.check_devices(layout.mesh(), pod.chips)
    if not pod.can_lay_out(layout.ici_mesh_shape):
      raise UserError(
        f'jax cannot lay the mesh {list(layout.ici_mesh_shape)} out on {pod.topology} chips: each '
        'of its numbers must be the product of whole axes of that topology, each used once. Set '
        'ICI_MESH_SHAPE and DCN_MESH_SHAPE to None, and the rule chooses a mesh'
      )

  def check_overrides(self) -> None:
    """Checks that each overridden attribute exists, and takes its value in the attribute's type.

    PAX would set any other attribute and ignore it.

    Raises:
      UserError: An override from the command line names no attribute, or has a value that the
        attribute cannot have. Or a subclass sets an attribute whose name is nearly that of a known
        one.
    """
    known, added = set(), set()
    for cls in type(self).__mro__:
      names = {name for name in vars(cls) if name.isupper()}
      (known if cls.__module__.split('.')[0] in _LIBRARIES else added).update(names)
    for name, value in list(vars(self).items()):
      if name.startswith('_'):
        continue
      if name not in known | added:
        near = difflib.get_close_matches(name, known | added, n=3)
        hint = f'did you mean {", ".join(near)}?' if near else 'its attributes are in capitals'
        raise UserError(f'{type(self).__name__} has no attribute {name!r}; {hint}')
      setattr(self, name, overrides.fit(type(self), name, value))
    for name in added - known:
      if suggestions := difflib.get_close_matches(name, known, n=1, cutoff=0.85):
        raise UserError(
          f'{type(self).__name__} sets {name}, which nothing reads; did you mean {suggestions[0]}?'
        )

  def vocabulary(self) -> str | None:
    """Returns the file of the vocabulary, of which a job's folder gets a copy; None without one."""
    return None

  def job_mark(self) -> str:
    """Returns the text that marks a job's folder as this run's."""
    named = {k: getattr(v, '__name__', v) for k, v in vars(self).items() if k.isupper()}
    changed = [f'{name}={value}' for name, value in named.items()]  # A dtype by its name.
    return jobs.mark_text(f'{type(self).__module__}.{type(self).__name__}', changed)
