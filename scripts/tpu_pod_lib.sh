# shellcheck shell=bash
# The parts of scripts/tpu_pod.sh, which sources this file: settings, the slice at Google Cloud, its
# hosts, and the code on them. This file makes no decision about a job.
# shellcheck disable=SC2034,SC2154  # Each of the two files reads variables that the other sets.

readonly pods=${LASER_PAX_PODS:-$repo/configs/pods}
readonly required='NAME PROJECT ZONE POD EXPERIMENT JOB_LOG_DIR'
readonly settings="$required CAPACITY DATA_DIR VOCAB TRAIN_FLAGS CREATE_FLAGS SSH_FLAGS \
POLL_SECONDS STOP_SECONDS"
readonly worker_number="curl -sf -H Metadata-Flavor:Google \
http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number"

fail() {
  echo "error: $*" >&2
  exit 1
}

say() {
  if [[ -z $dry_run ]]; then echo "$(date +%H:%M:%S) $*"; fi
}

words() {  # words ARGUMENT...: quoted for a shell.
  local word
  for word; do
    case $word in
      '' | *[!A-Za-z0-9_./:=@%+,-]*) printf " '%s'" "${word//\'/\'\\\'\'}" ;;
      *) printf ' %s' "$word" ;;
    esac
  done
}

show() { echo "+$(words "$@")"; }

run() {
  if [[ -n $dry_run ]]; then show "$@"; else "$@"; fi
}

query() {  # query IF_DRY COMMAND...: puts the output into $reply; in a dry run that is IF_DRY.
  reply=$1
  shift
  if [[ -n $dry_run ]]; then show "$@"; else reply=$("$@" 2>"$scratch/error" </dev/null); fi
}

sha256=(sha256sum)
command -v sha256sum >/dev/null || sha256=(shasum -a 256)  # As on macOS.

hash_of() { "${sha256[@]}" | cut -c 1-12; }  # Hashes standard input.

tpus() {  # tpus RUNNER WORDS...: gives gcloud's command about TPUs to `run`, `show` or `query`.
  local runner=$1
  shift
  $runner gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE" --quiet
}

# ---- Settings.

read_settings() {
  local setting
  [[ -f $conf ]] || fail "no settings in $conf: copy scripts/tpu_pod.conf.example there and edit it"
  while read -r setting; do
    [[ " $settings " == *" $setting "* ]] ||
      fail "$conf sets $setting, which nothing reads; the settings are: $settings"
  done < <(sed -n 's/^ *\([A-Za-z_][A-Za-z_0-9]*\)+*=.*/\1/p' "$conf")
  NAME='' PROJECT='' ZONE='' POD='' CAPACITY=on-demand EXPERIMENT='' JOB_LOG_DIR='' DATA_DIR=''
  VOCAB='' POLL_SECONDS=15 STOP_SECONDS=600
  TRAIN_FLAGS=() CREATE_FLAGS=() SSH_FLAGS=()
  # shellcheck source=/dev/null
  source "$conf"
  for setting in $required; do
    [[ -n ${!setting} ]] || fail "$setting is missing in $conf; scripts/tpu_pod.conf.example has it"
  done
  for setting in $required DATA_DIR VOCAB; do
    [[ ${!setting} != *CHANGE_ME* ]] ||
      fail "$setting in $conf is still the example's, ${!setting}: set your own"
  done
  [[ $NAME =~ ^[a-z][a-z0-9-]*$ ]] ||
    fail "NAME in $conf must be of a to z, 0 to 9 and -, and begin with a letter; got $NAME"
  case $CAPACITY in
    on-demand) capacity=() ;;
    spot | reserved) capacity=("--$CAPACITY") ;;
    *) fail "CAPACITY in $conf must be on-demand, spot or reserved; got $CAPACITY" ;;
  esac
  for setting in POLL_SECONDS STOP_SECONDS; do
    [[ ${!setting} =~ ^[1-9][0-9]*$ ]] || fail "$setting in $conf must be a number of seconds, 1 or more"
  done
  read_pod
}

field() {  # field FILE NAME: prints a value of a TOML file of plain lines.
  sed -n "s/^$2 *= *\"\{0,1\}\([^\"#]*[^\"# ]\)\"\{0,1\} *\(#.*\)\{0,1\}\$/\1/p" "$1"
}

