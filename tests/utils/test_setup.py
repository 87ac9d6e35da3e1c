"""tools/setup.sh, with a make-believe Python that only notes what it was asked to do."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PYTHON = """#!/usr/bin/env bash
case "$*" in
  *version_info*) exit "${OLD_PYTHON:-0}" ;;
  *find_spec*) [ -z "$ACTIVE" ] || echo "$ACTIVE with moe_asr from /src/moe_asr" ;;
  --version) echo "Python 3.11.0" ;;
  -m\\ venv*) echo venv >>"$CALLS"; mkdir -p "${!#}/bin" && cp "$0" "${!#}/bin/python3" ;;
  -m\\ pip*)
    echo "pip $*" >>"$CALLS"
    echo "WARNING: noise of pip"
    sleep "${SLOW:-0}"
    [ -z "$BROKEN" ] || { echo "ERROR: no space left" && exit 1; }
    ;;
esac
"""


class Machine:
    def __init__(self, root: Path):
        self.tools, self.calls = root / "tools", root / "calls"
        self.tools.mkdir(parents=True)
        for name in ["setup.py", "pyproject.toml", "tools/setup.sh", "tools/constraints.txt"]:
            shutil.copy(ROOT / name, root / name)
        for name in ["python3", "python3.10", "python3.11", "python3.12", "python3.13"]:
            (root / "bin").mkdir(exist_ok=True)
            (root / "bin" / name).write_text(PYTHON)
            (root / "bin" / name).chmod(0o755)
        empty = {name: "" for name in ["ACTIVE", "BROKEN", "PYTHON"]}
        self.env = {**os.environ, **empty, "CALLS": str(self.calls), "PATH": f"{root}/bin:/usr/bin:/bin"}

    def start(self, **env: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [str(self.tools / "setup.sh")]
        return subprocess.Popen(command, cwd="/", env={**self.env, **env}, start_new_session=True, **pipes)

    def __call__(self, code: int = 0, **env: str) -> tuple[str, str]:
        process = self.start(**env)
        out, err = process.communicate(timeout=30)
        assert process.returncode == code, out + err
        return out, err

    def builds(self) -> int:
        """How often an environment was begun."""
        return self.calls.read_text().splitlines().count("venv") if self.calls.exists() else 0


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path / "a root")


def test_builds_once(machine):
    out, err = machine()
    assert out == f"{machine.tools}/venv/bin\n"
    assert "building" in err and "done in" in err and "WARNING" not in err and err.count("\n") == 3
    pips = [line for line in machine.calls.read_text().splitlines() if line.startswith("pip")]
    assert pips[0].endswith("torch setuptools") and pips[1].endswith("..[mini,whisper,mandarin,dev]")
    assert all("--constraint constraints.txt" in pip for pip in pips)
    begin = time.time()
    assert machine() == (f"{machine.tools}/venv/bin\n", f"setup: using {machine.tools}/venv\n")
    assert machine.builds() == 1 and time.time() - begin < 1


@pytest.mark.parametrize("name", ["setup.py", "tools/constraints.txt"])
def test_builds_again_when_what_it_is_made_from_changed(machine, name):
    machine()
    with open(machine.tools.parent / name, "a") as file:
        file.write("# new\n")
    machine()
    assert machine.builds() == 2


def test_failure_is_explained_and_does_not_count(machine):
    out, err = machine(code=1, BROKEN="yes")
    assert out == "" and "ERROR: no space left" in err and f"{machine.tools}/setup.log" in err
    machine()
    assert machine.builds() == 2


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_set_up_does_not_count(machine, how):
    process = machine.start(SLOW="60")
    while not machine.calls.exists() or "pip" not in machine.calls.read_text():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, how)
    _, err = process.communicate(timeout=10)
    if how == signal.SIGINT:
        assert process.returncode == 130 and "interrupted; run it again" in err
    assert "building" in machine()[1] and machine.builds() == 2


def test_two_at_once_build_once(machine):
    first, second = machine.start(SLOW="1"), machine.start(SLOW="1")
    messages = first.communicate(timeout=30)[1] + second.communicate(timeout=30)[1]
    assert first.returncode == second.returncode == 0
    assert machine.builds() == 1 and "waiting for it" in messages


def test_active_environment_is_used(machine):
    message = "setup: using the active environment, /my env with moe_asr from /src/moe_asr\n"
    assert machine(ACTIVE="/my env") == ("", message)
    assert machine.builds() == 0


def test_without_a_python(machine):
    assert "needs Python 3.10 or later" in machine(code=1, OLD_PYTHON="1")[1]
