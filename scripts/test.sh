#!/usr/bin/env bash
# Sets up the development environment, then runs the linter and the tests. Arguments go to pytest.
# Without arguments it also runs some tests on the newest jax, and PAX on today's jax.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh dev
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# Each of two processes takes whole files, so shared fixtures, such as a training run, are made once.
.venv/bin/python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
if (($# > 0)); then exit; fi

# Each of these two has work for little more than one core, so they run side by side.
output=$(mktemp)
scripts/test_current.sh >"$output" 2>&1 &
readonly output current=$!
trap 'kill "$current" 2>/dev/null || true; rm -f "$output"' EXIT
newest_code=0 current_code=0
scripts/test_newest_jax.sh || newest_code=$?
wait "$current" || current_code=$?
tail -n 40 "$output"
exit "$((newest_code || current_code))"