read_pod() {
  local file=$pods/$POD.toml near chip wanted
  if [[ ! -f $file ]]; then
    near=$(cd "$pods" && { grep -l "^accelerator_type *= *\"$POD\"" -- *.toml ||
      ls -- "${POD%%-*}"*.toml || ls -- *.toml; } 2>/dev/null)
    near=${near//.toml/}
    fail "POD in $conf is $POD, which is not in $pods; near it: ${near//$'\n'/, }"
  fi
  chip=$pods/chips/$(field "$file" chip).toml
  slices=$(field "$file" slices)
  hosts=$(field "$file" hosts)
  accelerator_type=$(field "$file" accelerator_type)
  runtime_version=$(field "$chip" runtime_version)
  for wanted in slices hosts accelerator_type runtime_version; do
    [[ -n ${!wanted} ]] || fail "$file (or $chip) has no $wanted: it is no TPU slice"
  done
  nodes=$NAME
  if ((slices > 1)); then
    nodes=$(seq -f "$NAME-%g" 0 $((slices - 1)) | tr '\n' ' ')
  fi
}

# ---- The slice.

look() {  # Sets state to absent, waiting, ready, gone or unknown, and detail to Google's own words.
  local node
  state=ready detail=ready
  if ! tpus "query ACTIVE" queued-resources describe "$NAME" --format='value(state.state)'; then
    detail=$(tail -n 1 "$scratch/error") state=unknown
    if grep -q NOT_FOUND "$scratch/error"; then state=absent; fi
    return
  fi
  detail="$NAME is $reply"
  case $reply in
    ACTIVE) ;;
    SUSPENDING | SUSPENDED | FAILED) state=gone && return ;;
    *) state=waiting && return ;;
  esac
  for node in $nodes; do
    if ! tpus "query READY" tpu-vm describe "$node" --format='value(state)'; then
      if ! grep -q NOT_FOUND "$scratch/error"; then
        detail=$(tail -n 1 "$scratch/error") state=unknown
        return
      fi
      reply=DELETED
    fi
    case $reply in
      READY) ;;
      PREEMPTED | TERMINATED | STOPPING | STOPPED | DELETING | DELETED | HIDING | HIDDEN)
        detail="$node is $reply" state=gone
        return
        ;;
      *) detail="$node is $reply" state=waiting ;;
    esac
  done
}

need_ready() {  # Fails unless the slice can be used.
  look
  case $state in
    ready) ;;
    absent) fail "there is no slice $NAME: make it with scripts/tpu_pod.sh create" ;;
    waiting) fail "$detail, not ready: wait with scripts/tpu_pod.sh create" ;;
    gone) fail "$detail: scripts/tpu_pod.sh train makes it anew and resumes the job" ;;
    *) fail "gcloud could not tell about $NAME: $detail" ;;
  esac
}

wait_ready() {
  local told='' absent=0
  while look && [[ $state != ready ]]; do
    if [[ $state == absent ]] && ((++absent > 3)); then
      fail "$NAME is not there: what was queued is gone; ask anew with scripts/tpu_pod.sh create"
    fi
    [[ $state != gone ]] || fail "$detail; see: gcloud compute tpus queued-resources describe $NAME"
    if [[ $detail != "$told" ]]; then say "$detail; waiting (Ctrl-C is safe, it stays queued)"; fi
    told=$detail
    sleep "$POLL_SECONDS"
  done
  say "$NAME is ready: $slices slice(s) $accelerator_type, $hosts hosts"
}

make_slice() {
  local -a which=(--node-id="$NAME")
  if ((slices > 1)); then which=(--node-count="$slices" --node-prefix="$NAME"); fi
  tpus run queued-resources create "$NAME" --accelerator-type="$accelerator_type" \
    --runtime-version="$runtime_version" "${which[@]}" ${capacity[@]+"${capacity[@]}"} \
    ${CREATE_FLAGS[@]+"${CREATE_FLAGS[@]}"}
  wait_ready
}

remove_slice() { tpus run queued-resources delete "$NAME" --force; }

# ---- The hosts.

