#!/usr/bin/env bash
# Sets up the environment, then trains standard attention and LASER side by side on the sample of the
# package.
# Arguments go to `python -m laser_pax quickstart`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh cpu
exec .venv/bin/python -m laser_pax quickstart "$@"
