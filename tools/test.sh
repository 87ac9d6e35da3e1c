#!/usr/bin/env bash
# Runs all tests, or those that the arguments (pytest's) choose; lists what was skipped and why.

set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bin=$("$root/tools/setup.sh")
export PATH=${bin:+$bin:}$PATH OMP_NUM_THREADS=1
cd "$root"
python3 -c 'import pytest, xdist' || { echo "test: the active environment lacks the [dev] extra" >&2 && exit 1; }
exec python3 -m pytest -q -n 2 --dist worksteal -rfEs "$@"
