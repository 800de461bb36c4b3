"""Whether this process is one of several that train together, and where the first of them is.

paxml starts jax's distributed service for two of its flags. jax then looks into the environment for
Slurm, Open MPI or a TPU slice. Where one is only half there, it fails late and in its own terms.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping

from laser_pax.errors import UserError

# Each of these flags starts jax's distributed service.
_STARTS_SERVICE = ('jax_fully_async_checkpoint', 'multiprocess_gpu')
_BY_HAND = ('server_addr', 'num_hosts', 'host_idx')
_SLURM_JOB, _SLURM_NODES = 'SLURM_JOB_ID', 'SLURM_STEP_NODELIST'
# What jax reads of Slurm. srun sets them, and a shell of the job lacks some.
_SLURM = (_SLURM_JOB, _SLURM_NODES, 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID')
_OPEN_MPI = (
  'OMPI_MCA_orte_hnp_uri',
  'OMPI_COMM_WORLD_SIZE',
  'OMPI_COMM_WORLD_RANK',
  'OMPI_COMM_WORLD_LOCAL_RANK',
)
_ONE_PROCESS = '--multiprocess_gpu --server_addr=localhost:PORT --num_hosts=1 --host_idx=0'


def is_joined(flags: Mapping[str, str]) -> bool:
  """Returns whether paxml's flags, a value for each name, start jax's distributed service."""
  return any(is_on(flags, name) for name in _STARTS_SERVICE)


def join(flags: Mapping[str, str]) -> None:
  """Checks that this process can find the others, if its flags ask for that.

  Under Slurm it also names the first host to jax, which misreads some lists of hosts.

  Args:
    flags: paxml's flags, a value for each name.

  Raises:
    UserError: It cannot; the message says what is missing.
  """
  if not is_joined(flags):
    return
  by_hand = [name for name in _BY_HAND if name in flags]
  if len(by_hand) == len(_BY_HAND):
    if not re.fullmatch(r'.+:\d+', flags['server_addr']):
      raise UserError(f'--server_addr={flags["server_addr"]}: expected HOST:PORT')
    return
  if by_hand:
    missing = ', '.join(f'--{name}' for name in _BY_HAND if name not in flags)
    raise UserError(f'--{by_hand[0]} needs {missing} too: give all of {_ONE_PROCESS}')
  missing = [name for name in _OPEN_MPI if name not in os.environ]
  if _SLURM_JOB in os.environ:
    _join_slurm()
  elif _OPEN_MPI[0] in os.environ and missing:
    raise UserError(f'{_OPEN_MPI[0]} is set, but {", ".join(missing)} is missing: start by mpirun')
  elif not _is_detected():
    raise UserError(
      'this process is part of no cluster that jax knows (no step of Slurm or Open MPI, no TPU '
      'slice), so --jax_fully_async_checkpoint and --multiprocess_gpu cannot start: leave them '
      f'out, or name the first process: {_ONE_PROCESS}'
    )


def is_on(flags: Mapping[str, str], name: str) -> bool:
  """Returns whether a switch of paxml is on."""
  return name in flags and flags[name].lower() not in ('false', '0', 'f', 'no', 'n')


def _is_detected() -> bool:
  from laser_pax import pax_fixes

  return pax_fixes.detects_cluster()


def _join_slurm() -> None:
  job = os.environ[_SLURM_JOB]
  if missing := [name for name in _SLURM if name not in os.environ]:
    raise UserError(
      f'{_SLURM_JOB} is {job}, but {", ".join(missing)} is missing: this is no step of that job. '
      f'Start it by srun, as scripts/slurm_gpu.sh does; or unset {_SLURM_JOB}, and name the first '
      f'process: {_ONE_PROCESS}'
    )
  for name in _SLURM:
    if name != _SLURM_NODES and not re.fullmatch(r'\d+', os.environ[name]):
      raise UserError(f'{name} is {os.environ[name]!r}, which is no number: start this by srun')
  if 'JAX_COORDINATOR_ADDRESS' not in os.environ:
    port = 61_440 + int(job) % 4096  # Ports that are free, as jax chooses them.
    os.environ['JAX_COORDINATOR_ADDRESS'] = f'{_first_host(os.environ[_SLURM_NODES])}:{port}'


def _first_host(nodes: str) -> str:
  """Returns the first host of a list such as `rack1[1-2]n[03-04],other`."""
  if '[' not in nodes:
    return nodes.split(',')[0]
  if shutil.which('scontrol'):
    shown = subprocess.run(
      ['scontrol', 'show', 'hostnames', nodes], capture_output=True, text=True, check=False
    )
    if shown.returncode == 0 and shown.stdout.split():
      return shown.stdout.split()[0]
  # Each bracket's first number, up to the first comma outside of brackets.
  match = re.match(r'(?:[^,\[]|\[\w[^\]]*\])+', nodes)
  if match is None:
    raise UserError(f'{_SLURM_NODES} is {nodes!r}, which is no list of hosts: start this by srun')
  first = match[0]
  return re.sub(r'\[(\w+)[^\]]*\]', r'\1', first)
