"""SuperGLUE for language models: T5's examples, one a row, with the loss on the targets alone.

A row is an example: T5's text of the task, an EOS, the target, an EOS, and padding. Examples do not
share rows, so that an epoch is exactly the examples, each once. A batch has B rows per host, of
T = I + J tokens each, in these fields:

| field | dtype, shape | |
|---|---|---|
| ids | int32 [B, T] | the labels, moved right by one, with 0 first |
| labels | int32 [B, T] | the tokens |
| weights | float32 [B, T] | 1 for a token of the target, with its EOS; 0 for all others |
| paddings | float32 [B, T] | 1 where `labels` is padding |
| segment_ids | int32 [B, T] | 1 - paddings |
| segment_pos | int32 [B, T] | 0, 1, ..., T - 1; 0 at padding |
| inputs_indicator | int32 [B, T] | 1 where `ids` is the input; a causal model ignores it |
| eval_sample_weights | float32 [B] | 0 for a row that only fills the last batch |

Texts, targets and metrics are those of t5's own functions. An input is cut to I tokens, and a
target to J. T5's mixture also trains on DPR, which is no task of SuperGLUE; here it is left out.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from paxml import seqio_input
from praxis import pax_fiddle, py_utils

from laser_pax.data import damage, inputs, streams, text_lm
from laser_pax.data.datasets import SUPER_GLUE
from laser_pax.data.superglue_tasks import TASKS

Scores = Mapping[str, float]


class BranchingEpochTask(text_lm.EpochTask):
  """A task that shuffles within epochs, and whose functions may ask for tensors in an `if`.

  t5's function for WSC does. TensorFlow must rewrite it, which takes seconds.
  """

  def get_dataset(self, *args, num_epochs: int | None = 1, **kwargs) -> tf.data.Dataset:
    """As the base's."""
    epoch = seqio.Task.get_dataset(self, *args, num_epochs=1, **kwargs)
    return epoch if num_epochs == 1 else epoch.repeat(num_epochs)


class DecodeInput(inputs.SeqIOInput):
  """An input whose decoded texts are compared with the targets by the task's metrics.

  PAX hands texts to the metrics of seqio, and seqio 0.0.20 takes them for numbers of tokens.
  """

  def _compute_metric_values(
    self,
    score_metrics: bool,
    metric_objs: Sequence[seqio.metrics.Metric],
    targets: Sequence[Mapping[str, Any]],
    model_outs: Sequence[str],
    output_features: Mapping[str, Any],
  ) -> list[Scores]:
    """Returns each metric of the decoded texts."""
    del score_metrics, metric_objs, output_features
    return [task_metrics(self.task_inst, targets, model_outs)]


def batch_specs(batch_size: int, seq_len: int) -> py_utils.NestedMap:
  """Returns the shapes and dtypes of a training batch, without opening the data.

  Args:
    batch_size: B, the rows.
    seq_len: T, the tokens per row.
  """
  integers = ('ids', 'labels', 'segment_ids', 'segment_pos', 'inputs_indicator')
  return inputs.row_specs(batch_size, seq_len, integers=integers, reals=('paddings', 'weights'))


def train_input(
  examples: Mapping[str, int],
  *,
  data_dir: str,
  vocab: str,
  lengths: Mapping[str, int],
  batch_size: int,
  seed: int,
) -> pax_fiddle.Config[inputs.GlobalStreamInput]:
  """Returns the endless input of some tasks (see `inputs.train_input`).

  Several tasks are mixed: each row is drawn from a task in proportion to its number of examples.
  Each task shuffles its own rows, epoch after epoch.

  Args:
    examples: Number of examples of each task.
    data_dir: Folder that contains the data sets' folders.
    vocab: SentencePiece model of T5's layout.
    lengths: I and J, as `inputs` and `targets`.
    batch_size: B, the rows per host.
    seed: Seed of the order of rows.
  """
  tasks = {train_task(name, data_dir, vocab): count for name, count in examples.items()}
  mixture = next(iter(tasks)) if len(tasks) == 1 else _mixture(tasks)
  return inputs.train_input(
    mixture,
    lengths=lengths,
    converter=_converter(weights_on_targets_only=True),
    batch_size=batch_size,
    seed=seed,
    name='train',
  )


def eval_input(
  name: str,
  split: str,
  *,
  data_dir: str,
  vocab: str,
  lengths: Mapping[str, int],
  batch_size: int,
) -> inputs.Input:
  """Returns the input of a task's whole split, with its targets: to score them.

  Args:
    name: Name of the task.
    split: 'train' or 'validation'.
    data_dir: Folder that contains the data sets' folders.
    vocab: SentencePiece model of T5's layout.
    lengths: I and J, as `inputs` and `targets`.
    batch_size: B, the rows per host.
  """
  return inputs.eval_input(
    eval_task(name, data_dir, vocab),
    split=split,
    lengths=lengths,
    converter=_converter(weights_on_targets_only=True),
    batch_size=batch_size,
    name=f'{name}_{split}',
  )


