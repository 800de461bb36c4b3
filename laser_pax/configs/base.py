"""What the experiments share: the LASER mixin, AdamW, and the decoder language model."""

import difflib
import math
from typing import Self

import fiddle
import jax
import jax.numpy as jnp
from absl import flags
from etils import epath
from paxml import base_experiment, tasks_lib
from paxml.tasks.lm import model_params
from praxis import base_input, layers, optimizers, pax_fiddle, py_utils, schedules

from laser_pax import training
from laser_pax.configs import checks
from laser_pax.configs import layout as layouts
from laser_pax.data import inputs, paths
from laser_pax.errors import UserError
from laser_pax.layers import LeanSharedEmbeddingSoftmax, use_fused, use_laser, use_rows_einsum
from laser_pax.pods import slices

# Whose attributes in capitals are read by somebody.
_LIBRARIES = ('laser_pax', 'paxml', 'praxis')

Task = pax_fiddle.Config[tasks_lib.SingleTask]


class Experiment(base_experiment.BaseExperiment):
  """An experiment whose capitals can be overridden from the command line.

  PAX's own way: `--fdl_config=laser_pax.configs.C4LaserTiny --fdl.NUM_LAYERS=2`. Experiments of
  this package are registered as laser_pax.configs.<Name>, whichever file they stand in.
  """

  def __init_subclass__(cls, **kwargs):
    if cls.__module__.startswith('laser_pax.configs.'):
      cls.__module__ = 'laser_pax.configs'
    super().__init_subclass__(**kwargs)

  def validate(self) -> None:
    """Checks the overridden attributes, as `check_overrides`."""
    super().validate()
    self.check_overrides()

  def check_overrides(self) -> None:
    """Checks that each overridden attribute exists: PAX would set any other and ignore it.

    Raises:
      UserError: an override from the command line names no attribute, or a subclass has one that is
        nearly another's name.
    """
    known, added = set(), set()
    for cls in type(self).__mro__:
      names = {name for name in vars(cls) if name.isupper()}
      (known if cls.__module__.split('.')[0] in _LIBRARIES else added).update(names)
    for name in vars(self):
      if not name.startswith('_') and name not in known | added:
        near = difflib.get_close_matches(name, known | added, n=3) or sorted(known | added)
        raise UserError(f'{type(self).__name__} has no {name}; did you mean {", ".join(near)}?')
    for name in added - known:
      if near := difflib.get_close_matches(name, known, n=1, cutoff=0.85):
        raise UserError(
          f'{type(self).__name__} sets {name}, which nothing reads; did you mean {near[0]}?'
        )


class LaserMixin:
  """Makes a standard experiment its LASER twin: the same but for the attention.

  `class C4Laser2B(LaserMixin, C4Standard2B)` replaces every attention of the model by its LASER
  form, with the same variables, so that checkpoints are interchangeable.

  Attributes:
    NUMERICS: How LASER is computed: 'exact', which is accurate in bfloat16 for values of any size,
      or 'paper', its Algorithm 1 to the letter (docs/numerics.md).
  """

  NUMERICS = 'exact'  # [ours]

  def task(self) -> Task:
    """Returns the standard twin's task with LASER attention."""
    task_p = super().task()
    use_laser(task_p.model, self.NUMERICS)
    return task_p


