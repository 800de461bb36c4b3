#!/usr/bin/env bash
# Runs the tests of the light install on the newest jax of the index, in .venv-newest, which it makes
# and upgrades. scripts/test.sh calls it. Arguments go to pytest.
#
# The tests marked one_jax are left out. They ask for accuracy over many cases, not for anything of
# jax that differs between versions, and take most of the time. The others come from every file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "error: $*" >&2
  exit 1
}

readonly python=.venv-newest/bin/python
[[ -x .venv/bin/uv ]] || fail '.venv has no uv; run scripts/setup.sh dev first, it installs uv'
export UV_PYTHON_DOWNLOADS=never
index=$(.venv/bin/python -m pip config list | sed -n "s/^[^.]*\.index-url='\(.*\)'\$/\1/p" | head -n 1)
if [[ -n $index ]]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}; fi

if ! $python --version >/dev/null 2>&1; then
  versions=${PYENV_ROOT:-$HOME/.pyenv}/versions  # pyenv hides versions that nobody has chosen.
  for candidate in python3.13 "$versions"/3.13.*/bin/python python3.12 \
    "$versions"/3.12.*/bin/python python3.11; do  # jax 0.11 and later need 3.12.
    if "$candidate" -c '' 2>/dev/null; then break; fi
  done
  .venv/bin/uv venv --quiet --clear --python "$candidate" .venv-newest
fi
# What `pip install .` brings, without building; then what the tests and the docs' snippets need.
# Without --no-config uv would take the pins of PAX from pyproject.toml.
if ! .venv/bin/uv pip install --no-config --quiet --system-certs --upgrade --python $python \
  --requirement pyproject.toml flax hypothesis pytest pytest-xdist; then
  $python -c 'import flax, hypothesis, xdist' 2>/dev/null || fail 'no index was reached'
  echo 'no index was reached; testing the versions that .venv-newest has' >&2
fi

$python -c 'import jax, platform; print(f"jax {jax.__version__}, Python {platform.python_version()}")'
# The tests mostly compile. So programs last too, and are optimised less than for the pinned jax.
export XLA_FLAGS='--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
export JAX_COMPILATION_CACHE_DIR=$PWD/.venv-newest/compiled JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
JAX_PLATFORMS=cpu $python -m pytest -q --numprocesses 2 --dist loadfile -m 'not one_jax' \
  tests/ops tests/test_light_install.py tests/test_any_jax.py "$@"