def decode_input(name: str, split: str, **kwargs) -> inputs.Input:
  """Returns the input of a task's whole split, without its targets: to decode them.

  A row has I + 1 tokens. PAX compares what is decoded with the targets, by T5's metrics.

  Args:
    name: Name of the task.
    split: 'train' or 'validation'.
    **kwargs: As for `eval_input`.
  """
  lengths = kwargs['lengths']
  config = eval_input(name, split, **kwargs)
  config.task_feature_lengths = dict(lengths) | {'targets': 1}  # The EOS that ends the input.
  config.eval_metrics_targets_length = lengths['targets']
  config.feature_converter = _converter(weights_on_targets_only=False)
  pax_fiddle.update_callable(config, DecodeInput)
  config.annotate_padding_fields = False  # A row that only fills a batch has an input to decode.
  return config


def _converter(*, weights_on_targets_only: bool) -> pax_fiddle.Config[seqio_input.SeqIOInput]:
  return pax_fiddle.Config(
    text_lm.TextFeatures,
    pack=False,
    bos_id=0,
    weights_on_targets_only=weights_on_targets_only,
  )


def train_task(name: str, data_dir: str, vocab: str) -> str:
  """Registers T5's task of a train split, once, and returns its name.

  Args:
    name: Name of the task in SuperGLUE, such as 'boolq'.
    data_dir: Folder that contains the data sets' folders.
    vocab: SentencePiece model of T5's layout.

  Returns:
    The name of the task in seqio. It has the features `inputs` and `targets`, each with an EOS.
  """
  only = functools.partial(_keep, names=('inputs', 'targets'))
  tokenize = functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False)
  steps = [*_preprocessors(name, is_training=True), only, tokenize]
  cls = BranchingEpochTask if name == 'wsc' else text_lm.EpochTask
  return _register(name, 'train', data_dir, vocab, steps, cls)


def eval_task(name: str, data_dir: str, vocab: str) -> str:
  """Registers T5's task to evaluate on, with its metrics, once, and returns its name.

  Args:
    name: Name of the task in SuperGLUE, such as 'boolq'.
    data_dir: Folder that contains the data sets' folders.
    vocab: SentencePiece model of T5's layout.
  """
  from t5.data import glue_utils, postprocessors
  from t5.evaluation import metrics

  steps = [*_preprocessors(name, is_training=False), seqio.preprocessors.tokenize]
  is_wsc = name == 'wsc'
  return _register(
    name,
    'eval',
    data_dir,
    vocab,
    steps,
    seqio.Task,
    postprocess_fn=(
      postprocessors.wsc_simple if is_wsc else glue_utils.get_glue_postprocess_fn(_config(name))
    ),
    metric_fns=[metrics.accuracy] if is_wsc else glue_utils.get_super_glue_metric(name),
  )


def _config(name: str) -> Any:
  """Returns TFDS's config of a task, which t5's functions take."""
  return tfds.text.super_glue.SuperGlue.builder_configs[SUPER_GLUE[name].config]


def _preprocessors(name: str, *, is_training: bool) -> list[Any]:
  """Returns t5's own functions that make texts of records.

  T5 gives WSC a referent to write, and so trains on the rows with the right one alone.
  """
  from t5.data import glue_utils, preprocessors

  if name == 'wsc':
    to_text = functools.partial(preprocessors.wsc_simple, correct_referent_only=is_training)
  else:
    to_text = glue_utils.get_glue_text_preprocessor(_config(name))
  return [to_text, _checked_texts]


