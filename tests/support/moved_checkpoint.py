"""Saves a run on one mesh, restores it on others, and prints the results as JSON."""

import json
import pathlib
import sys

import jax
import numpy as np
from paxml import checkpoint_types, checkpoints

from tests.support import steps

SAVED_ON, SAVED_AT, LAST = [1, 8, 1], 3, 6
RESTORED_ON = ([1, 4, 1], [1, 1, 1], [2, 2, 2])
GDA = checkpoint_types.CheckpointType.GDA


def _restored(trainer, folder):
  metadata = trainer.metadata
  return checkpoints.restore_checkpoint(
    metadata.padded_global_shapes,
    folder,
    global_mesh=trainer.partitioner.global_mesh,
    checkpoint_type=GDA,
    state_specs=metadata.partition_specs,
    state_unpadded_shape_dtype_struct=metadata.unpadded_global_shapes,
    enforce_restore_shape_check=True,
    tensorstore_use_ocdbt=False,
  )


def main(folder):
  """Trains, saves and continues. Then restores and continues on each other mesh."""
  trainer = steps.Trainer(steps.experiment('C4LaserTiny'), SAVED_ON)
  trainer.train(0, SAVED_AT)
  checkpoints.save_checkpoint(
    trainer.state,
    folder,
    checkpoint_type=GDA,
    train_state_unpadded_shape_dtype_struct=trainer.metadata.unpadded_global_shapes,
    tensorstore_use_ocdbt=False,
  )
  saved = jax.tree.map(np.asarray, trainer.state)
  results = {'saved': [float(o.loss) for o in trainer.train(SAVED_AT, LAST)]}
  for mesh in RESTORED_ON:
    restored = steps.Trainer(steps.experiment('C4LaserTiny'), mesh, state=saved)
    restored.state = _restored(restored, folder)
    is_equal = jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), restored.state, saved)
    shards = {len(x.sharding.device_set) for x in jax.tree.leaves(restored.state)}
    results[str(mesh)] = {
      'equal': all(jax.tree.leaves(is_equal)),
      'numbers': sum(x.size for x in jax.tree.leaves(saved)),
      'devices': max(shards),
      'losses': [float(o.loss) for o in restored.train(SAVED_AT, LAST)],
    }
  print(json.dumps(results))


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
