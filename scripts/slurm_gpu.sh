#!/usr/bin/env bash
# Trains on the GPUs of one node or more under Slurm. Call it in the repository, after
# scripts/setup.sh gpu:
#
#   sbatch [--nodes=N --partition=... --account=...] scripts/slurm_gpu.sh \
#     --exp=C4Laser300M --job_log_dir=DIR [--data=... --vocab=... and more flags of laser_pax train]
#
# All nodes must share the storage of the checkout and of DIR. Before the time limit, and where Slurm
# preempts it, the job saves a checkpoint, goes back into the queue and resumes there.
#
#SBATCH --job-name=laser_pax
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -euo pipefail

readonly saved_on_demand=75  # Exit code of a run that SIGTERM ended after it saved.

fail() {
  echo "error: $*" >&2
  exit 1
}

[[ -n ${SLURM_JOB_ID:-} ]] || fail 'this runs under Slurm: sbatch scripts/slurm_gpu.sh --exp=...'
(($# > 0)) || fail 'which experiment? sbatch scripts/slurm_gpu.sh --exp=NAME --job_log_dir=DIR'
cd "$SLURM_SUBMIT_DIR"  # Slurm runs a copy of this file, so it is not where the repository is.
[[ -x .venv/bin/python && -d laser_pax ]] ||
  fail "$PWD has no .venv: submit from the repository, after scripts/setup.sh gpu"

# scancel sends SIGTERM to this shell too. Then the job must not go back into the queue.
trap 'cancelled=yes' TERM
cancelled='' code=0
# There is one task a GPU. jax takes the tasks' numbers and the first node's address from Slurm's
# variables. When a task ends, Slurm must not kill the others, which may still be saving. When a task
# is lost, jax ends the others within a minute.
srun --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}" .venv/bin/python -m laser_pax train "$@" \
  --multiprocess_gpu --jax_fully_async_checkpoint --exit_after_ondemand_checkpoint || code=$?
if [[ $code == "$saved_on_demand" && -z $cancelled ]]; then
  echo 'a checkpoint was saved: back into the queue'
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
