"""Recipes from end to end, on as little data as they run with."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = "--synthesis=--general_train 40 --general_dev 6 --accent_train 6 --accent_dev 3 --test 4"
SHORT = "--training=--train.max_steps 3 --train.average_count 1"


def recipe(name, folder, *options, fails=False):
    pytest.importorskip("espeakng_loader")
    done = subprocess.run(
        [ROOT / "egs" / name / "run.sh", "--data-dir", folder / "data", "--exp-dir", folder / "exp", "--results",
         folder / "RESULTS.md", *options], capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stderr if fails else done.stdout


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    return folder, recipe("mini_accents/asr1", folder, SMALL, SHORT)


def test_mini_accents_runs_whole(mini):
    folder, output = mini
    for number in range(1, 7):
        assert f"stage {number}: done in" in output
    table = (folder / "RESULTS.md").read_text(encoding="utf-8")
    for system in ("base", "full fine-tuning", "one LoRA", "HDMoLE (our reading)"):
        assert f"| {system}" in table
    for name in ("recogs-test.txt", "errs-test.txt", "wer-summary-test.txt"):
        assert (folder / "exp/hdmole/test" / name).is_file()


def results(folder):
    """Adapters, base models and recognised texts."""
    kinds = ("*.safetensors", "hyps.jsonl", "recogs-*.txt")
    paths = [path for kind in kinds for path in (folder / "exp").rglob(kind) if "checkpoints" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_second_run_gives_the_same_bytes(mini, tmp_path):
    """From the synthesis of the corpus on, in other folders, on one thread."""
    folder, _ = mini
    before = results(folder)
    recipe("mini_accents/asr1", tmp_path, SMALL, SHORT)
    again = results(tmp_path)
    assert sorted(again) == sorted(before) and any("recogs" in name for name in again)
    assert [name for name in again if again[name] != before[name]] == []


def test_a_finished_recipe_runs_again_in_no_time(mini):
    folder, _ = mini
    table = (folder / "RESULTS.md").read_bytes()
    output = recipe("mini_accents/asr1", folder, SMALL, SHORT)
    assert output.count("done already, nothing changed") == 6
    assert (folder / "RESULTS.md").read_bytes() == table


def test_a_changed_option_runs_again_what_depends_on_it(mini):
    folder, _ = mini
    output = recipe("mini_accents/asr1", folder, SMALL, SHORT, "--systems", "lora", "--stop-stage", "5")
    assert output.count("done already") == 3
    assert "stage 4" in output and "again, changed: systems" in output
    assert "decoded already" in output  # the base has not changed


def test_experts_on_a_base_in_4_bits(mini):
    folder, _ = mini
    output = recipe("mini_accents/asr1", folder, SMALL, SHORT, "--quantise", "nf4", "--systems", "full lora")
    assert 'quantise "none" -> "nf4"' in output
    decoded = {name: folder / f"exp/{name}/test/system.json" for name in ("base", "lora", "full")}
    systems = {name: json.loads(path.read_text()) for name, path in decoded.items()}
    assert systems["base"]["model"] == systems["lora"]["model"] == str(folder / "exp/base-nf4")
    assert systems["full"]["model"] == str(folder / "exp/full/final")  # trained as a whole, so from the base in 32 bits


def test_mistakes_are_one_line(tmp_path):
    pytest.importorskip("espeakng_loader")
    for options, says in (
        (["--exp-dri", "x"], "--exp-dir"),
        (["--stage", "two"], "numbers"),
        (["--systems"], "value"),
    ):
        done = subprocess.run([ROOT / "egs/mini_accents/asr1/run.sh", *options], capture_output=True, text=True)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and says in done.stderr


def test_digits_says_what_to_put_where(tmp_path):
    error = recipe("digits/asr1", tmp_path, "--corpus-dir", tmp_path, fails=True)
    assert "free_spoken_digit_dataset/recordings" in error and "--corpus_dir" in error
    assert "Traceback" not in error


def test_digits_runs_whole_on_the_recordings(tmp_path):
    corpora = os.environ.get("MOE_ASR_CORPORA")
    if not corpora:
        pytest.skip("MOE_ASR_CORPORA is not set; it names the folder that holds free_spoken_digit_dataset/")
    small = "--strings=--general_train 40 --accent_train 8 --dev 4 --test 6"
    output = recipe("digits/asr1", tmp_path, "--corpus-dir", corpora, small, SHORT)
    assert "stage 6: done in" in output and "| HDMoLE" in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
