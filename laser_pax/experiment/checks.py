"""Checks of an experiment's numbers. Each error message has the fix.

The checks are arithmetic alone: they use no devices and no files.
"""

import math
from collections.abc import Sequence

from laser_pax.errors import UserError


def _nearest(number: int, divisor: int) -> str:
  """Returns, in words, the positive multiples of `divisor` next to `number`."""
  below = max(number, 0) // divisor * divisor
  return f'{below} or {below + divisor}' if below else str(divisor)


def _divisors(number: int) -> list[int]:
  """Returns the positive divisors of `number`, in ascending order."""
  return [k for k in range(1, number + 1) if number % k == 0]


def check_at_least(experiment: object, least: float, names: Sequence[str]) -> None:
  """Checks that attributes are not below a number. Those that are None are not checked.

  Raises:
    UserError: One is below it.
  """
  for name in names:
    value = getattr(experiment, name)
    if value is not None and value < least:
      raise UserError(f'{name} must be at least {least}; got {value}: set a greater number')


def check_choice(experiment: object, name: str, choices: Sequence[str]) -> None:
  """Checks that an attribute is one of the words that it may be.

  Raises:
    UserError: It is not.
  """
  value = getattr(experiment, name)
  if value not in choices:
    raise UserError(f'{name} must be {" or ".join(map(repr, choices))}; got {value!r}')


def check_heads(model_dims: int, num_heads: int, dims_per_head: int) -> None:
  """Checks that the heads together are exactly as wide as the model.

  Raises:
    UserError: They are not.
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


def check_patches(image_size: int, patch_size: int) -> None:
  """Checks that patches cover an image exactly.

  Raises:
    UserError: They do not.
  """
  if image_size % patch_size:
    raise UserError(
      f'PATCH_SIZE = {patch_size} must divide IMAGE_SIZE = {image_size}: set it to one of '
      f'{_divisors(image_size)}'
    )


def check_positions(model_dims: int) -> None:
  """Checks that the fixed positions of patches, four parts of sines and cosines, fit the width.

  Raises:
    UserError: They do not.
  """
  if model_dims % 4 or model_dims < 8:
    raise UserError(
      f'MODEL_DIMS must be a multiple of 4, at least 8; got {model_dims}: set it to '
      f'{_nearest(max(model_dims, 8), 4)}'
    )


def check_mesh(mesh: Sequence[int], dims: dict[str, int]) -> None:
  """Checks that a mesh is [replica, data, mdl], and that its axes divide the model's sizes.

  Args:
    mesh: Devices along replica, data and mdl, over all slices.
    dims: Sizes of the model by name. The axis data splits those whose name starts with MODEL_; the
      axis mdl splits all others.

  Raises:
    UserError: The mesh has another form, or its axis does not divide a size.
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
  """Checks that the mesh uses every device.

  Raises:
    UserError: It does not.
  """
  mesh_devices = math.prod(mesh)
  if mesh_devices != num_devices:
    replica, _, mdl = mesh
    fits = num_devices % (replica * mdl) == 0
    fix = [replica, num_devices // (replica * mdl), mdl] if fits else [1, num_devices, 1]
    raise UserError(
      f'the mesh {list(mesh)} needs {mesh_devices} devices; this job has {num_devices}. Run on '
      f'{mesh_devices}, or set ICI_MESH_SHAPE (times DCN_MESH_SHAPE, for several slices) to {fix}'
    )


def check_batch(global_batch_size: int, num_devices: int, num_processes: int) -> None:
  """Checks that the devices divide the global batch: PAX feeds each device its own rows.

  Raises:
    UserError: They do not. Without this check PAX would pad the batch and so change the training.
  """
  parts = math.lcm(num_devices, num_processes)
  if global_batch_size < 1 or global_batch_size % parts:
    raise UserError(
      f'GLOBAL_BATCH_SIZE = {global_batch_size} sequences must be divisible by the number of '
      f'devices, {num_devices}, in {num_processes} process(es): set it to '
      f'{_nearest(global_batch_size, parts)}'
    )


def check_micro_batches(micro_batches: int, global_batch_size: int, mesh: Sequence[int]) -> None:
  """Checks that the devices along replica and data divide each part of the batch.

  Args:
    micro_batches: Number of parts of the batch.
    global_batch_size: Sequences of one step.
    mesh: Devices along replica, data and mdl, over all slices.

  Raises:
    UserError: They do not.
  """
  replica, data, _ = mesh
  if micro_batches < 1 or global_batch_size % (micro_batches * replica * data):
    rows_per_device = global_batch_size // (replica * data)
    fits = _divisors(rows_per_device)
    raise UserError(
      f'MICRO_BATCHES = {micro_batches}, times the {replica * data} device(s) along replica and '
      f'data, must divide GLOBAL_BATCH_SIZE = {global_batch_size}: set it to one of {fits}'
    )


def check_block(layers_per_block: int, num_layers: int, is_repeated: bool) -> None:
  """Checks that the size of a block divides the layers, and that blocks run in a loop.

  Raises:
    UserError: It does not, or they do not.
  """
  if layers_per_block < 1 or num_layers % layers_per_block:
    raise UserError(
      f'LAYERS_PER_BLOCK = {layers_per_block} must divide NUM_LAYERS = {num_layers}: set it to one '
      f'of {_divisors(num_layers)}'
    )
  if layers_per_block > 1 and not is_repeated:
    raise UserError(
      f'LAYERS_PER_BLOCK = {layers_per_block} needs a loop over layers, but USE_REPEATED_LAYER is '
      'False: set USE_REPEATED_LAYER to True, or LAYERS_PER_BLOCK to 1'
    )


def check_adam(learning_rate: float, beta1: float, beta2: float, epsilon: float) -> None:
  """Checks the numbers of Adam.

  Raises:
    UserError: The learning rate or epsilon is not positive, or a beta is not in [0, 1).
  """
  for name, value in {'LEARNING_RATE': learning_rate, 'ADAM_EPSILON': epsilon}.items():
    if value <= 0:
      raise UserError(f'{name} must be positive; got {value}: set a greater number')
  for name, value in {'ADAM_BETA1': beta1, 'ADAM_BETA2': beta2}.items():
    if not 0 <= value < 1:
      raise UserError(f'{name} must be at least 0 and below 1; got {value}: set one such as 0.9')


def check_schedule(warmup_steps: int, num_train_steps: int) -> None:
  """Checks that the warm-up ends before the training does.

  Raises:
    UserError: It does not.
  """
  if not 0 <= warmup_steps < num_train_steps:
    raise UserError(
      f'WARMUP_STEPS must be at least 0 and less than NUM_TRAIN_STEPS = {num_train_steps}; got '
      f'{warmup_steps}: set WARMUP_STEPS = {num_train_steps // 10}'
    )
