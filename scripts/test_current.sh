#!/usr/bin/env bash
# Runs on the set "current", today's jax in .venv-current: the names that PAX needs, and a training that
# is killed and goes on, twice, from one set to the other and back. docs/environment.md says what else
# was run. It makes both environments. scripts/test.sh calls it. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[[ -x .venv/bin/python ]] || scripts/setup.sh dev
scripts/setup.sh current
export LASER_PAX_PINNED_PYTHON=$PWD/.venv/bin/python
export LASER_PAX_CURRENT_PYTHON=$PWD/.venv-current/bin/python
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
"$LASER_PAX_CURRENT_PYTHON" -m pytest -q --numprocesses 2 --dist loadfile \
  tests/test_both_sets.py tests/test_pax_names.py "$@"
