"""A SLURM of one node, which runs as long as the tests that ask for it."""

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

_spec = importlib.util.spec_from_file_location("training_conftest", ROOT / "tests/training/conftest.py")
_training = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_training)
corpus = _training.corpus  # speech, a base and a configuration to train on it


@pytest.fixture(scope="session")
def slurm():
    """The environment in which commands find it. It ends when its stdin does, so also when this process dies."""
    command = [ROOT / "tools/slurm_local.sh", "bash", "-c", 'echo "$SLURM_CONF"; exec cat']
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes)
    place = process.stdout.readline().strip()
    if not place:
        error = process.communicate()[1].strip().splitlines()
        pytest.skip(error[-1] if error else "tools/slurm_local.sh failed without a word")
    path = f"{ROOT / 'utils'}:{os.environ['PATH']}"
    yield {**os.environ, "SLURM_CONF": place, "PATH": path, "PYTHONPATH": str(ROOT)}
    process.stdin.close()
    process.wait(60)
