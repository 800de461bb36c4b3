"""A trained decoder leaves PAX: its weights in safetensors, and what reads them elsewhere."""

import json
import pathlib
import shutil
from collections.abc import Mapping

import numpy as np
from etils import epath

from laser_pax.data import vocabulary
from laser_pax.evaluation import (
  exported_config,
  safetensors_files,
  stored_arrays,
  weight_names,
)
from laser_pax.evaluation.exported_folder import CONFIG, TOKENIZER, check_new, new_folder
from laser_pax.experiment import jobs, saved_models
from laser_pax.experiment.base import Experiment

# Programs that read an export without this package.
_READERS = ('numpy_forward.py', 'modeling_laser.py', 'tokenization_laser.py')
_FOLDER = pathlib.Path(__file__).parent / 'reference'


def export(experiment: Experiment, saved: saved_models.Saved, out: pathlib.Path) -> int:
  """Writes a checkpoint's weights, and the programs that read them, into a new folder.

  The weights stay bit for bit. Memory holds one chunk of one array at a time. No device is used.

  Args:
    experiment: The experiment, a decoder.
    saved: Its checkpoint.
    out: The folder to make. It appears when it is complete.

  Returns:
    The number of parameters.

  Raises:
    UserError: The model cannot be exported, the checkpoint or its vocabulary is another's, or
      `out` has content.
  """
  check_new(out)
  exported_config.check_model(experiment)
  saved_models.check_run(saved, experiment)
  arrays = saved_models.shapes(saved)
  config = exported_config.model_config(experiment, saved)
  shapes = weight_names.shapes(config)
  weight_names.check(weight_names.weight_shapes(arrays), shapes, str(saved.folder))
  tokenizer = epath.Path(saved_models.vocabulary(saved) or experiment.vocabulary())
  vocabulary.check_size(tokenizer, experiment.VOCAB_SIZE, f'{saved.job}/{jobs.VOCABULARY}')
  with new_folder(out) as folder:
    _copy_weights(saved, arrays, safetensors_files.create(folder, shapes))
    _write_json(folder / CONFIG, config)
    _write_json(folder / 'tokenizer_config.json', exported_config.tokenizer_config(experiment))
    (folder / TOKENIZER).write_bytes(tokenizer.read_bytes())
    for name in _READERS:
      shutil.copy(_FOLDER / name, folder)
  return weight_names.count(shapes)


def _copy_weights(
  saved: saved_models.Saved, arrays: saved_models.Shapes, weights: Mapping[str, np.ndarray]
) -> None:
  """Copies a checkpoint's arrays, chunk by chunk, into the weights of an export."""
  for array, names in weight_names.by_array(weight_names.places(arrays)).items():
    shape = arrays[array]
    store = stored_arrays.open_array(saved.folder / 'state', f'mdl_vars.params.{array}', shape)
    for region in stored_arrays.regions(shape, stored_arrays.chunk_of(store)):
      piece = store[region].read().result()
      if None in names:
        weights[names[None]][region] = piece
      else:
        turns, rest = region[0], region[1:]
        for turn in range(turns.start, turns.stop):
          weights[names[turn]][rest] = piece[turn - turns.start]


def _write_json(path: pathlib.Path, contents: Mapping) -> None:
  path.write_text(json.dumps(contents, indent=2) + '\n')
