"""tools/install_k2.sh, with a Python whose pip only notes what it was asked for."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
TORCH = torch.__version__.split("+")[0]
FLAVOUR = f"cuda{torch.version.cuda}" if torch.version.cuda else "cpu"
PYTHON = f"cp{sys.version_info[0]}{sys.version_info[1]}"
SYSTEM = {"linux": "manylinux_2_28", "darwin": "macosx_11_0"}.get(sys.platform, sys.platform)

FAKE = """#!/usr/bin/env bash
case "$*" in
  *"import k2"*) [ -e "$STATE/installed" ] ;;
  "-m pip "*) echo "$*" >>"$STATE/calls"; [ -n "$UNUSABLE" ] || touch "$STATE/installed" ;;
  *) exec "$REAL" "$@" ;;
esac
"""


def wheel(version, flavour=FLAVOUR, torch_version=TORCH, python=PYTHON, machine=platform.machine()):
    return f"k2-{version}%2B{flavour}.torch{torch_version}-{python}-{python}-{SYSTEM}_{machine}.whl"


@pytest.fixture
def install(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").write_text(FAKE)
    (tmp_path / "bin/python3").chmod(0o755)
    (tmp_path / "tools").mkdir()  # with a set-up that finds the environment active, and not the one of this project
    shutil.copy(ROOT / "tools/install_k2.sh", tmp_path / "tools")
    (tmp_path / "tools/setup.sh").write_text("#!/bin/sh\n")
    (tmp_path / "tools/setup.sh").chmod(0o755)

    def install(names, code=0, page=True, **env):
        if page:
            links = "".join(f'<a href="https://example.org/k2/{name}">{name}</a><br/>\n' for name in names)
            (tmp_path / f"{FLAVOUR.rstrip('.0123456789')}.html").write_text(links)
        paths = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "REAL": sys.executable}
        settings = {**os.environ, "UNUSABLE": "", **paths, "K2_WHEELS": f"file://{tmp_path}", "STATE": str(tmp_path)}
        command = [str(tmp_path / "tools/install_k2.sh")]
        result = subprocess.run(command, env={**settings, **env}, capture_output=True, text=True, check=False)
        assert result.returncode == code, result.stderr
        calls = tmp_path / "calls"
        return result.stderr, calls.read_text().splitlines() if calls.exists() else []

    return install


def test_takes_the_newest_wheel_that_fits(install):
    fitting = [wheel("1.24.4.dev20240930"), wheel("1.24.4.dev20250807"), wheel("1.24.3.dev20251231")]
    others = [
        wheel("1.25", torch_version="1.13.1"),
        wheel("1.25", torch_version=TORCH + "1"),
        wheel("1.25", flavour="cuda9.1"),
        wheel("1.25", python="cp36"),
        wheel("1.25", machine="z80"),
    ]
    message, calls = install([*others, *fitting])
    assert calls == [f"-m pip install --force-reinstall --no-deps https://example.org/k2/{fitting[1]}"]
    assert "installed k2-1.24.4.dev20250807" in message
    assert install(fitting)[1] == calls and "k2 is installed" in install(fitting)[0]


def test_without_a_wheel_one_line_says_how_to_build(install):
    message, calls = install([wheel("1.25", torch_version="1.13.1")], code=1)
    lines = [line for line in message.splitlines() if line.startswith("install_k2")]
    assert not calls and len(lines) == 1
    assert f"no wheel for torch {TORCH} ({FLAVOUR}) and Python" in lines[0]
    assert "git clone https://github.com/k2-fsa/k2" in lines[0]


def test_without_a_network_one_line(install):
    message, calls = install([], code=1, page=False)
    assert not calls and "install_k2: cannot read file://" in message and "Traceback" not in message


def test_a_wheel_that_cannot_be_imported_is_an_error(install):
    assert "cannot be imported" in install([wheel("1.25")], code=1, UNUSABLE="yes")[0]