def set_adamw(
  task_p: Task,
  *,
  learning_rate: float,
  weight_decay: float,
  beta1: float,
  beta2: float,
  epsilon: float,
  clip_gradient_norm: float,
  warmup_steps: int,
  num_train_steps: int,
) -> None:
  """Sets AdamW with linear warm-up and cosine decay to zero at the last step [paper].

  With t the number of updates done, W warmup_steps and T num_train_steps:

      lr(t) = learning_rate t / W                                     for t < W
      lr(t) = learning_rate (1 + cos(pi (t - W) / (T - W))) / 2       after

  The trajectory is optax.adamw's. Two things that PAX's Adam does besides are switched off: it caps
  each update's root mean square at 1, and replaces infinite gradients by zeros. Layer norms are not
  decayed, as Praxis marks them; all else is.

  Args:
    task_p: The task to change.
    learning_rate: The peak.
    weight_decay: Decoupled; multiplied by lr(t).
    beta1: Decay of the first moment.
    beta2: Decay of the second moment.
    epsilon: Added to the root of the second moment.
    clip_gradient_norm: Gradients of a greater global norm are scaled down to it; 0 for no clipping.
    warmup_steps: W.
    num_train_steps: T, set on the task as well.

  Raises:
    UserError: the warm-up does not end before the training.
  """
  checks.check_schedule(warmup_steps, num_train_steps)
  task_p.train.num_train_steps = num_train_steps
  learner = task_p.train.learner
  learner.loss_name = 'total_loss'
  learner.repeat_prefix_sep = '_'  # PAX's own '#' does not survive some file systems.
  learner.optimizer = pax_fiddle.Config(
    optimizers.Adam,
    beta1=beta1,
    beta2=beta2,
    epsilon=epsilon,
    clip_threshold=0.0,
    maybe_inf_to_nan=False,
    decoupled_weight_decay=weight_decay,
    clip_gradient_norm_to_value=clip_gradient_norm,
    learning_rate=learning_rate,
    lr_schedule=pax_fiddle.Config(
      schedules.LinearRampupCosineDecay,
      warmup_steps=warmup_steps,
      decay_start=warmup_steps,
      decay_end=num_train_steps,
      min_ratio=0.0,
      max=1.0,
    ),
  )


class LanguageModelInputSpecs(base_input.BaseInputSpecsProvider):
  """The shapes of a language model's batch, known without opening the data.

  Attributes:
    batch_size: Sequences of one process.
    seq_len: Tokens of one sequence.
  """

  batch_size: int = 0
  seq_len: int = 0

  def get_input_specs(self) -> py_utils.NestedMap:
    """Returns ids, labels, segment_ids, segment_pos int32, paddings, weights float32: [B, T]."""
    shape = (self.batch_size, self.seq_len)
    integer, real = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, jnp.float32))
    return py_utils.NestedMap(
      ids=integer,
      labels=integer,
      paddings=real,
      segment_ids=integer,
      segment_pos=integer,
      weights=real,
    )


