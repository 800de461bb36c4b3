"""Environments and flags of clusters that are half there are refused before jax looks at them."""

import os

import pytest

from laser_pax.cli import cluster
from laser_pax.errors import UserError

SLURM = {
  'SLURM_JOB_ID': '7',
  'SLURM_STEP_NODELIST': 'node[03-04]',
  'SLURM_NTASKS': '2',
  'SLURM_PROCID': '0',
  'SLURM_LOCALID': '0',
}
ASYNC = {'jax_fully_async_checkpoint': 'true'}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
  for name in [*os.environ]:
    if name.startswith(('SLURM_', 'OMPI_', 'KUBERNETES_', 'JAX_COORDINATOR', 'TPU_')):
      monkeypatch.delenv(name)


def enter(monkeypatch, **variables):
  for name, value in variables.items():
    monkeypatch.setenv(name, value)


@pytest.mark.parametrize('missing', [name for name in SLURM if name != 'SLURM_JOB_ID'])
@pytest.mark.parametrize('flags', [ASYNC, {'multiprocess_gpu': 'true'}])
def test_a_shell_of_a_slurm_job_is_no_step(monkeypatch, missing, flags):
  enter(monkeypatch, **{k: v for k, v in SLURM.items() if k != missing})
  with pytest.raises(UserError, match=f'{missing} is missing.*srun'):
    cluster.join(flags)


@pytest.mark.parametrize('name', ['SLURM_JOB_ID', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID'])
def test_numbers_of_slurm_are_numbers(monkeypatch, name):
  enter(monkeypatch, **SLURM | {name: 'x'})
  with pytest.raises(UserError, match=f"{name} is 'x'"):
    cluster.join(ASYNC)


@pytest.mark.parametrize(
  ('nodes', 'first'),
  [
    ('node001', 'node001'),
    ('a,b', 'a'),
    ('node[001-0015],other', 'node001'),
    ('rack1[1-2]n[03-04]', 'rack11n03'),
    ('rack1[1-2]n[03,07-09],other', 'rack11n03'),
  ],
)
def test_the_first_host_of_slurm_is_named_to_jax(monkeypatch, tmp_path, nodes, first):
  enter(monkeypatch, **SLURM | {'SLURM_STEP_NODELIST': nodes}, PATH=str(tmp_path))
  cluster.join(ASYNC)
  assert os.environ['JAX_COORDINATOR_ADDRESS'] == f'{first}:61447'


def test_slurm_itself_is_asked_where_it_is_there(monkeypatch, tmp_path):
  scontrol = tmp_path / 'scontrol'
  scontrol.write_text(
    '#!/bin/sh\n[ "$*" = "show hostnames x[1-2]" ] && printf "first\\nsecond\\n"\n'
  )
  scontrol.chmod(0o755)
  enter(monkeypatch, **SLURM | {'SLURM_STEP_NODELIST': 'x[1-2]'}, PATH=f'{tmp_path}:/usr/bin:/bin')
  cluster.join(ASYNC)
  assert os.environ['JAX_COORDINATOR_ADDRESS'].startswith('first:')


def test_an_address_that_the_user_set_stays(monkeypatch):
  enter(monkeypatch, **SLURM, JAX_COORDINATOR_ADDRESS='mine:1')
  cluster.join(ASYNC)
  assert os.environ['JAX_COORDINATOR_ADDRESS'] == 'mine:1'


@pytest.mark.parametrize('flags', [ASYNC, {'multiprocess_gpu': 'true'}])
def test_a_workstation_is_no_cluster(flags):
  with pytest.raises(UserError, match='part of no cluster.*--server_addr=localhost:PORT'):
    cluster.join(flags)


@pytest.mark.parametrize(
  'flags',
  [
    {},
    {'exit_after_ondemand_checkpoint': 'true', 'jax_fully_async_checkpoint': 'False'},
    ASYNC | {'server_addr': 'localhost:1', 'num_hosts': '1', 'host_idx': '0'},
  ],
)
def test_what_needs_no_cluster_passes(monkeypatch, flags):
  enter(monkeypatch, SLURM_JOB_ID='7')
  cluster.join(flags)


def test_an_address_alone_is_half_an_address():
  with pytest.raises(UserError, match='--server_addr needs --num_hosts, --host_idx'):
    cluster.join({'multiprocess_gpu': 'true', 'server_addr': 'x'})


@pytest.mark.parametrize('address', ['localhost', 'localhost:', 'localhost:x', ''])
def test_an_address_has_a_port(address):
  by_hand = {'server_addr': address, 'num_hosts': '1', 'host_idx': '0'}
  with pytest.raises(UserError, match='expected HOST:PORT'):
    cluster.join(ASYNC | by_hand)


def test_open_mpi_that_is_half_there(monkeypatch):
  enter(monkeypatch, OMPI_MCA_orte_hnp_uri='x')
  with pytest.raises(UserError, match='OMPI_COMM_WORLD_SIZE, .* is missing'):
    cluster.join(ASYNC)


@pytest.mark.parametrize('nodes', ['[', ',a[1]'])
def test_what_is_no_list_of_hosts(monkeypatch, tmp_path, nodes):
  enter(monkeypatch, **SLURM | {'SLURM_STEP_NODELIST': nodes}, PATH=str(tmp_path))
  with pytest.raises(UserError, match='no list of hosts'):
    cluster.join(ASYNC)
