#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, through Google's xpk. docs/launch.md says how to make IMAGE.
#
#   CLUSTER=... PROJECT=... ZONE=... IMAGE=... POD=v5p-256chips scripts/xpk_gke.sh NAME [--dry-run] \
#     --exp=C4Laser2B --job_log_dir=gs://... --data=gs://... --vocab=gs://... [flag of train]
#
# NAME is the workload's. A pod may end by SIGTERM after saving a checkpoint, or by another signal. Then
# the workload starts again and resumes, at most MAX_RESTARTS times.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly saved_on_demand=75  # Exit code of a run that SIGTERM ended after it saved.
readonly max_restarts=${MAX_RESTARTS:-100}
readonly grace_seconds=${GRACE_SECONDS:-300}  # From SIGTERM to SIGKILL: time to save.

fail() {
  echo "error: $*" >&2
  exit 1
}

field() { sed -n "s/^$1 *= *\"\{0,1\}\([^\"# ]*\)\"\{0,1\}.*/\1/p" "$file"; }

[[ ${1:---} != -* ]] || fail 'which name? scripts/xpk_gke.sh NAME --exp=... --job_log_dir=gs://...'
for setting in CLUSTER PROJECT ZONE IMAGE POD; do
  [[ -n ${!setting:-} ]] || fail "$setting is not set: CLUSTER PROJECT ZONE IMAGE POD are needed"
done
file=$repo/configs/pods/$POD.toml
[[ -f $file && -n $(field accelerator_type) ]] ||
  fail "POD is $POD, which is no TPU slice of $repo/configs/pods"
command -v xpk >/dev/null || fail 'xpk was not found: pip install xpk'

workload=$1 dry_run=() flags=() overrides=''
shift
while (($# > 0)); do
  case $1 in
    --dry-run) dry_run=(--dry-run) ;;
    --exp) (($# > 1)) || fail '--exp needs a name'; flags+=("--exp=$2"); shift ;;
    --fdl.*) overrides=yes; flags+=("$1") ;;
    *) flags+=("$1") ;;
  esac
  shift
done
if [[ -n $overrides ]]; then flags=("${flags[@]/#--exp=/--fdl_config=}"); fi  # As paxml wants it.
((${#flags[@]} > 0)) || fail 'which experiment? --exp=NAME --job_log_dir=gs://...'
exec xpk workload create ${dry_run[@]+"${dry_run[@]}"} --workload="$workload" \
  --cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE" --docker-image="$IMAGE" \
  --tpu-type="$(field accelerator_type)" --num-slices="$(field slices)" \
  --max-restarts="$max_restarts" --restart-on-exit-codes="$saved_on_demand" \
  --termination-grace-period-seconds="$grace_seconds" \
  --command="cd /laser_pax && exec .venv/bin/python -m laser_pax train$(printf ' %q' "${flags[@]}") \
--jax_fully_async_checkpoint --exit_after_ondemand_checkpoint"
