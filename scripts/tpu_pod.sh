#!/usr/bin/env bash
# Runs a training job on a TPU slice, or on several. The settings are in tpu_pod.conf; copy it from
# scripts/tpu_pod.conf.example. docs/launch.md describes the whole life of a job.
#
#   scripts/tpu_pod.sh create           asks Google Cloud for the slice and waits until it is there
#   scripts/tpu_pod.sh setup            brings this checkout to every host and installs it there
#   scripts/tpu_pod.sh train            checks the hosts, starts or resumes the job, and follows it
#   scripts/tpu_pod.sh status           states of the slice and of each host's process
#   scripts/tpu_pod.sh logs [W [S]]     the end of the output of worker W of slice S; both are 0 by default
#   scripts/tpu_pod.sh stop             saves a checkpoint and ends the job
#   scripts/tpu_pod.sh delete           gives the slice back; data and checkpoints stay
#
# Options: --dry-run prints the commands and runs none; --conf=FILE names other settings.
# It needs bash, git, tar and gcloud; no Python.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly repo
readonly commands='create setup train status logs stop delete'
readonly failures_before_a_word=3  # Only after so many failures in a row it says that hosts are silent.
readonly restart_seconds=600       # For so long a silent host may be restarting.
# shellcheck source=scripts/tpu_pod_lib.sh
source "$repo/scripts/tpu_pod_lib.sh"

# ---- Training.

set_command() {
  local how=--exp flag
  for flag in ${TRAIN_FLAGS[@]+"${TRAIN_FLAGS[@]}"}; do
    if [[ $flag == --fdl.* ]]; then how=--fdl_config; fi
  done
  command=(.venv/bin/python -m laser_pax train "$how=$EXPERIMENT" "--job_log_dir=$JOB_LOG_DIR"
    --jax_fully_async_checkpoint --exit_after_ondemand_checkpoint)
  if [[ -n $DATA_DIR ]]; then command+=("--data=$DATA_DIR"); fi
  if [[ -n $VOCAB ]]; then command+=("--vocab=$VOCAB"); fi
  command+=(${TRAIN_FLAGS[@]+"${TRAIN_FLAGS[@]}"})
}

