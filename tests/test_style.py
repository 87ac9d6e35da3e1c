"""Shell code is clean under shellcheck, Python code under ruff."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def command(name: str) -> str:
    """The command `name` of this environment, whether it is active or not."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed (extra [dev])")
    return found


def check(*args: str | Path) -> None:
    result = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_shellcheck():
    folders = ["utils", "egs", "tests", ".ci"]
    scripts = [path for folder in folders for path in (ROOT / folder).rglob("*.sh")]
    scripts += [*(ROOT / "tools").glob("*.sh"), ROOT / ".ci" / "run"]
    assert len(scripts) > 5
    check(command("shellcheck"), *scripts)


def test_ruff():
    sources = ["moe_asr", "tests", "egs", "tools", "setup.py"]
    check(command("ruff"), "check", "--no-cache", "--output-format", "concise", "--exclude", "tools/venv", *sources)
