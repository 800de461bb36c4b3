"""What an experiment's numbers must satisfy, each told with the fix.

Pure arithmetic: no devices, no files.
"""

import math
from collections.abc import Sequence

from laser_pax.errors import UserError


def _nearest(number: int, divisor: int) -> str:
  """The positive multiples of divisor around number, in words."""
  below = max(number, 0) // divisor * divisor
  return f'{below} or {below + divisor}' if below else str(divisor)


def check_heads(model_dims: int, num_heads: int, dims_per_head: int) -> None:
  """Heads must share out the model's width without rest.

  Raises:
    UserError: they do not.
  """
  if num_heads * dims_per_head != model_dims:
    fix = (
      f'set NUM_HEADS = {model_dims // dims_per_head}'
      if model_dims % dims_per_head == 0
      else f'make MODEL_DIMS a multiple of DIMS_PER_HEAD: {_nearest(model_dims, dims_per_head)}'
    )
    raise UserError(
      f'MODEL_DIMS must be NUM_HEADS x DIMS_PER_HEAD; got {model_dims} and {num_heads} x '
      f'{dims_per_head} = {num_heads * dims_per_head}: {fix}'
    )


def check_mesh(mesh: Sequence[int], dims: dict[str, int]) -> None:
  """A mesh is [replica, data, mdl]; what an axis splits must be divisible by it.

  Args:
    mesh: Devices along replica, data and mdl, over all slices.
    dims: Sizes by name; names in capitals that start with MODEL_ are split by data, all others by
      mdl.

  Raises:
    UserError: the mesh has another form, or a size is not divisible.
  """
  if len(mesh) != 3 or any(n < 1 for n in mesh):
    raise UserError(
      f'ICI_MESH_SHAPE must be three positive numbers, [replica, data, mdl]; got {list(mesh)}'
    )
  for name, size in dims.items():
    axis, parts = ('data', mesh[1]) if name.startswith('MODEL_') else ('mdl', mesh[2])
    if size % parts:
      raise UserError(
        f'{name} = {size} must be divisible by the {axis} axis of the mesh {list(mesh)}, {parts}: '
        f'set it to {_nearest(size, parts)}, or choose another ICI_MESH_SHAPE'
      )


def check_devices(mesh: Sequence[int], num_devices: int) -> None:
  """The mesh must use every device.

  Raises:
    UserError: it does not.
  """
  wanted = math.prod(mesh)
  if wanted != num_devices:
    replica, _, mdl = mesh
    fits = num_devices % (replica * mdl) == 0
    like = [replica, num_devices // (replica * mdl), mdl] if fits else [1, num_devices, 1]
    raise UserError(
      f'the mesh {list(mesh)} needs {wanted} devices; this job has {num_devices}. '
      f'Run on {wanted}, or set ICI_MESH_SHAPE (times DCN_MESH_SHAPE, for several slices) to {like}'
    )


def check_batch(global_batch_size: int, num_devices: int, num_processes: int) -> None:
  """The global batch must share out over devices, each of which PAX feeds rows of its own.

  Raises:
    UserError: it does not. PAX alone would pad the batch, and so train another one than was asked
      for.
  """
  parts = math.lcm(num_devices, num_processes)
  if global_batch_size < 1 or global_batch_size % parts:
    raise UserError(
      f'GLOBAL_BATCH_SIZE = {global_batch_size} sequences must be divisible by the number of '
      f'devices, {num_devices}, in {num_processes} process(es): set it to '
      f'{_nearest(global_batch_size, parts)}'
    )


def check_micro_batches(micro_batches: int, global_batch_size: int, mesh: Sequence[int]) -> None:
  """Each part of the batch must share out over the devices that have rows of their own.

  Args:
    micro_batches: Parts of the batch.
    global_batch_size: Sequences of one step.
    mesh: Devices along replica, data and mdl, over all slices.

  Raises:
    UserError: it does not.
  """
  replica, data, _ = mesh
  if micro_batches < 1 or global_batch_size % (micro_batches * replica * data):
    most = global_batch_size // (replica * data)
    fits = [k for k in range(1, most + 1) if most % k == 0]
    raise UserError(
      f'MICRO_BATCHES = {micro_batches}, times the {replica * data} device(s) along replica and '
      f'data, must divide GLOBAL_BATCH_SIZE = {global_batch_size}: set it to one of {fits}'
    )


def check_block(layers_per_block: int, num_layers: int, is_repeated: bool) -> None:
  """Blocks of layers must share out the layers, and be repeated.

  Raises:
    UserError: they do not, or are not.
  """
  if layers_per_block < 1 or num_layers % layers_per_block:
    fits = [k for k in range(1, num_layers + 1) if num_layers % k == 0]
    raise UserError(
      f'LAYERS_PER_BLOCK = {layers_per_block} must divide NUM_LAYERS = {num_layers}: set it to one '
      f'of {fits}'
    )
  if layers_per_block > 1 and not is_repeated:
    raise UserError(
      f'LAYERS_PER_BLOCK = {layers_per_block} is of a loop over layers, and USE_REPEATED_LAYER is '
      'False: set it to True, or LAYERS_PER_BLOCK to 1'
    )


def check_schedule(warmup_steps: int, num_train_steps: int) -> None:
  """The warm-up must end before the training does.

  Raises:
    UserError: it does not.
  """
  if not 0 <= warmup_steps < num_train_steps:
    raise UserError(
      f'WARMUP_STEPS must be at least 0 and less than NUM_TRAIN_STEPS = {num_train_steps}; got '
      f'{warmup_steps}: set WARMUP_STEPS = {num_train_steps // 10}'
    )