check_hosts() {  # Prints what each host found; ends here, with the first error, if there is one.
  local wrong
  write_manifest
  ask_hosts check --code="$code" --pod="$POD" --data="$DATA_DIR" --vocab="$VOCAB" \
    --job_log_dir="$JOB_LOG_DIR" || fail "no answer from $silent; was scripts/tpu_pod.sh setup run?"
  [[ -z $dry_run ]] || return 0
  awk -F'\t' '
    BEGIN { row = "%-24s %-13s %-26s %-9s %-16s %s\n"
            printf row, "host", "code", "versions", "chips", "data", "job folder" }
    { for (i = 3; i <= NF; i++) if ($i ~ /^wrong: /) $i = "WRONG"; else sub(/^ok: /, "", $i)
      printf row, $1 " worker " $2, $3, $4, $5, $6, $7 }' "$scratch/answers"
  wrong=$(awk -F'\t' '
    { for (i = 3; i <= NF; i++) if ($i ~ /^wrong: / && ++n == 1) {
        sub(/^wrong: /, "", $i); print $1 " worker " $2 ": " $i } }
    END { if (n > 1) print " (and " n - 1 " more, above)" }' "$scratch/answers" | tr -d '\n')
  [[ -z $wrong ]] || fail "$wrong"
}

start_job() {
  local start
  check_hosts
  [[ -z $started || $started == "$code" ]] ||
    say "note: this checkout has changed since the job was started here: then $started, now $code"
  started=$code
  start=$(date -u +%Y%m%d-%H%M%S)
  say "starting $EXPERIMENT on $hosts hosts, start $start; everything is in $JOB_LOG_DIR"
  on_hosts "${nodes%% *}" 0 "$(host_command announce --start="$start" --job_log_dir="$JOB_LOG_DIR" \
    --text="$NAME, $POD, code $code:$(words "${command[@]}")")" || fail "no answer from $silent"
  fail_if_refused
  ask_hosts start --start="$start" --job_log_dir="$JOB_LOG_DIR" -- "${command[@]}" ||
    fail_and_kill "no answer from $silent"
  fail_if_refused
}

fail_if_refused() {  # Ends here, with the first host's error, if one refused.
  local refusal
  refusal=$(awk -F'\t' '$3 == "error" { print $1 " worker " $2 ": " $4; exit }' "$scratch/answers")
  [[ -z $refusal ]] || fail_and_kill "$refusal"
}

fail_and_kill() {  # Without one process the others could only wait for it.
  ask_hosts kill || true
  fail "$@"
}

judge() {  # Sets verdict to the state of the whole job, and blame to the line of the host that decides.
  # A job has failed if one process has. The first process to end took the others along, unless a
  # machine that restarts did.
  verdict=lost
  blame=$(awk -F'\t' '$3 == "lost" { print; exit }' "$scratch/answers")
  [[ -z $blame ]] || return 0
  blame=$(awk -F'\t' '$3 == "failed"' "$scratch/answers" | sort -t "$(printf '\t')" -k5,5n | head -n 1)
  verdict=failed
  [[ -z $blame ]] || return 0
  for verdict in none running stopped saved 'done'; do
    blame=$(awk -F'\t' -v state="$verdict" '$3 == state { print; exit }' "$scratch/answers")
    [[ -z $blame ]] || return 0
  done
}

follow() {  # Waits until the job ends. Sets verdict: `gone` if the slice went away under the job.
  local failures=0 told='' line
  if [[ -n $dry_run ]]; then
    ask_hosts status
    verdict='done' blame=''
    return
  fi
  while :; do
    if ask_hosts status; then
      failures=0
      judge
      [[ $verdict == running ]] || return 0
      line=$(head -n 1 "$scratch/answers" | cut -f 8)
      if [[ $line != "$told" ]]; then say "$line"; fi
      told=$line
    else
      look
      if [[ $state == gone || $state == absent ]]; then verdict=gone && return; fi
      judge
      if [[ $verdict == failed ]] && ((failures * POLL_SECONDS >= restart_seconds)); then return; fi
      if ((++failures == failures_before_a_word)); then
        say "out of reach for now: $silent; $detail. The job goes on without this command"
      fi
    fi
    sleep "$POLL_SECONDS"
  done
}

tell_failure() {
  local node worker code start last how
  IFS=$'\t' read -r node worker _ code _ start _ last <<<"$blame"
  how="exit code $code"
  if ((code > 128 && code < 160)); then how="SIG$(kill -l $((code - 128)))"; fi
  if ((slices > 1)); then worker+=" ${node##*-}"; fi
  fail_and_kill "$node worker ${worker% *} ended with $how, so the others were ended too. It said: $last." \
    "More: scripts/tpu_pod.sh logs $worker (~/laser_pax_jobs/$NAME/$start/console.log there)." \
    'The same command resumes from the last checkpoint'
}

train() {
  set_command
  look
  if [[ $state == gone ]]; then renew; else need_ready; fi
  while :; do
    attach || start_job
    follow
    case $verdict in
      done) say "done: $(cut -f 8 <<<"$blame")" && return ;;
      stopped) say 'stopped, as asked; the same command resumes' && return ;;
      failed)
        look
        if [[ $state == gone ]]; then renew; else tell_failure; fi
        ;;
      gone) renew ;;
      *) # A signal that no user sent, or a host that restarted: maintenance or preemption begins.
        ask_hosts kill || true
        say "the hosts were told to end, or restarted ($verdict); resuming"
        look
        if [[ $state == gone || $state == absent ]]; then renew; else wait_ready; fi
        ;;
    esac
  done
}

