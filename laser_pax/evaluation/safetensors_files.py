"""Files in the format of safetensors, made before their contents are known and filled in place.

A file is the length of its header, 8 bytes; the header, in JSON; and the bytes of all arrays, in
the order of the header. A large model is divided into files, and an index names the file of each
array, as transformers expects.
"""

import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from laser_pax.experiment.saved_models import Shapes

# The greatest file, unless one array is greater.
FILE_BYTES = 5 * 10**9
_ITEM_BYTES = 4  # Those of float32.


def create(folder: pathlib.Path, shapes: Shapes) -> dict[str, np.ndarray]:
  """Makes the files of a model, and returns its arrays: zeros, to be written in place.

  Args:
    folder: Folder of the files, which exists.
    shapes: Shapes of the arrays by name, in the order in which they are to lie. All are float32.

  Returns:
    The arrays by name. Writing to one writes to its file.

  Raises:
    OSError: The disk has no space for the files.
  """
  groups = [*_groups(shapes)]
  paths = [folder / _file_name(number, len(groups)) for number in range(len(groups))]
  if len(paths) > 1:
    files = {n: path.name for path, names in zip(paths, groups, strict=True) for n in names}
    index = {'metadata': {'total_size': sum(map(_bytes, shapes.values()))}, 'weight_map': files}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index, indent=2))
  arrays = {}
  for path, names in zip(paths, groups, strict=True):
    arrays |= _create_file(path, {name: shapes[name] for name in names})
  return arrays


def _groups(shapes: Shapes) -> Iterable[list[str]]:
  """Yields the names of each file's arrays."""
  names, size = [], 0
  for name, shape in shapes.items():
    if names and size + _bytes(shape) > FILE_BYTES:
      yield names
      names, size = [], 0
    names.append(name)
    size += _bytes(shape)
  yield names


def _file_name(number: int, files: int) -> str:
  return f'model-{number + 1:05d}-of-{files:05d}.safetensors' if files > 1 else 'model.safetensors'


def _bytes(shape: tuple[int, ...]) -> int:
  return math.prod(shape) * _ITEM_BYTES


def _create_file(path: pathlib.Path, shapes: Shapes) -> dict[str, np.ndarray]:
  header, end = {'__metadata__': {'format': 'pt'}}, 0  # transformers asks for 'format'.
  for name, shape in shapes.items():
    first, end = end, end + _bytes(shape)
    header[name] = {'dtype': 'F32', 'shape': list(shape), 'data_offsets': [first, end]}
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)
  with path.open('wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    file.flush()
    # A mapped file must have its place on the disk: without it a write would end the process.
    os.posix_fallocate(file.fileno(), 0, 8 + len(text) + end)
  data = np.memmap(path, np.uint8, mode='r+', offset=8 + len(text))
  return _views(data, header)


def _views(data: np.ndarray, header: Mapping[str, dict]) -> dict[str, np.ndarray]:
  return {
    name: data[slice(*entry['data_offsets'])].view('<f4').reshape(entry['shape'])
    for name, entry in header.items()
    if name != '__metadata__'
  }
