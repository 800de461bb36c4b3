"""Vision Transformers that classify images, as in AlgoPerf, on Praxis's layers."""

import jax
import jax.numpy as jnp
import numpy as np
from paxml import tasks_lib
from praxis import base_layer, layers, pax_fiddle, py_utils
from praxis.layers import activations, normalizations, poolings, vits

from laser_pax.data import imagenet, rand_augment
from laser_pax.data.datasets import IMAGENET, IMAGENET_V2, DatasetSpec
from laser_pax.errors import UserError
from laser_pax.experiment import checks, family, layouts, transformer
from laser_pax.experiment.algoperf import AlgoPerf
from laser_pax.layers import use_fused, use_rows_einsum
from laser_pax.layers.vision import ImageClassifier, NormalBias, SinCosPositions

# A normal cut at two standard deviations has this standard deviation. flax divides by it.
_CUT_NORMAL_STD = 0.87962566103423978


class ImageNetViT(AlgoPerf):
  """A Vision Transformer of AlgoPerf's shape, trained by NAdamW on images and their classes.

  Positions are fixed, blocks are pre-norm, and the mean over patches goes through a tanh layer to
  a head that starts at zero. On a TPU a fused kernel computes the attention (docs/fused.md).

  Attributes:
    DATASET: Data set to train on, and to evaluate on.
    TEST_DATASET: Data set of the test split. It is evaluated on where it is prepared.
    DATA_DIR: Folder of the prepared data (`python -m laser_pax prepare`). None stands for
      LASER_PAX_DATA_DIR.
    DATA_SEED: Seed of the order of the training images, of augmentation and of mixup.
    IMAGE_SIZE: Height and width of an image.
    PATCH_SIZE: Height and width of a patch.
    NUM_CLASSES: Number of classes.
    QK_NORM: Whether layer norms of each head normalise queries and keys.
    DROPOUT_PROB: Dropout after positions, activations and blocks; attention has none.
    LABEL_SMOOTHING: Share of the target that all classes get alike, in training.
    MIXUP_ALPHA: Parameter of mixup's Beta distribution. 0 switches mixup off.
    RAND_AUGMENT_OPS: Operations of RandAugment on each image. 0 switches it off.
    RAND_AUGMENT_MAGNITUDE: Their strength, at most 22.
    TRAIN_EVAL_IMAGES: Training images that are also evaluated on, without augmentation.
  """

  METRIC = family.Metric(
    name='accuracy',
    label='accuracy',
    split='validation',
    better='higher',
    derived={'error': lambda x: 1 - x},
  )
  UNIT = 'images'

  DATASET: DatasetSpec = IMAGENET
  TEST_DATASET: DatasetSpec = IMAGENET_V2
  DATA_DIR: str | None = None
  DATA_SEED = 0

  IMAGE_SIZE = 224
  PATCH_SIZE = 16
  NUM_CLASSES = 1_000
  NUM_LAYERS: int
  MODEL_DIMS: int
  HIDDEN_DIMS: int
  NUM_HEADS: int
  QK_NORM = False
  DROPOUT_PROB = 0.0
  FPROP_DTYPE = jnp.float32

  LABEL_SMOOTHING = 0.2
  MIXUP_ALPHA = 0.2
  RAND_AUGMENT_OPS = 2
  RAND_AUGMENT_MAGNITUDE = 10
  TRAIN_EVAL_IMAGES = 51_200

  LEARNING_RATE = 0.0008445074561975979
  WARMUP_STEPS = 6_999
  WEIGHT_DECAY = 0.08135402759553023
  ADAM_BETA1 = 0.8895758153482813
  ADAM_BETA2 = 0.9978504782314613

  def task(self) -> family.Task:
    """Returns the task: the model with NAdamW and this experiment's schedule.

    Raises:
      UserError: The sizes do not fit each other.
    """
    self.check()
    layout = self.layout()
    network = self._network(layout)
    head = pax_fiddle.Config(
      layers.FullSoftmax, input_dims=self.MODEL_DIMS, num_classes=self.NUM_CLASSES
    )
    head.feed_forward_tpl.linear_tpl.params_init = base_layer.WeightInit.Constant(0.0)
    task_p = pax_fiddle.Config(tasks_lib.SingleTask, name='vit_task')
    task_p.model = pax_fiddle.Config(
      ImageClassifier,
      name='vit',
      network_tpl=network,
      softmax_tpl=head,
      label_smoothing=self.LABEL_SMOOTHING,
      fprop_dtype=self.FPROP_DTYPE,
    )
    _shard(task_p, layout)
    use_rows_einsum(network.transformer_layers_tpl)
    use_fused(task_p.model, self.ATTENTION_KERNEL, self.ATTENTION_SUMMARY_QUERIES)
    self.set_optimizer(task_p)
    self.set_intervals(task_p)
    return task_p

  def _network(self, layout: layouts.Layout) -> pax_fiddle.Config:
    """Returns patches and positions, the layers, and the mean over patches."""
    side, init = self.IMAGE_SIZE // self.PATCH_SIZE, base_layer.WeightInit
    patch_init = init.TruncatedGaussianSqrtFanIn(1 / _CUT_NORMAL_STD)
    norm = pax_fiddle.Config(normalizations.LayerNorm, direct_scale=True, epsilon=1e-6)
    entry = pax_fiddle.Config(
      vits.VitEntryLayers,
      name='entry',
      pos_emb_shapes=(side, side),
      patch_size=self.PATCH_SIZE,
      input_dims=self._patch_values(),
      output_dims=self.MODEL_DIMS,
      pos_emb_dropout_prob=self.DROPOUT_PROB,
      pos_emb_tpl=pax_fiddle.Config(
        SinCosPositions, rows=side, columns=side, embedding_dims=self.MODEL_DIMS
      ),
      params_init=patch_init,
    )
    leave = pax_fiddle.Config(
      vits.VitExitLayers,
      name='exit',
      hidden_dim=self.MODEL_DIMS,
      output_dim=self.MODEL_DIMS,
      ln_tpl=norm.clone(),
      pooling_tpl=pax_fiddle.Config(poolings.GlobalPooling, pooling_dims=[1]),
      params_init=patch_init,
    )
    return pax_fiddle.Config(
      vits.VisionTransformer,
      name='network',
      entry_layers_tpl=entry,
      transformer_layers_tpl=self._layers(norm, layout),
      exit_layers_tpl=leave,
    )

  def _layers(self, norm: pax_fiddle.Config, layout: layouts.Layout) -> pax_fiddle.Config:
    """Returns the stack of layers, in a loop if USE_REPEATED_LAYER is set."""
    block = pax_fiddle.Config(
      layers.StackedTransformer,
      num_layers=1 if self.USE_REPEATED_LAYER else self.NUM_LAYERS,
      model_dims=self.MODEL_DIMS,
      hidden_dims=self.HIDDEN_DIMS,
      num_heads=self.NUM_HEADS,
      residual_dropout_prob=self.DROPOUT_PROB,
      relu_dropout_prob=self.DROPOUT_PROB,
      checkpoint_policy=layout.checkpoint_policy,
    )
    layer = block.transformer_layer_params_tpl
    layer.ln_tpl = norm.clone()
    attention, mlp = layer.tr_atten_tpl, layer.tr_fflayer_tpl
    attention.internal_enable_per_dim_scale = False
    attention.proj_tpl.explicit_fan_in_fan_out_axes = True
    if self.QK_NORM:
      attention.ln_tpl = norm.clone()
    mlp.ln_tpl = norm.clone()
    mlp.activation_tpl = pax_fiddle.Config(activations.GELU, approximate=True)
    mlp.fflayer_tpl.bias_tpl = pax_fiddle.Config(NormalBias)
    if not self.USE_REPEATED_LAYER:
      block.remat = True
      return block
    return pax_fiddle.Config(
      layers.StackedTransformerRepeated,
      block=block,
      x_times=self.NUM_LAYERS,
      checkpoint_policy=layout.checkpoint_policy,
    )

  def _patch_values(self) -> int:
    return 3 * self.PATCH_SIZE**2

  def _positions(self) -> int:
    return (self.IMAGE_SIZE // self.PATCH_SIZE) ** 2

  def folder(self) -> str:
    """Returns the folder that holds the data sets' folders.

    Raises:
      UserError: The data are not there; the message has the command that makes them.
    """
    return imagenet.find_data_dir(self.DATASET, self.DATA_DIR)

  def datasets(self) -> family.Inputs:
    """Returns the inputs to train on, and to evaluate on: training images, test and validation.

    Raises:
      UserError: As for `folder`.
    """
    processes, data_dir = jax.process_count(), self.folder()
    common = dict(data_dir=data_dir, size=self.IMAGE_SIZE, num_classes=self.NUM_CLASSES)
    batch_size = self.eval_batch_size() // processes
    train = imagenet.train_input(
      **common,
      dataset=self.DATASET,
      batch_size=self.GLOBAL_BATCH_SIZE // processes,
      seed=self.DATA_SEED,
      mixup_alpha=self.MIXUP_ALPHA,
      augment_ops=self.RAND_AUGMENT_OPS,
      augment_magnitude=self.RAND_AUGMENT_MAGNITUDE,
    )
    splits = [('train_eval', self.DATASET, 'train'), ('validation', self.DATASET, 'validation')]
    if imagenet.is_prepared(self.TEST_DATASET, data_dir):
      splits.insert(1, ('test', self.TEST_DATASET, 'test'))
    return [train] + [
      imagenet.eval_input(
        **common,
        dataset=dataset,
        split=split,
        batch_size=batch_size,
        name=name,
        limit=self.TRAIN_EVAL_IMAGES if name == 'train_eval' else None,
      )
      for name, dataset, split in splits
    ]

  def input_specs(self, batch_size: int) -> py_utils.NestedMap:
    """Returns the shapes and dtypes of a batch of `batch_size` images."""
    return imagenet.batch_specs(batch_size, self.IMAGE_SIZE, self.NUM_CLASSES)

  def random_batch(self, rng: np.random.Generator, batch_size: int) -> py_utils.NestedMap:
    """Returns a batch of noise, each image of one class."""
    return imagenet.random_batch(rng, batch_size, self.IMAGE_SIZE, self.NUM_CLASSES)

  def sizes(self) -> transformer.VisionSizes:
    """Returns the sizes that the layout rule needs."""
    return transformer.VisionSizes(
      num_layers=self.NUM_LAYERS,
      model_dims=self.MODEL_DIMS,
      hidden_dims=self.HIDDEN_DIMS,
      attention_dims=self.MODEL_DIMS,
      vocab_size=self.NUM_CLASSES,
      seq_len=self._positions(),
      global_batch_size=self.GLOBAL_BATCH_SIZE,
      activation_bytes=jnp.dtype(self.FPROP_DTYPE).itemsize,
      is_causal=False,
      patch_values=self._patch_values(),
    )

  def units_per_step(self) -> int:
    """Returns the images of one step."""
    return self.GLOBAL_BATCH_SIZE

  def model_flops(self, parameters: int) -> family.ModelFlops:
    """Returns the operations of one step, over all chips.

    They are 6 for each weight and position, and 12 T D for each layer and position. The weights
    after the mean over patches count once an image. Biases and scales count as if they were
    matrices.
    """
    once = (self.MODEL_DIMS + 1) * (self.MODEL_DIMS + self.NUM_CLASSES)
    positions = self._positions()
    uses = positions * (parameters - once) + once
    attention = 12 * positions**2 * self.MODEL_DIMS * self.NUM_LAYERS
    return family.ModelFlops(
      weights=6 * self.units_per_step() * uses,
      attention=self.units_per_step() * attention,
      attended_share=1.0,
    )

  def describe(self) -> dict[str, str]:
    """Returns the rows of `show`: sizes, batch, augmentation, optimiser."""
    heads = f'{self.NUM_HEADS} of {self.MODEL_DIMS // self.NUM_HEADS}'
    return {
      'layers, width, MLP hidden': f'{self.NUM_LAYERS}, {self.MODEL_DIMS:,}, {self.HIDDEN_DIMS:,}',
      'heads': heads + (', queries and keys normalised' if self.QK_NORM else ''),
      'image, patch, classes': f'{self.IMAGE_SIZE}, {self.PATCH_SIZE}, {self.NUM_CLASSES:,}',
      'activations, parameters': f'{jnp.dtype(self.FPROP_DTYPE).name}, float32',
      'global batch': f'{self.GLOBAL_BATCH_SIZE:,} x {self.IMAGE_SIZE}^2',
      'augmentation': (
        f'crop, flip, RandAugment of {self.RAND_AUGMENT_OPS} operations of magnitude '
        f'{self.RAND_AUGMENT_MAGNITUDE}, mixup {self.MIXUP_ALPHA}, label smoothing '
        f'{self.LABEL_SMOOTHING}, dropout {self.DROPOUT_PROB}'
      ),
      **self.describe_optimizer(),
    }

  def chance(self) -> family.Chance:
    """Returns the accuracy of saying the commonest class of the validation images."""
    share = imagenet.commonest_share(self.DATASET, self.folder(), 'validation')
    return family.Chance('commonest class', share)

  def check(self) -> None:
    """Checks the sizes against each other.

    Raises:
      UserError: A size, head, mesh or schedule does not fit; the message has the fix.
    """
    sizes = ('NUM_LAYERS', 'MODEL_DIMS', 'HIDDEN_DIMS', 'NUM_HEADS', 'IMAGE_SIZE', 'PATCH_SIZE')
    checks.check_at_least(self, 1, (*sizes, 'NUM_CLASSES', 'TRAIN_EVAL_IMAGES'))
    parts = ('DROPOUT_PROB', 'LABEL_SMOOTHING')
    checks.check_at_least(self, 0, (*parts, 'MIXUP_ALPHA', 'RAND_AUGMENT_OPS'))
    checks.check_at_least(self, 0, ('RAND_AUGMENT_MAGNITUDE',))
    if self.RAND_AUGMENT_MAGNITUDE > rand_augment.GREATEST_MAGNITUDE:
      raise UserError(
        f'RAND_AUGMENT_MAGNITUDE must be at most {rand_augment.GREATEST_MAGNITUDE}, got '
        f"{self.RAND_AUGMENT_MAGNITUDE}: AlgoPerf's is 10"
      )
    checks.check_patches(self.IMAGE_SIZE, self.PATCH_SIZE)
    checks.check_positions(self.MODEL_DIMS)
    checks.check_heads(self.MODEL_DIMS, self.NUM_HEADS, self.MODEL_DIMS // self.NUM_HEADS)
    self.check_optimizer()
    dims = {'MODEL_DIMS': self.MODEL_DIMS, 'NUM_HEADS': self.NUM_HEADS}
    self.check_layout(dims | {'HIDDEN_DIMS': self.HIDDEN_DIMS})

  def check_data(self) -> None:
    """Checks that the images exist, are whole, and have as many classes as the model.

    Raises:
      UserError: They do not; the message has the fix.
    """
    data_dir = self.folder()
    imagenet.check_data(self.DATASET, data_dir, self.NUM_CLASSES)
    if imagenet.is_prepared(self.TEST_DATASET, data_dir):
      imagenet.check_data(self.TEST_DATASET, data_dir, self.NUM_CLASSES)


def _shard(task_p: family.Task, layout: layouts.Layout) -> None:
  """Sets the mesh, and how it divides images, the layers' weights, and activations.

  Patches, head and norms lie whole on each chip: they are small.
  """
  axes = ('replica', 'data')
  model = task_p.model
  model.ici_mesh_shape = list(layout.ici_mesh_shape)
  model.dcn_mesh_shape = list(layout.dcn_mesh_shape)
  model.mesh_axis_names = [*axes, 'mdl']
  task_p.train.inputs_split_mapping = py_utils.NestedMap(
    map_1d=(axes,), map_2d=(axes, None), map_4d=(axes, None, None, None)
  )
  stack = model.network_tpl.transformer_layers_tpl
  model.network_tpl.activation_split_dims_mapping.network_inputs = [axes, None, None]
  layer = (stack.block if hasattr(stack, 'block') else stack).transformer_layer_params_tpl
  attention, mlp = layer.tr_atten_tpl, layer.tr_fflayer_tpl
  attention.weight_split_dims_mapping.proj = ['data', 'mdl', None]
  attention.activation_split_dims_mapping.blnh = [axes, None, 'mdl', None]
  attention.activation_split_dims_mapping.bld = [axes, None, 'mdl']
  mlp.weight_split_dims_mapping.ffn0 = ['data', 'mdl']
  mlp.weight_split_dims_mapping.ffn1 = ['mdl', 'data']
  mlp.activation_split_dims_mapping.ffn0 = [axes, None, 'mdl']
  mlp.activation_split_dims_mapping.ffn1 = [axes, None, 'mdl']
