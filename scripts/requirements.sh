#!/usr/bin/env bash
# Writes the five requirements files from pyproject.toml, resolved afresh. Run it after changing a
# dependency, and review the differences. It needs a package index. Usage: scripts/requirements.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv=uv
if [[ -x .venv/bin/uv ]]; then uv=.venv/bin/uv; fi
if ! command -v "$uv" >/dev/null; then
  echo 'error: uv was not found; run scripts/setup.sh first, it installs uv into .venv' >&2
  exit 1
fi

# One resolution serves all five files, so that they agree. The lock names download addresses, so it
# stays out of the repository.
# PAX has a bound on Python. The project has none, because its mathematics needs jax alone.
lock=$(mktemp -d)
trap 'rm -rf "$lock"' EXIT
sed 's/^requires-python = .*/requires-python = ">=3.11,<3.14"/' pyproject.toml >"$lock/pyproject.toml"
cp README.md "$lock"
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

export_to requirements.txt 'a CPU' --no-dev
export_to requirements-tpu.txt 'a TPU VM, and nothing else' --no-dev --extra tpu
export_to requirements-gpu.txt 'a machine with an NVIDIA GPU and CUDA 12' --no-dev --extra cuda
export_to requirements-eval.txt 'evaluation by lm_eval' --no-dev --group eval
export_to requirements-dev.txt 'development on a CPU' --group dev
