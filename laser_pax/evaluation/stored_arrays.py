"""The arrays of PAX's checkpoints, read and written in pieces, so that none need fit in memory.

PAX saves an array in chunks, one for each device that held a part of it. A chunk is compressed, and
can only be read as a whole. Each chunk is read once.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import tensorstore
from etils import epath
from orbax.checkpoint import type_handlers

from laser_pax.errors import UserError

# The greatest chunk that is written.
CHUNK_BYTES = 64 * 2**20

Region = tuple[slice, ...]


def open_array(folder: epath.Path, name: str, shape: Sequence[int]) -> tensorstore.TensorStore:
  """Opens an array to read it.

  Args:
    folder: The checkpoint's folder `state`.
    name: Name of the array's own folder.
    shape: The array's shape. PAX may have padded it on the disk.

  Raises:
    UserError: It is not float32.
  """
  store = tensorstore.open(_spec(folder, name), open=True, context=_uncached()).result()
  if store.dtype.name != 'float32':
    raise UserError(f'{folder / name} is {store.dtype.name}: expected float32, as PAX trains')
  return store[tuple(slice(0, size) for size in shape)]


def create_array(
  folder: epath.Path, name: str, shape: Sequence[int], dtype: np.dtype, chunk: Sequence[int]
) -> tensorstore.TensorStore:
  """Makes an array of zeros, in PAX's format. A chunk that is never written takes no place."""
  spec = _spec(folder, name) | {
    'metadata': {
      'shape': list(shape),
      'chunks': list(chunk),
      'dtype': np.dtype(dtype).str,
      'compressor': {'id': 'zstd', 'level': 1},
      'dimension_separator': '.',
      'fill_value': 0,
    }
  }
  return tensorstore.open(spec, create=True, open=False, context=_uncached()).result()


def _spec(folder: epath.Path, name: str) -> dict:
  return type_handlers.get_tensorstore_spec(str(folder), name, use_ocdbt=False)


def _uncached() -> tensorstore.Context:
  return tensorstore.Context({'cache_pool': {'total_bytes_limit': 0}})


def regions(shape: Sequence[int], chunk: Sequence[int]) -> Iterator[Region]:
  """Yields the regions of an array that chunks of a shape divide it into."""
  axes = (
    [slice(first, min(first + step, size)) for first in range(0, size, step)]
    for size, step in zip(shape, chunk, strict=True)
  )
  return itertools.product(*axes)


def chunk_of(store: tensorstore.TensorStore) -> tuple[int, ...]:
  """Returns the shape of an array's chunks on the disk."""
  return tuple(store.chunk_layout.read_chunk.shape)


def chunk_shape(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
  """Returns a shape of chunks of at most CHUNK_BYTES: the longest axis is halved until it fits."""
  chunk = list(shape)
  while math.prod(chunk) * itemsize > CHUNK_BYTES:
    axis = int(np.argmax(chunk))
    chunk[axis] = -(-chunk[axis] // 2)
  return tuple(chunk)
