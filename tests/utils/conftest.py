"""A toolkit in miniature: the real utils/, a set-up that does nothing, and room for one recipe."""

import os
import subprocess
from pathlib import Path
from typing import Optional

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Recipe:
    """A recipe in `folder` and what it takes to run it."""

    def __init__(self, root: Path):
        self.folder = root / "egs" / "corpus" / "asr1"
        self.folder.mkdir(parents=True)
        (root / "utils").symlink_to(ROOT / "utils")
        self.write(root / "tools" / "setup.sh", "#!/bin/sh\n", executable=True)
        self.write("path.sh", '. "$(dirname "${BASH_SOURCE[0]}")/../../../utils/recipe.sh"\n')
        self.write("cmd.sh", "export train_cmd=run.sh\n")

    def write(self, path: Path | str, text: str, executable: bool = False) -> Path:
        path = self.folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if executable else 0o644)
        return path

    def script(self, body: str, options: str = "") -> None:
        """Writes run.sh: `options`, the line that sources everything, `body`."""
        text = f'#!/usr/bin/env bash\n# A recipe.\n\n{options}\n. "$(dirname "$0")/path.sh"\n{body}\nrun_stages\n'
        self.write("run.sh", text, executable=True)

    def start(self, *args: str, cwd: Optional[Path] = None, **kwargs) -> subprocess.Popen:
        """Starts run.sh in a process group of its own, as a terminal would."""
        command = [str(self.folder / "run.sh"), *args]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        return subprocess.Popen(command, cwd=cwd or self.folder, **pipes, **kwargs)

    def run(self, *args: str, code: int = 0, cwd: Optional[Path] = None, **env: str) -> str:
        """Runs run.sh; its exit code must be `code`. Returns stdout, then stderr."""
        process = self.start(*args, cwd=cwd, env={**os.environ, **env})
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, out + err
        return out + err


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    return Recipe(tmp_path / "a root with spaces")
