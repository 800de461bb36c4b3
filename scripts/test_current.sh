#!/usr/bin/env bash
# Runs on the set "current", today's jax in .venv-current, what is known to hold there: the names that
# PAX needs, a run that is killed and goes on, and a run that both sets train in turn.
# docs/environment.md says what else was run. It makes both environments. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[[ -x .venv/bin/python ]] || scripts/setup.sh dev
scripts/setup.sh current
export LASER_PAX_PINNED_PYTHON=$PWD/.venv/bin/python
export LASER_PAX_CURRENT_PYTHON=$PWD/.venv-current/bin/python
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
"$LASER_PAX_CURRENT_PYTHON" -m pytest -q --numprocesses 2 --dist loadfile \
  tests/test_pax_names.py tests/test_both_sets.py \
  tests/cli/test_resume.py::test_killed_and_run_again_gives_the_losses_of_one_run "$@"
