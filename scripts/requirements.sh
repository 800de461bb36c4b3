#!/usr/bin/env bash
# Writes the requirements files from pyproject.toml, resolved afresh. Run it after changing a
# dependency, and review the differences. It needs a package index.
#   scripts/requirements.sh [pinned|current|arm]   (pinned, the default, writes the five files of the
#   pinned jax; the others write one file each, requirements-current.txt or requirements-arm.txt)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

set=${1:-pinned}
if [[ ! $set =~ ^(pinned|current|arm)$ ]]; then
  echo "error: expected pinned, current or arm, got '$set'" >&2
  exit 1
fi
uv=uv
if [[ -x .venv/bin/uv ]]; then uv=.venv/bin/uv; fi
if ! command -v "$uv" >/dev/null; then
  echo 'error: uv was not found; run scripts/setup.sh first, it installs uv into .venv' >&2
  exit 1
fi

# One resolution serves all files of a set, so that they agree. The lock names download addresses, so
# it stays out of the repository.
# PAX has a bound on Python. The project has none, because its mathematics needs jax alone.
lock=$(mktemp -d)
trap 'rm -rf "$lock"' EXIT
sed 's/^requires-python = .*/requires-python = ">=3.11,<3.14"/' pyproject.toml >"$lock/pyproject.toml"
cp README.md "$lock"
export UV_PYTHON_DOWNLOADS=never

override() {  # Puts the overrides of a set in the place of their namesakes.
  "$uv" run --quiet --no-project --python '>=3.11' python - "$lock/pyproject.toml" "$set" <<'EOF'
import json, pathlib, re, sys, tomllib

file = pathlib.Path(sys.argv[1])
text = file.read_text()
tool = tomllib.loads(text)['tool']
name = lambda requirement: re.match(r'[\w-]+', requirement).group()
ours = tool['laser_pax'][f'{sys.argv[2]}-override-dependencies']
names = {name(requirement) for requirement in ours}
kept = [r for r in tool['uv']['override-dependencies'] if name(r) not in names]
overrides = f'\noverride-dependencies = {json.dumps(kept + ours)}\n'
text = re.sub(r'\noverride-dependencies = \[.*?\n\]\n', lambda _: overrides, text, flags=re.S)
if sys.argv[2] == 'arm':
  machines = [
    "sys_platform == 'linux' and platform_machine == 'aarch64'",
    "sys_platform == 'darwin' and platform_machine == 'arm64'",
  ]
  text = re.sub(r'\nenvironments = .*', lambda _: f'\nenvironments = {json.dumps(machines)}', text)
  text = re.sub(r'\n(tpu|cuda) = .*', '', text)  # Neither libtpu nor the plugin is for both.
file.write_text(text)
EOF
}
if [[ $set != pinned ]]; then override; fi
"$uv" lock --quiet --upgrade --directory "$lock"

export_to() {  # export_to FILE WHAT [uv export option...]
  local file=$1 what=$2
  shift 2
  {
    echo "# For $what. Install with --no-deps: paxml's own pins cannot be met (docs/environment.md)."
    echo '# Written by scripts/requirements.sh from pyproject.toml; do not edit.'
    "$uv" export --quiet --frozen --directory "$lock" --format requirements.txt --no-header \
      --no-annotate --no-emit-project --extra pax "$@"
  } >"$file.new"
  mv "$file.new" "$file"
  echo "wrote $file"
}

case $set in
  current)
    export_to requirements-current.txt "development on a CPU with today's jax" --group dev
    exit
    ;;
  arm)
    export_to requirements-arm.txt 'the CPU of Linux on Arm and of Apple silicon' --no-dev
    exit
    ;;
esac
export_to requirements.txt 'a CPU' --no-dev
export_to requirements-tpu.txt 'a TPU VM, and nothing else' --no-dev --extra tpu
export_to requirements-gpu.txt 'a machine with an NVIDIA GPU and CUDA 12' --no-dev --extra cuda
export_to requirements-eval.txt 'evaluation by lm_eval' --no-dev --group eval
export_to requirements-dev.txt 'development on a CPU' --group dev