attach() {  # Succeeds if this job already runs on the hosts.
  local wanted
  [[ -z $dry_run ]] || return 1
  ask_hosts status || return 1  # Perhaps nothing is set up; the checks will say.
  states | grep -qx running || return 1
  wanted=$(printf '%s\n' "${command[@]}" | hash_of)
  if awk -F'\t' -v wanted="$wanted" '$3 == "running" && $7 != wanted { found = 1 }
      END { exit !found }' "$scratch/answers"; then
    fail "$NAME runs a job of other settings than $conf: follow it with those, or" \
      'scripts/tpu_pod.sh stop'
  fi
  say "following the job that runs, start $(head -n 1 "$scratch/answers" | cut -f 6)"
}

renew() {
  say "$detail: making the slice anew"
  if [[ $state != absent ]]; then remove_slice; fi
  make_slice
  setup
}

# ---- The other commands.

create() {
  look
  case $state in
    absent) make_slice ;;
    gone) need_ready ;;
    unknown) fail "gcloud could not tell about $NAME: $detail" ;;
    *) wait_ready ;;
  esac
}

status() {
  look
  echo "$detail"
  [[ $state == ready ]] || return 0
  ask_hosts status || say "no answer from $silent"
  awk -F'\t' 'BEGIN { row = "%-24s %-8s %-5s %-16s %s\n"
                      printf row, "host", "state", "exit", "start", "last line" }
    { printf row, $1 " worker " $2, $3, $5 ? $4 : "-", $6, $8 }' "$scratch/answers"
}

logs() {
  local node=$NAME
  if ((slices > 1)); then node=$NAME-$slice; fi
  need_ready
  tpus run tpu-vm ssh "$node" --worker="$worker" --command="$(host_command log)" \
    ${SSH_FLAGS[@]+"${SSH_FLAGS[@]}"}
}

stop() {
  local waited=0
  need_ready
  ask_hosts stop || fail "no answer from $silent"
  [[ -z $dry_run ]] || return 0
  until ask_hosts status && ! states | grep -qx running; do
    if ((waited >= STOP_SECONDS)); then
      ask_hosts kill || true
      say "not ended within $STOP_SECONDS s, so killed; the last checkpoint is as it was"
      break
    fi
    sleep "$POLL_SECONDS"
    waited=$((waited + POLL_SECONDS))
  done
  status
}

delete() {
  look
  case $state in
    absent) say "there is no slice $NAME" && return ;;
    unknown) fail "gcloud could not tell about $NAME: $detail" ;;
    ready)
      ask_hosts status || true
      if states | grep -qx running; then
        fail "$NAME runs a job: scripts/tpu_pod.sh stop first, which saves a checkpoint"
      fi
      ;;
  esac
  remove_slice
  say "$NAME is deleted; $JOB_LOG_DIR stays"
}

# ---- The command line.

conf=$repo/tpu_pod.conf dry_run='' called='' started='' worker=0 slice=0 numbers=()
for argument; do
  case $argument in
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}" && exit ;;
    --dry-run) dry_run=yes ;;
    --conf=*) conf=${argument#--conf=} ;;
    [0-9]*) numbers+=("$argument") ;;
    *)
      [[ -z $called ]] || fail "unexpected $argument after $called; see scripts/tpu_pod.sh --help"
      called=$argument
      ;;
  esac
done
[[ -n $called ]] || fail "which command? $commands; see scripts/tpu_pod.sh --help"
[[ " $commands " == *" $called "* ]] || fail "unknown command $called; the commands are: $commands"
if ((${#numbers[@]} > 0)); then
  [[ $called == logs ]] || fail "$called takes no numbers; see scripts/tpu_pod.sh --help"
  worker=${numbers[0]} slice=${numbers[1]:-0}
fi
read_settings
command -v gcloud >/dev/null ||
  fail 'gcloud was not found: install the Google Cloud CLI, then gcloud auth login'
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# A command that handles Ctrl-C itself would else hide it from this script, which would go on.
trap 'exit 130' INT
"$called"
