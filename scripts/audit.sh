#!/usr/bin/env bash
# Looks up known vulnerabilities of every pin of all requirements files, by pip-audit. uv runs it in an
# environment of its own. It needs a package index, and pip-audit's vulnerability service.
#   scripts/audit.sh [pip-audit option...]
# Exit code: 0 if no pin has a known vulnerability; 1 if one has; 2 if a pin was not looked up.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv=uv
if [[ -x .venv/bin/uv ]]; then uv=.venv/bin/uv; fi
if ! command -v "$uv" >/dev/null; then
  echo 'error: uv was not found; run scripts/setup.sh first, it installs uv into .venv' >&2
  exit 2
fi
python=python3
if [[ -x .venv/bin/python ]]; then python=.venv/bin/python; fi
export UV_PYTHON_DOWNLOADS=never
settings=$("$python" -m pip config list 2>/dev/null) || settings=
index=$(sed -n "s/^[^.]*\.index-url='\(.*\)'\$/\1/p" <<<"$settings" | head -n 1)
if [[ -n $index ]]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}; fi

# pip-audit would leave out the pins of other platforms and Pythons, and refuses two versions of a
# package in one file. So the pins stand here without markers, the k-th version of each in list k.
lists=$(mktemp -d)
trap 'rm -rf "$lists"' EXIT
sed -n 's/^\([A-Za-z0-9._-]*==[^ ;\\]*\).*/\1/p' requirements*.txt | LC_ALL=C sort -u |
  awk -F== -v lists="$lists" '{ print > (lists "/" ++version[$1] ".txt") }'

for list in "$lists"/*.txt; do
  # It exits with 1 for a vulnerability and for a failure. Only the former leaves a report.
  "$uv" tool run pip-audit --disable-pip --no-deps --progress-spinner off --format json "$@" \
    --requirement "$list" --output "$list.json" >"$list.log" 2>&1 || true
  if [[ ! -s $list.json ]]; then
    echo "error: pip-audit looked nothing up: $(tail -n 1 "$list.log")" >&2
    exit 2
  fi
done

"$python" - "$lists"/*.json <<'EOF'
import json, pathlib, sys

audited, faults, skipped = 0, 0, []
for report in sys.argv[1:]:
  for pin in json.loads(pathlib.Path(report).read_text())['dependencies']:
    if 'skip_reason' in pin:
      skipped.append(pin['name'])
      continue
    audited += 1
    for fault in pin['vulns']:
      faults += 1
      known = ' '.join([fault['id'], *fault.get('aliases', [])])
      mended = ', '.join(fault.get('fix_versions', [])) or 'no version'
      print(f'{pin["name"]} {pin["version"]}: {known}; mended in {mended}')
print(f'{audited} of {audited + len(skipped)} pins looked up, {faults} known vulnerabilities')
if skipped:
  names = ', '.join(sorted(set(skipped))[:5])
  reason = 'the vulnerability service does not know them, or was not reached'
  print(f'error: {len(skipped)} pins were not looked up ({names}, ...): {reason}', file=sys.stderr)
sys.exit(1 if faults else 2 if skipped else 0)
EOF
