"""The lines that train a sweep's points on a TPU slice, one job each, for scripts/tpu_pod.sh."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from laser_pax.sweeps.plans import Run

# The settings that all points share: project, zone, slice, data, and the folder of all jobs.
SETTINGS = './tpu_pod.conf'


def lines(runs: Sequence[Run]) -> list[str]:
  """Returns lines for bash, in a checkout that has the file `SETTINGS`.

  The slice is made and set up once. Each job's settings are the shared ones, with its experiment,
  its overrides, and a folder of its own below JOB_LOG_DIR.

  Args:
    runs: The runs.
  """
  script = 'scripts/tpu_pod.sh'
  text = [f'{script} create && {script} setup && {{']  # Without a slice nothing is trained.
  for run in runs:
    text += [
      f"cat > {run.name}.conf <<'END'",
      f'source {SETTINGS}',
      f'EXPERIMENT={shlex.quote(run.experiment)}',
      f'JOB_LOG_DIR=$JOB_LOG_DIR/{run.name}',
      f'TRAIN_FLAGS+=({shlex.join(run.flags())})',
      'END',
      f'{script} train --conf={run.name}.conf',
    ]
  return [*text, f'{script} delete', '}']