# on_hosts NODES WORKERS COMMAND: runs a shell's command on hosts of all these slices at once. Hosts
# answer with lines of tabs that begin with `laser_pax`. They go to $scratch/answers as NODE, WORKER,
# fields. It fails if a host does not answer; $silent then names the host, and has gcloud's message.
on_hosts() {
  local node expected=1 job
  local -a jobs=()
  : >"$scratch/answers"
  for node in $1; do
    if [[ -n $dry_run ]]; then
      tpus show tpu-vm ssh "$node" --worker="$2" --command="$3" ${SSH_FLAGS[@]+"${SSH_FLAGS[@]}"}
      continue
    fi
    tpus run tpu-vm ssh "$node" --worker="$2" --command="$3" ${SSH_FLAGS[@]+"${SSH_FLAGS[@]}"} \
      >"$scratch/$node.out" 2>"$scratch/$node.err" </dev/null &
    jobs+=($!)
  done
  for job in ${jobs[@]+"${jobs[@]}"}; do wait "$job" || true; done
  [[ -z $dry_run ]] || return 0
  if [[ $2 == all ]]; then expected=$((hosts / slices)); fi
  silent=
  for node in $1; do
    awk -F'\t' -v OFS='\t' -v node="$node" '$1 == "laser_pax" { $1 = node; print }' \
      "$scratch/$node.out" | sort -t "$(printf '\t')" -k2,2n >"$scratch/$node.answers"
    cat "$scratch/$node.answers" >>"$scratch/answers"
    if (($(wc -l <"$scratch/$node.answers") < expected)) && [[ -z $silent ]]; then
      silent="$node worker $(missing_worker "$node" "$2" "$expected"): $(
        grep -v '^$' "$scratch/$node.err" | tail -n 1)"
    fi
  done
  [[ -z $silent ]]
}

missing_worker() {  # missing_worker NODE WORKERS EXPECTED: prints the first that did not answer.
  local worker
  if [[ $2 != all ]]; then echo "$2" && return; fi
  for ((worker = 0; worker < $3; worker++)); do
    if ! cut -f 2 "$scratch/$1.answers" | grep -qx "$worker"; then echo "$worker" && return; fi
  done
}

host_command() {  # host_command WORDS...: prints a shell's command that runs laser_pax.cli.host.
  printf '%s' "cd laser_pax && .venv/bin/python -m laser_pax.cli.host" \
    " --worker=\"\$($worker_number)\" --job=$NAME$(words "$@")"
}

ask_hosts() { on_hosts "$nodes" all "$(host_command "$@")"; }

states() { cut -f 3 "$scratch/answers"; }

# ---- Setup.

list_files() {  # Prints the checkout's files, each ended by a zero byte, without settings.
  local file
  { git -C "$repo" ls-files -z --cached -- . ':!*.conf'
    git -C "$repo" ls-files -z --others --exclude-standard -- '*.py' '*.toml' '*.sh'; } |
    while IFS= read -r -d '' file; do
      if [[ -f $repo/$file ]]; then printf '%s\0' "$file"; fi
    done
}

write_manifest() {
  git -C "$repo" rev-parse --git-dir >/dev/null 2>&1 ||
    fail "$repo is no git checkout, so what belongs to it is not known: git clone it"
  (cd "$repo" && list_files | xargs -0 "${sha256[@]}") | LC_ALL=C sort -k 2 >"$scratch/.manifest"
  code=$(hash_of <"$scratch/.manifest")
}

setup() {
  local node install
  need_ready
  ask_hosts status || true
  if states | grep -qx running; then
    fail "$NAME runs a job, under which no code can be changed: scripts/tpu_pod.sh stop"
  fi
  write_manifest
  list_files | tar -czf "$scratch/laser_pax.tgz" -C "$repo" --null -T - -C "$scratch" .manifest
  for node in $nodes; do
    tpus run tpu-vm scp "$scratch/laser_pax.tgz" "$node:laser_pax.tgz" --worker=all \
      ${SSH_FLAGS[@]+"${SSH_FLAGS[@]}"}
  done
  # Google's images have Python 3.10. Files of an earlier setup are removed first.
  install="set -e
    command -v python3.11 || command -v python3.12 || command -v python3.13 ||
      { sudo apt-get -q update && sudo apt-get -q install -y python3.11 python3.11-venv; }
    mkdir -p laser_pax && cd laser_pax
    if [ -f .manifest ]; then cut -c 67- .manifest | tr '\\n' '\\0' | xargs -0 rm -f; fi
    tar -xzf ../laser_pax.tgz
    scripts/setup.sh tpu
    printf 'laser_pax\\t%s\\tok\\n' \"\$($worker_number)\""
  say "installing on $hosts hosts; a first time takes minutes"
  on_hosts "$nodes" all "$install" || fail "setup did not end well on $silent"
  say "code $code is on every host"
}
