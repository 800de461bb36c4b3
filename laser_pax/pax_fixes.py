"""The code that depends on private parts of jax, paxml and praxis: fixes, and private names.

FIXES repair paxml and praxis 1.4.0, which break on the versions that pyproject.toml pins.
`laser_pax.configs` and the base of all experiments call `apply` when they are imported, so every
experiment has the fixes. Each fix states its reason. It tests for its fault, and does nothing if
the fault is not there.

If a fault is gone, a test in tests/test_pax_fixes.py fails and names the fix to remove.

The functions below FIXES use private names. Each states why it is needed.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import linecache
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def apply() -> tuple[str, ...]:
  """Applies each fix whose fault is present. Calls after the first do nothing.

  Returns:
    The names of the fixes that were applied, in the order of `FIXES`.
  """
  return tuple(fix.__name__ for fix in FIXES if fix())


def evaluation_in_training() -> bool:
  """Restores `np.unicode_`, which numpy 2 removed.

  paxml uses it to look for strings in a batch, when it evaluates during training
  (paxml/xla_passthrough.py). Without the name it raises AttributeError.
  """
  is_faulty = not hasattr(np, 'unicode_')
  if is_faulty:
    np.unicode_ = np.str_
  return is_faulty


def input_index_shuffle() -> bool:
  """Switches index shuffle off in `SeqIOInput`, because TFDS does not have it.

  With `input_checkpointing_enabled`, `SeqIOInput` uses `tfds.Readahead` by default. No release of
  TFDS has that name, so AttributeError is raised. Files and buffer are still shuffled, as for an
  input that is not saved.
  """
  import tensorflow_datasets as tfds
  from paxml import seqio_input

  if hasattr(tfds, 'Readahead'):
    return False
  configure = seqio_input.SeqIOInput.configure_tf_data_options

  @functools.wraps(configure)
  def without_index_shuffle(self, read_config=None):
    self.experimental_enable_index_shuffle = False
    configure(self, read_config)

  seqio_input.SeqIOInput.configure_tf_data_options = without_index_shuffle
  return True


def input_caches() -> bool:
  """Switches memory caches off for an input whose position is saved.

  seqio and TFDS each cache a small data set. PAX saves the position in tf.data symbolically. With a
  cache, saving fails (UnimplementedError about CacheDatasetV2), or restoring fails (NotFoundError
  about MemoryCacheImpl). No API tells whether this fault is there, so the fix is always applied.
  Its test provokes the faults themselves.
  """
  import tensorflow_datasets as tfds
  from paxml import seqio_input

  configure = seqio_input.SeqIOInput.configure_tf_data_options

  @functools.wraps(configure)
  def without_caches(self, read_config=None):
    if self.input_checkpointing_enabled:
      self.try_in_mem_cache = False
      read_config = dataclasses.replace(read_config or tfds.ReadConfig(), try_autocache=False)
    configure(self, read_config)

  seqio_input.SeqIOInput.configure_tf_data_options = without_caches
  return True


def input_peeked_batch() -> bool:
  """Saves the position of `SeqIOInput` before a batch that was only peeked at.

  At the end of a step paxml may peek at the next training batch, to evaluate on it. `BaseInput`
  remembers the position before the peek. But `SeqIOInput` overrides the four methods that save and
  restore, and its own methods forget that position. A resumed run then loses the batch. This fix
  removes the overrides and defines the two hooks of `BaseInput`.
  """
  import tensorflow as tf
  from paxml import seqio_input

  seqio = seqio_input.SeqIOInput
  overrides = {'save', 'restore', 'get_state', 'set_state'}
  if not overrides <= vars(seqio).keys() or '_get_state_internal' in vars(seqio):
    return False

  def get_state_internal(self) -> bytes:
    if not self.input_checkpointing_enabled:
      raise NotImplementedError('The position is kept only with input_checkpointing_enabled.')
    try:
      return save_iterator(self._iter)
    except tf.errors.UnimplementedError as e:
      raise NotImplementedError(f'tf.data cannot save the position of {self.name}: {e}') from e

  def set_state_internal(self, state: bytes) -> None:
    restore_iterator(self._iter, state)

  for name in overrides:
    delattr(seqio, name)
  seqio._get_state_internal = get_state_internal
  seqio._set_state_internal = set_state_internal
  return True


def save_iterator(iterator: Any) -> bytes:
  """Returns the position of a tf.data iterator, the bytes that `iterator.save()` gives.

  TensorFlow calls three operations for each element of a shuffle's buffer from Python: five seconds
  for 10,000 rows. One graph does them in a tenth of the time.

  Args:
    iterator: What `Dataset.as_numpy_iterator` returns.
  """
  import tensorflow as tf

  join, _ = _state_graphs()
  resource = iterator._iterator._iterator_resource
  return join(tf.raw_ops.SerializeIterator(resource_handle=resource)).numpy()


def restore_iterator(iterator: Any, state: bytes) -> None:
  """Moves a tf.data iterator to a position, as `iterator.restore(state)`, but faster.

  Args:
    iterator: What `Dataset.as_numpy_iterator` returns.
    state: What `save_iterator` or `iterator.save()` returned.
  """
  import tensorflow as tf

  _, split = _state_graphs()
  resource = iterator._iterator._iterator_resource
  tf.raw_ops.DeserializeIterator(resource_handle=resource, serialized=split(tf.constant(state)))


@functools.cache
def _state_graphs() -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
  """Returns the graphs that join an iterator's elements to a text, and split them again."""
  import tensorflow as tf

  @tf.function(input_signature=[tf.TensorSpec([None], tf.variant)])
  def join(elements):
    texts = tf.map_fn(tf.io.serialize_tensor, elements, fn_output_signature=tf.string)
    return tf.strings.reduce_join(tf.io.encode_base64(texts), separator=',')

  @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
  def split(state):
    texts = tf.io.decode_base64(tf.strings.split(state, sep=','))
    parse = functools.partial(tf.io.parse_tensor, out_type=tf.variant)
    return tf.map_fn(parse, texts, fn_output_signature=tf.variant)

  return join, split


