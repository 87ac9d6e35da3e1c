#!/usr/bin/env bash
# Prepares a Python environment for the toolkit: tools/venv, with the versions of tools/constraints.txt. Does nothing
# where an environment that can import moe_asr is active, or where tools/venv is up to date. May be interrupted and run
# again at any time: an environment counts only with its stamp, which is written last. With an argument such as
# `mini,k2` it installs these extras of setup.py rather than the usual ones. PYTHON=... names the Python to build on.
#
# Messages go to stderr. Into a pipe it prints the bin folder of tools/venv, or nothing if the active one serves.

set -euo pipefail
cd "$(dirname "$0")"
extras=${1:-mini,whisper,mandarin,dev}

say() { echo "setup: $*" >&2; }

locate='import importlib.util as u, sys; m = u.find_spec("moe_asr"); t = u.find_spec("torch")
m and t and print(sys.prefix, "with moe_asr from", m.submodule_search_locations[0])'
active=$(cd / && python3 -c "$locate" 2>/dev/null || :) # in /: an unpacked moe_asr is no installed one
venv=$PWD/venv
if [ -n "$active" ] && [ "${active%% with moe_asr *}" != "$venv" ]; then
  say "using the active environment, $active"
  exit 0
fi

find_python() {
  local name
  for name in ${PYTHON:+"$PYTHON"} python3.13 python3.12 python3.11 python3.10 python3; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  say "needs Python 3.10 or later with its venv module (on Debian and Ubuntu: apt install python3-venv)"
  exit 1
}

finish() {
  [ -t 1 ] || echo "$venv/bin"
  exit 0
}

run_logged() {
  "$@" >>setup.log 2>&1 && return
  tail -n 5 setup.log | cut -c -300 | sed 's/^/  /' >&2
  say "failed; the whole story is in $PWD/setup.log; when the cause is gone (network? disk space?), run it again"
  exit 1
}

stamp="$venv $extras $(cat ../setup.py ../pyproject.toml constraints.txt | sha256sum | cut -c -16)"
is_ready() { [ "$(cat venv/stamp 2>/dev/null)" = "$stamp" ] && venv/bin/python3 -c '' 2>/dev/null; }

if ! is_ready; then
  exec 8>setup.lock
  flock -n 8 || { say "another set-up is at work; waiting for it" && flock 8; }
fi
if is_ready; then
  say "using $venv"
  finish
fi

python=$(find_python)
trap 'say "interrupted; run it again to finish"; exit 130' INT TERM
say "building $venv with $("$python" --version) (some minutes; log: tools/setup.log)"
rm -rf venv setup.log
run_logged "$python" -m venv venv
run_logged venv/bin/python3 -m pip install --constraint constraints.txt torch setuptools
say "torch is installed; now the toolkit with [$extras]"
run_logged venv/bin/python3 -m pip install --constraint constraints.txt --no-build-isolation --editable "..[$extras]"
echo "$stamp" >venv/stamp
say "done in $SECONDS s"
finish
