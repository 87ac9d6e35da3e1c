"""tools/soak.sh, with something that takes seconds in place of the miniature recipe."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

RECIPE = """#!/usr/bin/env bash
while [ "$1" != --exp-dir ]; do shift; done
mkdir -p "$2"/.done "$2"/lora/{final,test}
touch "$2/.done/stage1"
cd "$2/lora"
for ((i = FIRST; i < 20; i++)); do
  sleep 0.1
  echo "step $i" >>train.log
done
cp train.log final/adapter.safetensors
echo "{}" >test/hyps.jsonl
"""


@pytest.fixture
def soak(tmp_path):
    """Runs it with a recipe whose steps begin with number `first`, a bash expression, when it is started again."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/soak.sh", tmp_path / "tools")
    recipe = tmp_path / "egs/mini_accents/asr1/run.sh"
    recipe.parent.mkdir(parents=True)

    def run(first, *options):
        recipe.write_text(RECIPE.replace("FIRST", first))
        recipe.chmod(0o755)
        command = [tmp_path / "tools/soak.sh", *options]
        own = tmp_path / "temporary"
        own.mkdir(exist_ok=True)
        env = {**os.environ, "TMPDIR": str(own)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
        assert not list(own.iterdir())
        return done

    return run


def test_a_recipe_that_goes_on_exactly_passes(soak):
    done = soak("$(cat train.log 2>/dev/null | wc -l)", "--kills", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"kill (\d): between programs, after \d+ lines", done.stdout) == ["1", "2", "3", "4"]
    rounds = re.search(r"(\d+) of (\d+) runs ended with the bytes of the undisturbed one", done.stdout)
    assert "4 kills:\n  4 between programs\n" in done.stdout and rounds[1] == rounds[2]


def test_one_that_repeats_steps_does_not(soak):
    done = soak("0", "--kills", "3", "--seed", "2")
    assert done.returncode == 1 and "differs" in done.stdout, done.stdout + done.stderr


def test_mistakes(soak):
    for options in (["--kills"], ["--kills", "many"], ["--kill", "3"], ["--folder", ""]):
        done = soak("0", *options)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
