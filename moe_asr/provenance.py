"""How a result came about: command, state of the source, versions, day. Imports none of the packages it names."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "lhotse", "sentencepiece", "kaldialign", "numpy", "k2")


def record() -> dict:
    """All of the below as one JSON-ready dict: `command`, `git`, `versions`, `date`."""
    return {"command": command_line(), "git": git_hash(), "versions": versions(), "date": date()}


def command_line() -> str:
    """The running command as one would type it, `python -m moe_asr.bin.score --metric wer`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        name = spec.name.removesuffix(".__main__")
        return shlex.join(["python", "-m", name, *sys.argv[1:]])
    return shlex.join([Path(sys.argv[0]).name or "python", *sys.argv[1:]])


def git_hash(folder: str | Path | None = None) -> str:
    """Short hash of the source's last commit, `-dirty` after it if a tracked file differs; "unknown" outside git.

    A changed RESULTS.md does not count: results do not change what the next result will be.

    Args:
        folder: any folder of the repository; the one this file is in by default
    """
    folder = Path(__file__).parent if folder is None else Path(folder)
    commit = _git(folder, "rev-parse", "--short=10", "HEAD")
    if commit is None:
        return "unknown"
    changed = _git(
        folder, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude,glob)**/RESULTS.md"
    )
    return f"{commit}-dirty" if changed else commit


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those it stands on, as far as they are installed."""
    from moe_asr import __version__

    found = {"python": platform.python_version(), "moe_asr": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass  # optional, and not installed
    return found


def date() -> str:
    """Now, to the second, with the offset from UTC: `2026-01-31T12:00:00+00:00`."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None
