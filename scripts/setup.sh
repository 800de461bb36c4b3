#!/usr/bin/env bash
# Makes .venv in the repository, on a machine that has only Python 3.11 to 3.13 and pip.
#   scripts/setup.sh [cpu|tpu|gpu|eval|dev]   (the default is cpu; eval is cpu with lm_eval, dev is
#   eval with the test tools; after tpu or gpu, eval adds lm_eval to what is there)
#   scripts/setup.sh current   (experimental: what dev has, with today's jax, in .venv-current)
# It installs the hashed requirements and this package. It ends at once when nothing has changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly uv_version=0.13.9

fail() {
  echo "error: $*" >&2
  exit 1
}

usable_python() {
  "$1" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null
}

find_python() {
  local candidate candidates=(python3.11 python3.12 python3.13 python3 python)
  if [[ $kind == current ]]; then  # The newest jax needs 3.12. pyenv hides what nobody has chosen.
    local versions=${PYENV_ROOT:-$HOME/.pyenv}/versions
    candidates=(python3.12 "$versions"/3.12.*/bin/python python3.13 "$versions"/3.13.*/bin/python
      python3.11 python3 python)
  fi
  for candidate in "${candidates[@]}"; do
    if usable_python "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail 'Python 3.11, 3.12 or 3.13 with its venv module was not found' \
    "(python3 is $(python3 --version 2>&1 || true));" \
    'install one: sudo apt-get install python3.11 python3.11-venv'
}

make_venv() {
  local python
  python=$(find_python)
  mkdir -p "$made_here"
  echo "making $venv with $("$python" --version)"
  if "$python" -c 'import ensurepip' 2>/dev/null; then
    "$python" -m venv "$venv"
  elif "$python" -m pip --version >/dev/null 2>&1; then  # Debian ships ensurepip in another package.
    "$python" -m venv --without-pip "$venv"
    "$python" -m pip --python "$venv"/bin/python install --quiet pip
  else
    fail "$python has neither ensurepip nor pip; install them: sudo apt-get install python3-venv"
  fi
  touch "$installed"  # It comes last: a .venv without it is half made, and is made again.
}

pip_setting() {  # The environment's value comes first in pip's list, as it does in pip.
  "$venv"/bin/python -m pip config list | sed -n "s/^[^.]*\.$1='\(.*\)'\$/\1/p" | head -n 1
}

sha256() {
  if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi  # macOS has the other.
}

install_lingvo() {  # Its wheels say Linux on x86-64. What PAX imports of it is Python alone.
  awk '/^lingvo==/ { is_on = 1 } is_on { print; if (!/\\$/) exit }' requirements.txt \
    >"$made_here/lingvo.txt"
  "$venv"/bin/uv pip install --no-config --python "$venv"/bin/python --system-certs --no-deps \
    --python-platform x86_64-unknown-linux-gnu --require-hashes --requirement "$made_here/lingvo.txt"
}

install_requirements() {
  local index
  "$venv"/bin/python -m pip install --quiet --disable-pip-version-check "uv==$uv_version"
  index=$(pip_setting index-url)  # uv reads none of pip's settings.
  if [[ -n $index ]]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}; fi
  # Without --no-config uv would take the pinned versions from pyproject.toml, for any file.
  if ! "$venv"/bin/uv pip install --no-config --python "$venv"/bin/python --system-certs --no-deps \
    --require-hashes --requirement "$requirements"; then
    echo 'uv could not install the requirements; trying pip, which is slower' >&2
    "$venv"/bin/python -m pip install --disable-pip-version-check --no-deps --require-hashes \
      --requirement "$requirements"
  fi
  if [[ $requirements == requirements-arm.txt ]]; then install_lingvo; fi
  # Without compiled bytecode the first import of paxml takes 40 s. Where Python may not write
  # bytecode, every import does. A third is never imported. Some files are templates, not Python.
  "$venv"/bin/python -m compileall -q -j 0 -x '/(tests|transformers|tensorflow_probability)/' \
    "$venv"/lib/python3*/site-packages >/dev/null 2>&1 || true
  # The setuptools just installed builds the project itself, so no index is asked.
  "$venv"/bin/uv pip install --quiet --python "$venv"/bin/python --offline --no-deps \
    --no-build-isolation --editable .
  if [[ $kind == current ]]; then "$venv"/bin/python -m laser_pax.pax_names; fi
}

kind=${1:-cpu}
venv=.venv
case $kind in
  cpu) requirements=requirements.txt ;;
  tpu | gpu | eval | dev) requirements=requirements-$kind.txt ;;
  current) requirements=requirements-current.txt venv=.venv-current ;;
  *) fail "expected cpu, tpu, gpu, eval, dev or current, got '$kind'" ;;
esac
readonly made_here=$venv/.laser_pax      # Marks a .venv as made by this script.
readonly installed=$made_here/installed  # What was installed, one 'KEY KIND' a line.
machine="$(uname -s) $(uname -m)"
case $machine in
  'Linux x86_64') ;;
  'Linux aarch64' | 'Darwin arm64')  # Resolved, not run.
    if [[ $kind != cpu ]]; then fail "on $machine only cpu is supported, got '$kind'"; fi
    requirements="requirements-arm.txt"
    ;;
  *) fail "expected Linux on x86_64 or aarch64, or macOS on arm64, got $machine" ;;
esac
readonly kind venv requirements machine
if [[ -e $venv && ! -d $made_here ]]; then
  fail "$venv exists, but was not made by this script, which leaves it as it is;" \
    "move it away (mv $venv $venv.old) and run this again"
fi
if [[ ! -e $installed ]] || ! usable_python "$venv"/bin/python; then make_venv; fi

key=$({ "$venv"/bin/python --version; pwd; cat pyproject.toml requirements*.txt; } | sha256)
key=${key%% *}
if grep -qx "$key $kind" "$installed"; then exit 0; fi

# The lines of other keys are no longer true. They must go before anything is installed.
grep "^$key " "$installed" >"$installed.new" || true
mv "$installed.new" "$installed"
install_requirements
echo "$key $kind" >>"$installed"
echo "ready; see $venv/bin/python -m laser_pax doctor"