class DecoderLM(Experiment, model_params.TransformerLmSpmdAdafactor):
  """A decoder-only language model on packed text, trained by AdamW.

  The architecture is PAX's own TransformerLmSpmdAdafactor: pre-norm, sinusoidal positions, ReLU MLP
  of two matrices, input and output embedding tied. Attributes not named here are that class's. On a
  TPU its attention is a fused kernel's (docs/fused.md).

  Attributes:
    DATA_DIR: Folder of the prepared data (`python -m laser_pax prepare c4`). None:
      LASER_PAX_DATA_DIR.
    VOCAB: SentencePiece model (`python -m laser_pax vocab`). None: LASER_PAX_VOCAB.
    GLOBAL_BATCH_SIZE: Sequences of one step, over all devices, however many there are.
    SEQ_LEN: Tokens of one sequence.
    NUM_TRAIN_STEPS: Steps; the learning rate reaches zero at the last.
    WARMUP_STEPS: Steps of linear warm-up.
    LEARNING_RATE: The peak.
    WEIGHT_DECAY: Decoupled.
    DATA_SEED: Of the order of the training data.
    POD: The slice that it is planned for: what `show` and `aot` say holds there. It trains on any
      other as well, with the same global batch.
    ICI_MESH_SHAPE: [replica, data, mdl] within a slice. None, as for the next three: by the rule of
      laser_pax/configs/layout.py, from the sizes and the chips.
    DCN_MESH_SHAPE: The same over slices.
    CHECKPOINT_POLICY: What the layers keep for the backward pass.
    MICRO_BATCHES: Parts of the batch, computed one after another.
    LAYERS_PER_BLOCK: Layers of one turn of the loop over layers. What CHECKPOINT_POLICY does not
      keep is computed again a block at a time, of a block's input: docs/pods.md tells where 2 take
      less memory than 1. A checkpoint holds layers by block, and fits no other.
  """

  DATA_DIR: str | None = None
  VOCAB: str | None = None
  DATA_SEED = 0

  GLOBAL_BATCH_SIZE = 1024  # [paper]
  SEQ_LEN = 1024  # [paper]
  NUM_TRAIN_STEPS = 160_000  # [paper]
  VOCAB_SIZE = 32_000  # [derived], see C4Standard300M

  LEARNING_RATE = 1e-3  # [ours]
  WARMUP_STEPS = 4_000  # [ours], PAX's default
  WEIGHT_DECAY = 0.1  # [ours]
  ADAM_BETA1 = 0.9  # [ours], PAX's default
  ADAM_BETA2 = 0.99  # [ours], PAX's default
  ADAM_EPSILON = 1e-8  # [ours]
  CLIP_GRADIENT_NORM_TO_VALUE = 1.0  # [ours]

  FPROP_DTYPE = jnp.bfloat16  # [ours], PAX's default; parameters are float32
  ATTEN_LOGIT_CAP = 50.0  # [ours], PAX's default
  SOFTMAX_CAP_LOGITS = 30.0  # [ours], PAX's default
  USE_REPEATED_LAYER = True  # [ours]

  POD = 'cpu'
  ICI_MESH_SHAPE: list[int] | None = None
  DCN_MESH_SHAPE: list[int] | None = None
  CHECKPOINT_POLICY: layers.AutodiffCheckpointType | None = None
  MICRO_BATCHES: int | None = None
  LAYERS_PER_BLOCK = 1  # [ours]

  SUMMARY_INTERVAL_STEPS = 100  # [ours], as the next three
  EVAL_INTERVAL_STEPS = 2_500
  CHECKPOINT_EVERY_N_STEPS = 2_500
  CHECKPOINT_MAX_TO_KEEP = 10

  _pod: slices.Slice | None = None

  def on(self, pod: str | None = None) -> Self:
    """Plans this experiment for a slice in place of this job's devices, and returns it.

    Args:
      pod: A file of configs/pods; None: POD.

    Raises:
      UserError: there is no such slice.
    """
    self._pod = slices.find(pod or self.POD)
    return self

  def pod(self) -> slices.Slice:
    """Returns the slice that this experiment is planned for, else the one that this job is on."""
    if self._pod is not None:
      return self._pod
    devices = jax.devices()
    places = [device.coords for device in devices if getattr(device, 'coords', None)]
    return slices.like(
      platform=devices[0].platform,
      device_kind=devices[0].device_kind,
      chips=len(devices),
      slices=len({getattr(device, 'slice_index', 0) for device in devices}),
      topology='x'.join(str(max(axis) + 1) for axis in zip(*places, strict=True)) or None,
    )

  def sizes(self) -> layouts.Sizes:
    """Returns what the rule of the layout takes."""
    return layouts.Sizes(
      num_layers=self.NUM_LAYERS,
      model_dims=self.MODEL_DIMS,
      hidden_dims=self.HIDDEN_DIMS,
      attention_dims=self.num_heads() * self.DIMS_PER_HEAD,
      vocab_size=self.VOCAB_SIZE,
      seq_len=self.SEQ_LEN,
      global_batch_size=self.GLOBAL_BATCH_SIZE,
      activation_bytes=jnp.dtype(self.FPROP_DTYPE).itemsize,
      layers_per_block=self.LAYERS_PER_BLOCK,
    )

  def layout(self) -> layouts.Layout:
    """Returns mesh, policy and micro-batches: named by this experiment, else by the rule."""
    return layouts.choose(
      self.sizes(),
      self.pod(),
      ici_mesh_shape=self.ICI_MESH_SHAPE,
      dcn_mesh_shape=self.DCN_MESH_SHAPE,
      checkpoint_policy=self.CHECKPOINT_POLICY,
      micro_batches=self.MICRO_BATCHES,
    )

  def use_layout(self, chosen: layouts.Layout) -> None:
    """Names a layout, all of it, in place of the rule."""
    self.ICI_MESH_SHAPE = list(chosen.ici_mesh_shape)
    self.DCN_MESH_SHAPE = list(chosen.dcn_mesh_shape)
    self.CHECKPOINT_POLICY = chosen.checkpoint_policy
    self.MICRO_BATCHES = chosen.micro_batches

  def mesh(self) -> list[int]:
    """Returns the devices along [replica, data, mdl], over all slices."""
    return self.layout().mesh()

  def micro_batches(self) -> int:
    """Returns the number of parts that a step's batch is computed in."""
    return self.layout().micro_batches

  def num_heads(self) -> int:
    """Returns the number of attention heads."""
    return self.NUM_HEADS or self.MODEL_DIMS // self.DIMS_PER_HEAD

  def check(self) -> None:
    """Checks the sizes against each other.

    Raises:
      UserError: heads, mesh, blocks or schedule do not fit; the message has the fix.
    """
    checks.check_heads(self.MODEL_DIMS, self.num_heads(), self.DIMS_PER_HEAD)
    checks.check_block(self.LAYERS_PER_BLOCK, self.NUM_LAYERS, self.USE_REPEATED_LAYER)
    checks.check_schedule(self.WARMUP_STEPS, self.NUM_TRAIN_STEPS)
    checks.check_batch(self.GLOBAL_BATCH_SIZE, math.prod(self.mesh()), num_processes=1)
    checks.check_mesh(
      self.mesh(),
      {
        'MODEL_DIMS': self.MODEL_DIMS,
        'NUM_HEADS': self.num_heads(),
        'HIDDEN_DIMS': self.HIDDEN_DIMS,
        'VOCAB_SIZE': self.VOCAB_SIZE,
      },
    )
    checks.check_micro_batches(self.micro_batches(), self.GLOBAL_BATCH_SIZE, self.mesh())

  def check_pod(self) -> None:
    """Checks the mesh against the chips that there are, or that this is planned for.

    Raises:
      UserError: it has another number of chips, or cannot be laid out on them, or jax found only
        the processor of a machine that should have accelerators.
    """
    found, pod, planned = self.layout(), self.pod(), slices.find(self.POD)
    if pod.chip.platform == 'cpu' != planned.chip.platform and self._pod is None:
      raise UserError(
        f'{type(self).__name__} is planned for {self.POD}; this job has {pod.chips} CPU device(s): '
        "jax found no accelerator. To train on the CPU nevertheless, set POD = 'cpu'"
      )
    checks.check_devices(found.mesh(), pod.chips)
    if not pod.can_lay_out(found.ici_mesh_shape):
      raise UserError(
        f'jax cannot lay the mesh {list(found.ici_mesh_shape)} out on {pod.topology} chips: each '
        'of its numbers must be the product of whole axes of that topology, each used once. Leave '
        'ICI_MESH_SHAPE and DCN_MESH_SHAPE None for a mesh by the rule'
      )

  def validate(self) -> None:
    """Checks sizes, devices, data and vocabulary, before anything is compiled.

    Raises:
      UserError: something does not fit or is missing; the message has the fix.
    """
    super().validate()
    self.check()
    self.check_pod()
    checks.check_batch(self.GLOBAL_BATCH_SIZE, jax.device_count(), jax.process_count())
    self.source()
    self._claim_job_folder()

  def _claim_job_folder(self) -> None:
    """Marks paxml's --job_log_dir as this experiment's, which PAX itself does not.

    Raises:
      UserError: the folder holds checkpoints of another experiment.
    """
    flag = flags.FLAGS['job_log_dir'].value if 'job_log_dir' in flags.FLAGS else None
    if flag is None:
      return
    folder, name = epath.Path(flag), f'{type(self).__module__}.{type(self).__name__}'
    mark = folder / paths.JOB_MARK
    if mark.exists() and (folder / 'checkpoints').exists():
      owner = mark.read_text().split()[0]
      if owner != name:
        raise UserError(f'{folder} holds a run of {owner}, not of {name}: name another folder')
    elif not mark.exists() and jax.process_index() == 0:
      overrides = [f'{k}={v}' for k, v in vars(self).items() if k.isupper()]
      folder.mkdir(parents=True, exist_ok=True)
      mark.write_text(paths.job_mark(name, overrides) + '\n')

  def source(self) -> paths.Source:
    """Returns the data and the vocabulary of this experiment, which exist.

    Raises:
      UserError: one is missing, or the vocabulary does not fit VOCAB_SIZE.
    """
    return paths.find_source(self.DATA_DIR, self.VOCAB, self.VOCAB_SIZE)

  def datasets(self) -> list[pax_fiddle.Config[base_input.BaseInput]]:
    """Returns the training split, and the whole of the validation split."""
    source, processes = self.source(), jax.process_count()
    common = dict(data_dir=source.data_dir, vocab=source.vocab, seq_len=self.SEQ_LEN)
    return [
      inputs.train_input(
        **common, batch_size=self.GLOBAL_BATCH_SIZE // processes, seed=self.DATA_SEED
      ),
      inputs.validation_input(**common, batch_size=self.eval_batch_size() // processes),
    ]

  def eval_batch_size(self) -> int:
    """Returns the sequences of one evaluation step: as many as the train step holds at once."""
    return self.GLOBAL_BATCH_SIZE // self.micro_batches()

  def get_input_specs_provider_params(self) -> pax_fiddle.Config[LanguageModelInputSpecs]:
    """Returns the batch's shapes, without opening the data."""
    return pax_fiddle.Config(
      LanguageModelInputSpecs,
      batch_size=self.GLOBAL_BATCH_SIZE // jax.process_count(),
      seq_len=self.SEQ_LEN,
    )

  def task(self) -> Task:
    """Returns the task: PAX's decoder, with AdamW and this experiment's schedule."""
    self.check()
    found = self.layout()
    task_p = super().task()
    model_params.set_sharding_annotations_v1(
      task_p,
      self.TRAINING_OPTIMIZED_SHARDING,
      list(found.ici_mesh_shape),
      list(found.dcn_mesh_shape),
    )
    use_fused(task_p.model)
    softmax = task_p.model.lm_tpl.softmax_tpl
    if fiddle.get_callable(softmax) is layers.SharedEmbeddingSoftmax:
      pax_fiddle.update_callable(softmax, LeanSharedEmbeddingSoftmax)
      softmax.lookup_style = 'index'
    stack = task_p.model.lm_tpl.stacked_transformer_tpl
    use_rows_einsum(stack)
    stack.checkpoint_policy = found.checkpoint_policy
    if self.USE_REPEATED_LAYER:
      stack.block.num_layers = self.LAYERS_PER_BLOCK
      stack.x_times = self.NUM_LAYERS // self.LAYERS_PER_BLOCK
    else:  # PAX itself then ignores the policy.
      stack.remat = True
    set_adamw(
      task_p,
      learning_rate=self.LEARNING_RATE,
      weight_decay=self.WEIGHT_DECAY,
      beta1=self.ADAM_BETA1,
      beta2=self.ADAM_BETA2,
      epsilon=self.ADAM_EPSILON,
      clip_gradient_norm=self.CLIP_GRADIENT_NORM_TO_VALUE,
      warmup_steps=self.WARMUP_STEPS,
      num_train_steps=self.NUM_TRAIN_STEPS,
    )
    # A resumed run continues with the next batch.
    task_p.train.enable_input_checkpointing = True
    # PAX would evaluate one training batch at each evaluation, which tells nothing that is needed.
    task_p.train.eval_skip_train = True
    return task_p

  def train_programs(self) -> list[training.TrainProgram]:
    """Returns PAX's train program, which computes a step's batch in `micro_batches` parts."""
    return [training.TrainProgram(self.micro_batches())]

  def tokens(self) -> int:
    """Returns the number of tokens of the whole training."""
    return self.NUM_TRAIN_STEPS * self.GLOBAL_BATCH_SIZE * self.SEQ_LEN