def tuning_measurements() -> bool:
  """Converts measurements to Python floats for pyglove.

  paxml reports rewards and metrics as numpy's float32. With numpy 2 pyglove's local tuning rejects
  it: "Expect float but encountered numpy.float32".
  """
  from pyglove.core import tuning
  from pyglove.core.tuning import local_backend

  try:
    tuning.Measurement(step=0, reward=np.float32(0), metrics={}, elapse_secs=0.0)
  except TypeError:
    pass
  else:
    return False
  feedback = local_backend._InMemoryFeedback
  add_measurement = feedback._add_measurement

  @functools.wraps(add_measurement)
  def add_floats(self, reward, metrics, *args, **kwargs):
    reward = None if reward is None else float(reward)
    metrics = {name: float(value) for name, value in metrics.items()}
    add_measurement(self, reward, metrics, *args, **kwargs)

  feedback._add_measurement = add_floats
  return True


def lazy_prefix_one_step() -> bool:
  """Lets the two lazy-prefix attentions decode one step without a relative bias.

  They map a function over arrays and their time axes together, and an array may be None. Then jax
  0.5 expects None for the axis too: "ValueError: Expected None, got 3".
  """
  from praxis.layers import attentions, multi_query_attention

  try:
    jax.tree_util.tree_map(lambda x, axis: x, None, 0)
  except ValueError:
    pass
  else:
    return False
  for layer in (
    attentions.DotProductAttentionWithLPB,
    multi_query_attention.MultiQueryDotProductAttentionLPB,
  ):
    layer._run_with_all_decode_state_chunks = _drop_axes_of_none(
      layer._run_with_all_decode_state_chunks
    )
  return True


def _drop_axes_of_none(run: Callable[..., Any]) -> Callable[..., Any]:
  signature = inspect.signature(run)

  def axes_for(args: Any, axes: Any) -> Any:
    is_none = lambda x: x is None  # noqa: E731
    return jax.tree_util.tree_map(
      lambda x, axis: None if x is None else axis, args, axes, is_leaf=is_none
    )

  @functools.wraps(run)
  def run_without_axes_of_none(*args, **kwargs):
    call = signature.bind(*args, **kwargs)
    for sliced, axes in (
      ('args_to_slice', 'args_time_dims'),
      ('broadcast_args_to_slice', 'broadcast_args_time_dims'),
    ):
      call.arguments[axes] = axes_for(call.arguments[sliced], call.arguments[axes])
    return run(*call.args, **call.kwargs)

  return run_without_axes_of_none


def beam_search_reshape() -> bool:
  """Gives beam search a `jnp.reshape` with the argument `newshape`, which jax 0.4.36 removed.

  Only praxis/decoder_utils.py gets it; jax itself does not change.
  """
  from praxis import decoder_utils

  try:  # eval_shape: a computation would start the devices before jax.distributed can start.
    jax.eval_shape(lambda: jnp.reshape(np.zeros(1), newshape=(1, 1)))
  except TypeError:
    pass
  else:
    return False
  decoder_utils.jnp = _NumpyWithNewshape()
  return True


