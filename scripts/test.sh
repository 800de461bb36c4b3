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
if (($# == 0)); then
  scripts/test_newest_jax.sh
  scripts/test_current.sh
fi