@seqio.map_over_dataset
def _checked_texts(row: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  """Stops at a text that is not UTF-8. T5's functions keep the bytes as they are."""
  return {**row, **{name: damage.text(row[name]) for name in ('inputs', 'targets')}}


def _register(
  name: str, purpose: str, data_dir: str, vocab: str, steps: list[Any], cls: type, **metrics
) -> str:
  key = hashlib.sha256(repr((data_dir, vocab)).encode()).hexdigest()[:8]
  full_name = f'laser_pax_super_glue_{name}_{purpose}_{key}'
  if full_name not in seqio.TaskRegistry.names():
    feature = seqio.Feature(seqio.SentencePieceVocabulary(vocab, extra_ids=0), add_eos=True)
    seqio.TaskRegistry.add(
      full_name,
      task_cls=cls,
      # read_only: seqio must not look for the data set in a bucket, and must not build it.
      source=seqio.TfdsDataSource(
        SUPER_GLUE[name].tfds_name,
        tfds_data_dir=data_dir,
        splits=['train', 'validation'],
        read_only=True,
      ),
      preprocessors=[*steps, seqio.preprocessors.append_eos_after_trim],
      output_features={'inputs': feature, 'targets': feature},
      shuffle_buffer_size=text_lm.SHUFFLE_ROWS,
      **metrics,
    )
  return full_name


def _mixture(tasks: Mapping[str, int]) -> str:
  """Registers the mixture of some tasks, once, and returns its name."""
  key = hashlib.sha256(repr(sorted(tasks.items())).encode()).hexdigest()[:8]
  name = f'laser_pax_super_glue_mixture_{key}'
  if name not in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.add(name, [(task, float(count)) for task, count in tasks.items()])
  return name


def _keep(dataset: tf.data.Dataset, names: Sequence[str]) -> tf.data.Dataset:
  """Keeps some fields alone: others would be saved with the buffer of shuffled rows."""
  return dataset.map(lambda row: {name: row[name] for name in names})


@functools.cache
def count_examples(name: str, data_dir: str) -> int:
  """Returns the number of T5's examples of a task's train split.

  SuperGLUE's own is known. That of other rows is counted.

  Args:
    name: Name of the task in SuperGLUE, such as 'boolq'.
    data_dir: Folder that contains the data sets' folders.
  """
  builder = damage.open_builder(f'{data_dir}/{SUPER_GLUE[name].folder}')
  records = builder.info.splits['train'].num_examples
  if records == TASKS[name].records['train']:
    return TASKS[name].examples
  if name not in ('record', 'wsc'):
    return records
  rows = tfds.as_numpy(builder.as_dataset(split='train'))
  if name == 'record':
    return sum(max(1, len(row['answers'])) for row in rows)
  return sum(row['label'] == 1 for row in rows)


def check_data(name: str, data_dir: str, command: str) -> None:
  """Checks that a task's records are whole, and the layout of the first of each split.

  Args:
    name: Name of the task in SuperGLUE, such as 'boolq'.
    data_dir: Folder that contains the data sets' folders.
    command: The command that makes the data.

  Raises:
    UserError: A file is cut short, or has another layout.
  """
  if name == 'record':
    features = {'query': tf.io.FixedLenFeature([], tf.string)}
  else:
    features = {'label': tf.io.FixedLenFeature([], tf.int64)}
  streams.check_files(
    f'{data_dir}/{SUPER_GLUE[name].folder}',
    ('train', 'validation'),
    features,
    f'copy it again, or make it with: {command}',
  )


def evaluate(
  name: str, split: str, data_dir: str, vocab: str, predictions: Iterator[str]
) -> Scores:
  """Returns T5's metrics, from 0 to 100, of a prediction for each example of a split, in order.

  Args:
    name: Name of the task in SuperGLUE, such as 'boolq'.
    split: 'train' or 'validation'.
    data_dir: Folder that contains the data sets' folders.
    vocab: SentencePiece model of T5's layout.
    predictions: Texts, at least as many as examples.
  """
  task = seqio.TaskRegistry.get(eval_task(name, data_dir, vocab))
  rows = list(task.get_dataset(None, split, shuffle=False).as_numpy_iterator())
  return task_metrics(task, rows, list(itertools.islice(predictions, len(rows))))


def task_metrics(
  task: seqio.Task, rows: Sequence[Mapping[str, Any]], predictions: Sequence[str]
) -> Scores:
  """Returns a task's metrics of texts.

  Args:
    task: The task.
    rows: Its examples.
    predictions: A text for each of them.
  """
  targets, answers = [], []
  for row, prediction in zip(rows, predictions, strict=True):
    target = row['targets_pretokenized'].decode()
    targets.append(task.postprocess_fn(target, example=row, is_target=True))
    answers.append(task.postprocess_fn(prediction, example=row, is_target=False))
  scores: dict[str, float] = {}
  for metric in task.metric_fns:
    scores |= {key: float(value) for key, value in metric(targets, answers).items()}
  return scores


def score(metrics: Scores) -> float:
  """Returns a task's score: the mean of its metrics, from 0 to 100."""
  return float(np.mean(list(metrics.values())))


def chance(name: str, data_dir: str, vocab: str) -> float:
  """Returns the score of giving each validation example the commonest target of the train split.

  If several targets are equally frequent, it is the one that comes first in the train split.

  Args:
    name: Name of the task in SuperGLUE, such as 'boolq'.
    data_dir: Folder that contains the data sets' folders.
    vocab: SentencePiece model of T5's layout.
  """
  vocabulary = seqio.SentencePieceVocabulary(vocab, extra_ids=0)
  task = seqio.TaskRegistry.get(train_task(name, data_dir, vocab))
  rows = task.get_dataset(None, 'train', shuffle=False).as_numpy_iterator()
  counts = collections.Counter(tuple(row['targets'].tolist()) for row in rows)
  commonest = vocabulary.decode(list(counts.most_common(1)[0][0]))
  predictions = iter(lambda: commonest, None)
  return score(evaluate(name, 'validation', data_dir, vocab, predictions))
