"""The layers of a Vision Transformer that Praxis lacks: AlgoPerf's positions, biases and loss."""

import jax.numpy as jnp
import numpy as np
from praxis import base_layer, py_utils, pytypes
from praxis.layers import linears, models

JTensor = pytypes.JTensor


def sin_cos_positions(rows: int, columns: int, dims: int) -> np.ndarray:
  r"""Returns the fixed positions of a grid of patches.

      [sin(x w), cos(x w), sin(y w), cos(y w)],   w_i = 10000^(-i / (D/4 - 1)),  i < D/4

  x is the column and y the row of a patch. Patches are in the order of rows.

  Args:
    rows: Rows of the grid.
    columns: Columns of the grid.
    dims: D, a multiple of 4, at least 8.

  Returns:
    float32 [rows x columns, D].

  Source: AlgoPerf's ViT, by its formula.
  """
  quarter = dims // 4
  frequencies = 10_000.0 ** (-np.arange(quarter) / (quarter - 1))
  y, x = np.divmod(np.arange(rows * columns), columns)
  angles = [np.outer(place, frequencies) for place in (x, y)]
  parts = [function(a) for a in angles for function in (np.sin, np.cos)]
  return np.concatenate(parts, axis=1).astype(np.float32)


class SinCosPositions(base_layer.BaseLayer):
  """`sin_cos_positions` as a layer without weights, for Praxis's `VitEntryLayers.pos_emb_tpl`.

  Attributes:
    rows: Rows of the grid of patches.
    columns: Columns of the grid.
    embedding_dims: D.
  """

  rows: int = 0
  columns: int = 0
  embedding_dims: int = 0

  def __call__(self, seq_length: int) -> JTensor:
    """Returns the positions, [1, T, D]; `seq_length`, T, must be rows x columns."""
    assert seq_length == self.rows * self.columns, (seq_length, self.rows, self.columns)
    positions = sin_cos_positions(self.rows, self.columns, self.embedding_dims)
    return jnp.asarray(positions, self.fprop_dtype)[None]


class NormalBias(linears.Bias):
  """A bias that starts at random: Praxis's is constant.

  Attributes:
    std: Standard deviation at the start.
  """

  std: float = 1e-6

  def setup(self) -> None:
    """Makes the variable of the base, with another start."""
    hparams = base_layer.WeightHParams(
      shape=[self.dims],
      init=base_layer.WeightInit.Gaussian(self.std),
      mesh_shape=self.mesh_shape,
      tensor_split_dims_mapping=self.weight_split_dims_mapping.wt,
    )
    self.create_variable('b', hparams)


class ImageClassifier(models.ClassificationModel):
  """Praxis's classifier, with AlgoPerf's label smoothing, and a top-1 that counts no ties.

  Praxis takes a class as right if no other has a greater logit. With equal logits, which bfloat16
  often gives, all are right. Here one class is the answer, by logits in float32.

  Its batch has `image` [B, H, W, 3], `label_probs` [B, C], and `weight` [B] in evaluation.

  Attributes:
    label_smoothing: a: in training the target is y (1 - a) + a / C.
  """

  label_smoothing: float = 0.0

  def compute_predictions(self, input_batch: py_utils.NestedMap) -> py_utils.NestedMap:
    """Computes the base's predictions; in training against smoothed labels."""
    if self.label_smoothing and not self.do_eval:
      labels = input_batch[self.label_field]
      smoothed = labels * (1 - self.label_smoothing) + self.label_smoothing / labels.shape[-1]
      input_batch = input_batch.copy()
      input_batch[self.label_field] = smoothed
    return super().compute_predictions(input_batch)

  def compute_loss(
    self, predictions: py_utils.NestedMap, input_batch: py_utils.NestedMap
  ) -> tuple[py_utils.NestedMap, py_utils.NestedMap]:
    """Returns the mean loss and top-1 accuracy, over rows of weight 1, and scores of each row."""
    softmax, weights = predictions.softmax_output, predictions.example_weights
    labels = input_batch[self.label_field]
    is_right = softmax.per_example_argmax == jnp.argmax(labels, axis=-1)
    total = softmax.total_weight
    rows = jnp.maximum(total, 1.0)
    metrics = py_utils.NestedMap(
      total_loss=(softmax.total_xent / rows, total),
      accuracy=(jnp.sum(is_right * weights) / rows, total),
      num_predictions=(total, jnp.ones([])),
    )
    return metrics, py_utils.NestedMap(labels=labels, scores=softmax.logits)
