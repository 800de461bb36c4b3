"""Conformers that write down speech, as in AlgoPerf, on Praxis's layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from paxml import tasks_lib
from praxis import pax_fiddle, py_utils

from laser_pax.data import librispeech, sources
from laser_pax.data.datasets import LIBRISPEECH, DatasetSpec
from laser_pax.errors import UserError
from laser_pax.experiment import checks, family, layouts
from laser_pax.experiment.algoperf import AlgoPerf
from laser_pax.experiment.evaluation import DecodingEvalProgram
from laser_pax.experiment.layouts import Policy
from laser_pax.layers import log_mel, speech, use_fused


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConformerSizes:
  """The sizes of a Conformer for the layout rule: `layouts.Sizes`. A position is four frames.

  Attributes:
    num_layers: L, the number of blocks.
    model_dims: D, the width of the model.
    hidden_dims: F, the width of the hidden layers.
    kernel_size: K, the positions of the depthwise convolution.
    vocab_size: V, the number of labels.
    seq_len: T, the positions of one row.
    global_batch_size: B, the rows of one step.
    activation_bytes: a, the bytes of one activation.
  """

  num_layers: int
  model_dims: int
  hidden_dims: int
  kernel_size: int
  vocab_size: int
  seq_len: int
  global_batch_size: int
  activation_bytes: int
  layers_per_block: int = 1

  def layer_weights(self) -> int:
    """Returns the number of weights of one block's matrices: 4 D F + 7 D^2 + K D."""
    return self.model_dims * (4 * self.hidden_dims + 7 * self.model_dims + self.kernel_size)

  def weights(self) -> int:
    """Returns the number of weights of all matrices."""
    convolutions = 9 * self.model_dims * (1 + self.model_dims)
    projections = self.model_dims * (self._bins(2) * self.model_dims + self.vocab_size)
    return self.num_layers * self.layer_weights() + convolutions + projections

  def kept_activations(self, policy: Policy) -> int:
    """Returns how many activations are kept for the backward pass, per position and layer.

    They are a block's input and the results of its matrices, or all activations.
    """
    if policy == Policy.SAVE_DOT_WITH_NO_BATCH_DIM:
      return 2 * self.hidden_dims + 10 * self.model_dims
    return self._activations()

  def recomputed_activations(self, policy: Policy) -> int:
    """Returns how many activations a block's backward pass recomputes, per position and layer."""
    return self._activations() - self.kept_activations(policy)

  def _activations(self) -> int:
    return 4 * self.hidden_dims + 20 * self.model_dims

  def backward_width(self) -> int:
    """Returns a quarter of the activations per position that a block's backward pass holds."""
    return self.hidden_dims + 2 * self.model_dims

  def head_bytes(self, tokens: int) -> int:
    """Returns the bytes of the convolutions' activations, and of logits, with their gradients."""
    convolutions = (2 * self._bins(1) + self._bins(2)) * self.model_dims
    return tokens * (3 * self.activation_bytes * convolutions + 12 * self.vocab_size)

  def multiplications(self) -> int:
    """Returns the products of weights in the forward pass of one row."""
    d = self.model_dims
    first = 9 * d * 2 * self._bins(1)
    second = 9 * d * d * self._bins(2)
    rest = d * (self._bins(2) * d + self.vocab_size) + self.num_layers * self.layer_weights()
    return self.seq_len * (first + second + rest)

  def step_flops(self, policy: Policy, platform: str) -> int:
    """Returns the operations of one step: 6 for each product of a weight, and attention's."""
    products = 2 + (7 if platform == 'tpu' else 5) + (2 if policy in layouts.POLICIES else 0)
    attention = 2 * products * self.num_layers * self.seq_len**2 * self.model_dims
    return self.global_batch_size * (6 * self.multiplications() + attention)

  def _bins(self, halvings: int) -> int:
    """Returns the bins after some of the convolutions, of which each halves them."""
    return -(-log_mel.BINS // 2**halvings)


class LibriSpeechConformer(AlgoPerf):
  """A Conformer of AlgoPerf's shape, trained by NAdamW with the CTC loss.

  Its attention is bidirectional, and does not see padded frames. On a TPU a fused kernel computes
  it (docs/fused.md). Each chip holds all weights: there are few.

  Attributes:
    DATASET: The data set.
    DATA_DIR: Folder of the prepared data (`python -m laser_pax prepare`). None stands for
      LASER_PAX_DATA_DIR.
    VOCAB: SentencePiece model of T5's layout. None stands for LASER_PAX_VOCAB.
    DATA_SEED: Seed of the order of the training data.
    TRAIN_SPLITS: Splits to train on.
    VALIDATION_SPLITS: Splits of the validation.
    TEST_SPLITS: Splits of the test. It is done where they are prepared.
    MAX_SECONDS: Seconds of a row. A longer utterance is left out.
    MAX_LABELS: Labels of a row. An utterance with more characters is left out.
    KERNEL_SIZE: Positions of the depthwise convolution.
    DROPOUT_PROB: Dropout after attention and feed-forward layers.
    INPUT_DROPOUT_PROB: Dropout before the first block.
    BATCH_NORM_DECAY: Decay of the moving statistics of the batch norm.
    TIME_MASKS: Time masks of SpecAugment, each of at most 5% of an utterance's frames.
    FREQUENCY_MASKS: Frequency masks of SpecAugment, each of at most 26 of 80 bins.
  """

  METRIC = family.Metric(
    name='wer', label='WER', split='validation', derived={'percent': lambda x: 100 * x}
  )
  UNIT = 'frames'

  DATASET: DatasetSpec = LIBRISPEECH
  DATA_DIR: str | None = None
  VOCAB: str | None = None
  DATA_SEED = 0
  TRAIN_SPLITS = ('train_clean100', 'train_clean360', 'train_other500')
  VALIDATION_SPLITS = ('dev_clean', 'dev_other')
  TEST_SPLITS = ('test_clean',)
  MAX_SECONDS = 20.0
  MAX_LABELS = 256

  NUM_LAYERS: int
  MODEL_DIMS: int
  HIDDEN_DIMS: int
  NUM_HEADS: int
  KERNEL_SIZE = 5
  VOCAB_SIZE = 1_024
  FPROP_DTYPE = jnp.float32
  # The statistics of the batch norm are those of the whole batch.
  MICRO_BATCHES = 1

  DROPOUT_PROB = 0.1
  INPUT_DROPOUT_PROB = 0.1
  BATCH_NORM_DECAY = 0.999
  TIME_MASKS = 10
  FREQUENCY_MASKS = 2

  LEARNING_RATE = 0.002106913873888147
  WARMUP_STEPS = 1_199
  WEIGHT_DECAY = 0.27590534177690645
  ADAM_BETA1 = 0.8231189937738506
  ADAM_BETA2 = 0.8774571227688758

  def ici_mesh_shape(self) -> list[int]:
    """Returns the mesh within a slice: each chip is a replica."""
    return self.ICI_MESH_SHAPE or [self.pod().chips_per_slice, 1, 1]

  def task(self) -> family.Task:
    """Returns the task: the model with NAdamW and this experiment's schedule.

    Raises:
      UserError: The sizes do not fit each other.
    """
    self.check()
    layout = self.layout()
    task_p = pax_fiddle.Config(tasks_lib.SingleTask, name='conformer_task')
    task_p.model = self._model(layout)
    axes = ('replica', 'data', 'mdl')
    task_p.model.ici_mesh_shape = list(layout.ici_mesh_shape)
    task_p.model.dcn_mesh_shape = list(layout.dcn_mesh_shape)
    task_p.model.mesh_axis_names = list(axes)
    task_p.train.inputs_split_mapping = py_utils.NestedMap(map_1d=(axes,), map_2d=(axes, None))
    block = task_p.model.encoder_tpl.block_tpl
    block.trans_atten_tpl.self_atten_tpl.activation_split_dims_mapping.blnh = [
      axes,
      None,
      None,
      None,
    ]
    use_fused(task_p.model, self.ATTENTION_KERNEL, self.ATTENTION_SUMMARY_QUERIES)
    self.set_optimizer(task_p)
    self.set_intervals(task_p)
    return task_p

  def _model(self, layout: layouts.Layout) -> pax_fiddle.Config:
    model = pax_fiddle.Config(
      speech.CtcModel,
      name='conformer',
      vocab_size=self.VOCAB_SIZE,
      model_dims=self.MODEL_DIMS,
      fprop_dtype=self.FPROP_DTYPE,
    )
    model.augmenter_tpl.time_mask_count = self.TIME_MASKS
    model.augmenter_tpl.freq_mask_count = self.FREQUENCY_MASKS
    model.encoder_tpl.num_layers = self.NUM_LAYERS
    model.encoder_tpl.checkpoint_policy = layout.checkpoint_policy
    model.encoder_tpl.input_dropout_prob = self.INPUT_DROPOUT_PROB
    model.encoder_tpl.block_tpl = speech.conformer_block(
      num_heads=self.NUM_HEADS,
      hidden_factor=self.HIDDEN_DIMS // self.MODEL_DIMS,
      kernel_size=self.KERNEL_SIZE,
      dropout_prob=self.DROPOUT_PROB,
      batch_norm_decay=self.BATCH_NORM_DECAY,
    )
    return model

  def source(self) -> sources.Source:
    """Returns the data folder and the vocabulary.

    Raises:
      UserError: They are not there, or do not fit; the message has the command that makes them.
    """
    needed = dataclasses.replace(self.DATASET, splits=(*self.TRAIN_SPLITS, *self.VALIDATION_SPLITS))
    return sources.find_source(needed, self.DATA_DIR, self.VOCAB, self.VOCAB_SIZE)

  def vocabulary(self) -> str:
    """Returns the SentencePiece model."""
    return self.source().vocab

  def datasets(self) -> family.Inputs:
    """Returns the inputs to train on, and to evaluate on: test, where it is there, and validation.

    Raises:
      UserError: As for `source`.
    """
    train = librispeech.train_input(
      name='train',
      splits=self.TRAIN_SPLITS,
      batch_size=self.GLOBAL_BATCH_SIZE // jax.process_count(),
      input_random_seed=self.DATA_SEED,
      **self._rows(),
    )
    return [train, *self.decode_datasets()]

  def decode_datasets(self) -> family.Inputs:
    """Returns the inputs whose words are compared with their transcripts."""
    rows = self._rows()
    splits = {'test': self.TEST_SPLITS, 'validation': self.VALIDATION_SPLITS}
    batch_size = self.eval_batch_size() // jax.process_count()
    return [
      librispeech.eval_input(name=name, splits=names, batch_size=batch_size, **rows)
      for name, names in splits.items()
      if librispeech.has_splits(rows['folder'], names)
    ]

  def evaluations(self) -> list[DecodingEvalProgram]:
    """Returns PAX's evaluations, which also compare words."""
    return [DecodingEvalProgram(x) for x in self.eval_datasets()]

  def _rows(self) -> dict:
    source = self.source()
    return {
      'folder': f'{source.data_dir}/{self.DATASET.folder}',
      'vocab': source.vocab,
      'samples': self._samples(),
      'labels': self.MAX_LABELS,
    }

  def _samples(self) -> int:
    return round(self.MAX_SECONDS * log_mel.SAMPLE_RATE)

  def _frames(self) -> int:
    return log_mel.num_frames(self._samples())

  def input_specs(self, batch_size: int) -> py_utils.NestedMap:
    """Returns the shapes and dtypes of a batch of `batch_size` utterances."""
    return librispeech.batch_specs(batch_size, self._samples(), self.MAX_LABELS)

  def random_batch(self, rng: np.random.Generator, batch_size: int) -> py_utils.NestedMap:
    """Returns a batch of noise with random transcripts, without padding of the speech."""
    sizes = self._samples(), self.MAX_LABELS, self.VOCAB_SIZE
    return librispeech.random_batch(rng, batch_size, *sizes)

  def sizes(self) -> ConformerSizes:
    """Returns the sizes that the layout rule needs."""
    return ConformerSizes(
      num_layers=self.NUM_LAYERS,
      model_dims=self.MODEL_DIMS,
      hidden_dims=self.HIDDEN_DIMS,
      kernel_size=self.KERNEL_SIZE,
      vocab_size=self.VOCAB_SIZE,
      seq_len=-(-self._frames() // 4),
      global_batch_size=self.GLOBAL_BATCH_SIZE,
      activation_bytes=jnp.dtype(self.FPROP_DTYPE).itemsize,
    )

  def units_per_step(self) -> int:
    """Returns the frames of one step, padding included; a frame is 10 ms."""
    return self.GLOBAL_BATCH_SIZE * self._frames()

  def model_flops(self, parameters: int) -> family.ModelFlops:
    """Returns the operations of one step, over all chips.

    They are 6 for each product with a weight: convolutions use each weight many times. Attention
    has 12 T D for each layer and position.
    """
    del parameters
    sizes = self.sizes()
    attention = 12 * sizes.seq_len**2 * self.MODEL_DIMS * self.NUM_LAYERS
    return family.ModelFlops(
      weights=6 * self.GLOBAL_BATCH_SIZE * sizes.multiplications(),
      attention=self.GLOBAL_BATCH_SIZE * attention,
      attended_share=1.0,
    )

  def describe(self) -> dict[str, str]:
    """Returns the rows of `show`: sizes, batch, augmentation, optimiser."""
    return {
      'blocks, width, hidden': f'{self.NUM_LAYERS}, {self.MODEL_DIMS:,}, {self.HIDDEN_DIMS:,}',
      'heads': f'{self.NUM_HEADS} of {self.MODEL_DIMS // self.NUM_HEADS}',
      'labels': f'{self.VOCAB_SIZE:,}',
      'activations, parameters': f'{jnp.dtype(self.FPROP_DTYPE).name}, float32',
      'global batch': f'{self.GLOBAL_BATCH_SIZE:,} x {self.MAX_SECONDS:g} s',
      'augmentation': (
        f'SpecAugment of {self.TIME_MASKS} time and {self.FREQUENCY_MASKS} frequency masks, '
        f'dropout {self.DROPOUT_PROB}, of the input {self.INPUT_DROPOUT_PROB}'
      ),
      **self.describe_optimizer(),
    }

  def chance(self) -> family.Chance:
    """Returns the word error rate of saying nothing."""
    return family.Chance('silence', 1.0)

  def check(self) -> None:
    """Checks the sizes against each other.

    Raises:
      UserError: A size, head, mesh or schedule does not fit; the message has the fix.
    """
    sizes = ('NUM_LAYERS', 'MODEL_DIMS', 'HIDDEN_DIMS', 'NUM_HEADS', 'KERNEL_SIZE', 'MAX_LABELS')
    checks.check_at_least(self, 1, (*sizes, 'VOCAB_SIZE', 'MAX_SECONDS'))
    shares = ('DROPOUT_PROB', 'INPUT_DROPOUT_PROB', 'BATCH_NORM_DECAY')
    checks.check_at_least(self, 0, (*shares, 'TIME_MASKS', 'FREQUENCY_MASKS'))
    checks.check_heads(self.MODEL_DIMS, self.NUM_HEADS, self.MODEL_DIMS // self.NUM_HEADS)
    self.check_optimizer()
    if self.HIDDEN_DIMS % self.MODEL_DIMS:
      raise UserError(
        f'HIDDEN_DIMS = {self.HIDDEN_DIMS} must be a multiple of MODEL_DIMS = {self.MODEL_DIMS}: '
        f'set it to {4 * self.MODEL_DIMS}'
      )
    if self.mesh()[1:] != [1, 1]:
      raise UserError(
        f'the mesh {self.mesh()} divides weights, and these lie whole on each chip: set '
        'ICI_MESH_SHAPE to None, or to [chips, 1, 1]'
      )
    if not self.USE_REPEATED_LAYER or self.MICRO_BATCHES != 1:
      raise UserError(
        'a Conformer needs USE_REPEATED_LAYER = True and MICRO_BATCHES = 1: its blocks are a loop, '
        'and its batch norm is over the whole batch; take more chips where memory is short'
      )
    self.check_layout({})

  def check_data(self) -> None:
    """Checks that data and vocabulary exist, are whole, and fit the model.

    Raises:
      UserError: They do not; the message has the fix.
    """
    rows = self._rows()
    has_test = librispeech.has_splits(rows['folder'], self.TEST_SPLITS)
    librispeech.check_data(
      rows['folder'],
      (*self.TRAIN_SPLITS, *self.VALIDATION_SPLITS, *(self.TEST_SPLITS if has_test else ())),
      rows['samples'],
      rows['labels'],
      self.DATASET.prepare_command(self.source().data_dir),
    )
