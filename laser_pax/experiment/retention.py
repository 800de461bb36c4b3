"""Which old checkpoints of a run stay, and how the others are deleted.

PAX keeps the last CHECKPOINT_MAX_TO_KEEP, and one each twelve hours. Older ones stay too: each that
falls on a number of steps, the best ones, and the newest whole one, whatever its age.
"""

from __future__ import annotations

import logging
import os
import pathlib
import shutil
from collections.abc import Iterable
from typing import Literal, NamedTuple

from laser_pax.experiment import checkpoints

# PAX clears folders of such a name away when it starts.
_DELETED = '.orbax-checkpoint-tmp-deleted'


class Policy(NamedTuple):
  """What stays beside the last checkpoints.

  Attributes:
    every_n_steps: Checkpoints of a multiple of so many steps; None for none.
    best: So many of those whose evaluations were best.
    better: Which of two figures is the better one.
  """

  every_n_steps: int | None
  best: int
  better: Literal['lower', 'higher']


def staying(job_log_dir: os.PathLike | str, policy: Policy, old: Iterable[int]) -> set[int]:
  """Returns which steps, of those that PAX would delete, stay.

  Args:
    job_log_dir: The job's folder.
    policy: The policy.
    old: The steps that PAX would delete.
  """
  sign = 1 if policy.better == 'lower' else -1
  values = checkpoints.figures(job_log_dir)
  ranked = sorted(values, key=lambda step: (sign * values[step], -step))
  stay = {*ranked[: policy.best], checkpoints.survey(job_log_dir).whole}
  return {
    step
    for step in old
    if step in stay or (policy.every_n_steps and step and step % policy.every_n_steps == 0)
  }


def follow(job_log_dir: os.PathLike | str, policy: Policy) -> None:
  """Makes PAX delete by a policy, when a newer checkpoint is finished.

  Args:
    job_log_dir: The folder of this process's job.
    policy: The policy.
  """
  import jax
  from orbax.checkpoint.path import deleter

  kept_for_now: set[int] = set()

  def delete_steps(self: deleter.StandardCheckpointDeleter, steps: Iterable[int]) -> None:
    if jax.process_index() > 0:
      return
    old = kept_for_now | set(steps)
    stay = staying(job_log_dir, policy, old)
    kept_for_now.clear()
    kept_for_now.update(stay)
    for step in sorted(old - stay):
      if '://' in os.fspath(job_log_dir):
        self.delete(step)
      else:
        delete(job_log_dir, step)

  deleter.StandardCheckpointDeleter.delete_steps = delete_steps


def delete(job_log_dir: os.PathLike | str, step: int) -> None:
  """Deletes a local checkpoint. Where this is cut off, no part of one is left under its name."""
  folder = pathlib.Path(job_log_dir) / 'checkpoints' / f'checkpoint_{step:08d}'
  target = folder.with_name(folder.name + _DELETED)
  try:
    folder.rename(target)
    shutil.rmtree(target)
  except OSError as e:  # The run goes on: it has a newer one.
    logging.warning('Checkpoint %d could not be deleted: %s', step, e)