class _NumpyWithNewshape:
  """jax.numpy, with the old argument `newshape` of `reshape`."""

  def __getattr__(self, name: str) -> Any:
    return getattr(jnp, name)

  def reshape(self, a: jax.Array, *args, newshape: Any = None, **kwargs) -> jax.Array:
    if newshape is not None:
      kwargs['shape'] = newshape
    return jnp.reshape(a, *args, **kwargs)


FIXES: tuple[Callable[[], bool], ...] = (
  evaluation_in_training,
  input_index_shuffle,
  input_caches,
  input_peeked_batch,
  tuning_measurements,
  lazy_prefix_one_step,
  beam_search_reshape,
)


def read_lambdas_fast() -> None:
  """Makes Fiddle read the source of a lambda by `ast`. Call it before importing paxml.

  It halves the import time of paxml. Five fields of paxml and praxis have a lambda as default. To
  read one, Fiddle parses its whole file into libcst's concrete syntax tree, which takes a second or
  more. `ast` takes milliseconds.
  """
  from fiddle._src.experimental import auto_config

  original = auto_config._getsource_for_lambda
  if getattr(original, '__wrapped__', None):
    return

  @functools.wraps(original)
  def getsource_for_lambda(fn) -> str:
    source = ''.join(linecache.getlines(inspect.getsourcefile(fn), inspect.getmodule(fn).__dict__))
    lambdas = [x for x in _lambdas(source) if x.lineno == fn.__code__.co_firstlineno]
    return ast.unparse(lambdas[0]) if len(lambdas) == 1 else original(fn)

  auto_config._getsource_for_lambda = getsource_for_lambda


@functools.cache
def _lambdas(source: str) -> list[ast.Lambda]:
  return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Lambda)]


def set_heartbeats(seconds: int, missed: int) -> None:
  """Sets how jax.distributed detects a lost process. Call it before paxml.main starts.

  `jax.distributed.initialize`, which paxml calls, has no argument for these numbers.

  Args:
    seconds: Seconds between two heartbeats of a process.
    missed: Number of missed heartbeats after which the remaining processes end.
  """
  from jax._src import distributed

  state = distributed.global_state
  if 'heartbeat_timeout_seconds' in inspect.signature(state.initialize).parameters:
    heartbeats = {'heartbeat_timeout_seconds': seconds * missed}
  else:  # jax 0.5.3.
    names = ('heartbeat_interval_seconds', seconds), ('max_missing_heartbeats', missed)
    heartbeats = {f'{side}_{name}': n for side in ('service', 'client') for name, n in names}
  state.initialize = functools.partial(state.initialize, **heartbeats)


def detects_cluster() -> bool:
  """Returns whether jax finds an environment whose processes it can join by itself."""
  from jax._src import clusters

  known = clusters.ClusterEnv._cluster_types
  return any(x.is_env_present() for x in known if not x.opt_in_only_method)


def exit_after_saving_on_demand_with(code: int) -> None:
  """Sets the exit code of a run that ends after it saved a checkpoint on demand.

  There, and nowhere else, paxml calls the interpreter's `exit`, with 0: as if training had ended.
  """
  from paxml import executors

  executors.exit = lambda _: sys.exit(code)


@contextlib.contextmanager
def without_autograph() -> Iterator[None]:
  """Lets tf.data take functions as they are, which no `if` or loop of which asks for a tensor.

  TensorFlow else rewrites each function, and all that they call, in three seconds for a task of
  text. It has no public switch.
  """
  from tensorflow.python.autograph.core import ag_ctx

  with ag_ctx.ControlStatusCtx(status=ag_ctx.Status.DISABLED):
    yield


def count_tpu_chips() -> int:
  """Returns the number of TPU chips of this host. Unlike jax.devices(), it does not lock them."""
  from jax._src import hardware_utils

  chips, _ = hardware_utils.num_available_tpu_chips_and_device_id()
  return chips


def default_grad_fn(*masks: Any) -> Callable[..., Any]:
  """Returns the gradient function of PAX's own train step. A step in parts calls it.

  Args:
    *masks: Results of `trainer_lib.get_excluded_var_masks`.
  """
  from paxml import trainer_lib

  return trainer_lib._get_default_grad_fn(*masks)


def jitted_step(step: Callable[..., Any]) -> Callable[..., Any]:
  """Returns the jitted function of a step that PAX's partitioner made.

  The partitioner wraps it in a function that enters the mesh but has neither `trace` nor `lower`.
  """
  contents = (cell.cell_contents for cell in step.__closure__)
  return next(content for content in contents if hasattr(content, 'trace'))
