"""Memory of `export` and of the way back, on a synthetic model that is larger than the memory.

`python benchmarks/export.py FOLDER` makes an export of random weights in FOLDER, 2 GB. It imports
them to a checkpoint, and exports that again. The kernel refuses either stage more than LIMIT_MIB of
private memory, reserved or used, beyond what there was at its start. The two exports must be equal.
Then comes an array that is one chunk, as a job on one device saves it.
"""

import contextlib
import filecmp
import json
import pathlib
import re
import resource
import shutil
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np

from laser_pax import configs
from laser_pax.data import sample
from laser_pax.evaluation import (
  export,
  exported_config,
  exported_folder,
  import_weights,
  safetensors_files,
  stored_arrays,
  weight_names,
)
from laser_pax.experiment import saved_models

SIZES = dict(NUM_LAYERS=10, MODEL_DIMS=2_048, HIDDEN_DIMS=8_192, DIMS_PER_HEAD=128)
LIMIT_MIB = 512
ONE_CHUNK = (8, 2_048, 4_096)  # 256 MiB
_MIB = 2**20


def _status(field: str) -> int:
  """Returns a field of this process's status, in bytes."""
  text = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(rf'^{field}:\s+(\d+)', text, re.MULTILINE)[1]) * 1024


@contextlib.contextmanager
def measured(name: str, limit_mib: int | None = None) -> Iterator[None]:
  """Prints the time, and the greatest growth of anonymous memory, of the `with` block.

  Args:
    name: Name of the stage.
    limit_mib: The memory that the kernel allows it; None: all.
  """
  before, peak, is_over = _status('RssAnon'), [0], threading.Event()

  def sample_memory() -> None:
    while not is_over.wait(0.01):
      peak[0] = max(peak[0], _status('RssAnon'))

  thread = threading.Thread(target=sample_memory)
  thread.start()
  unlimited = resource.getrlimit(resource.RLIMIT_DATA)
  if limit_mib is not None:
    limit = _status('VmData') + limit_mib * _MIB
    resource.setrlimit(resource.RLIMIT_DATA, (limit, unlimited[1]))
  start = time.time()
  try:
    yield
  finally:
    seconds = time.time() - start
    resource.setrlimit(resource.RLIMIT_DATA, unlimited)
    is_over.set()
    thread.join()
  record = {'stage': name, 'seconds': round(seconds, 1), 'before_mib': before // _MIB}
  print(json.dumps(record | {'growth_mib': max(peak[0] - before, 0) // _MIB}), flush=True)


def make_export(folder: pathlib.Path, experiment: configs.C4LaserTiny) -> None:
  """Makes an export of random weights."""
  folder.mkdir(parents=True)
  saved = saved_models.Saved(str(folder), 1, None)
  config = exported_config.model_config(experiment, saved)
  config['laser_pax']['overrides'] = [f'{name}={value}' for name, value in SIZES.items()]
  rng = np.random.default_rng(0)
  shapes = weight_names.shapes(config)
  for array in safetensors_files.create(folder, shapes).values():
    rows = array.reshape(array.shape[0], -1)
    for row in rows:
      row[:] = rng.standard_normal(row.shape, np.float32)
  (folder / exported_folder.CONFIG).write_text(json.dumps(config))
  shutil.copy(sample.VOCAB, folder / exported_folder.TOKENIZER)
  size = sum(file.stat().st_size for file in folder.iterdir())
  print(json.dumps({'parameters': weight_names.count(shapes), 'bytes': size}), flush=True)


def one_chunk(folder: pathlib.Path) -> None:
  """Reads an array that is one chunk."""
  store = stored_arrays.create_array(folder, 'array', ONE_CHUNK, '<f4', ONE_CHUNK)
  rng = np.random.default_rng(0)
  store.write(rng.standard_normal(ONE_CHUNK, np.float32)).result()
  with measured(f'one chunk of {np.prod(ONE_CHUNK) * 4 // _MIB} MiB'):
    stored_arrays.open_array(folder, 'array', ONE_CHUNK).read().result()


def main(root: pathlib.Path) -> None:
  """Runs all stages."""
  experiment = configs.C4LaserTiny()
  for name, value in SIZES.items():
    setattr(experiment, name, value)
  make_export(root / 'first', experiment)
  exported = exported_folder.read_export(root / 'first')
  experiment.task()  # What it imports is no part of the stages.
  with measured('import-weights', LIMIT_MIB):
    import_weights.import_weights(experiment, exported, root / 'job')
  with measured('export', LIMIT_MIB):
    export.export(experiment, saved_models.find(str(root / 'job')), root / 'second')
  names = sorted(path.name for path in (root / 'first').glob('*.safetensors'))
  _, different, missing = filecmp.cmpfiles(root / 'first', root / 'second', names, shallow=False)
  print(json.dumps({'files': names, 'equal': not (different or missing)}))
  one_chunk(root / 'chunk')


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]).resolve())
