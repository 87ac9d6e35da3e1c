#!/usr/bin/env bash
# Installs k2's own wheel for the torch, CUDA and Python of the environment that tools/setup.sh finds, if there is one;
# otherwise says how to build k2. Does nothing where k2 can be imported. May be interrupted and run again at any time.
# K2_WHEELS=... names another place for the lists of wheels, cpu.html and cuda.html.

set -euo pipefail
bin=$("$(dirname "$0")/setup.sh")
export PATH=${bin:+$bin:}$PATH K2_WHEELS=${K2_WHEELS:-https://k2-fsa.github.io/k2}

say() { echo "install_k2: $*" >&2; }

if python3 -c 'import k2' 2>/dev/null; then # which refuses another torch than the one it was built for
  say "k2 is installed"
  exit 0
fi

# k2-1.24.4.dev20250807+cuda12.8.torch2.8.0-cp311-cp311-manylinux_2_28_x86_64.whl: one for each torch, CUDA and Python
found=$(
  python3 - <<'END'
import os, platform, re, sys, urllib.request
from urllib.parse import unquote, urljoin

import torch

flavour = f"cuda{torch.version.cuda}" if torch.version.cuda else "cpu"
version = torch.__version__.split("+")[0]
page = f"{os.environ['K2_WHEELS']}/{flavour.rstrip('.0123456789')}.html"
try:
    with urllib.request.urlopen(page, timeout=60) as answer:
        links = re.findall(r'href="([^"]+\.whl)"', answer.read().decode())
except OSError as error:
    sys.exit(f"install_k2: cannot read {page} ({error}): try again with a network")
system = {"linux": "linux", "darwin": "macosx", "win32": "win"}.get(sys.platform, sys.platform)
build = re.escape(f"{flavour}.torch{version}-cp{sys.version_info[0]}{sys.version_info[1]}-")
name = rf"k2-([\w.]+)\+{build}.*{system}.*{platform.machine()}"
wheels = []
for link in links:
    match = re.match(name, unquote(link).rsplit("/", 1)[-1], re.IGNORECASE)
    if match:
        wheels.append(([int(n) for n in re.findall(r"\d+", match[1])], urljoin(page, link)))
print(max(wheels)[1] if wheels else f"none {version} {flavour} {sys.version_info[0]}.{sys.version_info[1]} {page}")
END
)
case $found in
  none*)
    read -r _ torch flavour python page <<<"$found"
    say "k2 has no wheel for torch $torch ($flavour) and Python $python. Take a torch that is listed at $page, or" \
      "build k2: 'git clone https://github.com/k2-fsa/k2 && pip install --no-build-isolation --no-deps ./k2' (needs" \
      "cmake, a C++ compiler and, for GPUs, the CUDA toolkit of this torch)"
    exit 1
    ;;
esac
python3 -m pip install --force-reinstall --no-deps "$found"
python3 -c 'import k2' || { say "$found is installed, but cannot be imported; see above" && exit 1; }
say "installed ${found##*/}"
