"""Data preparation of the speechocean762 recipe, on a corpus of its layout."""

import subprocess
import sys
from pathlib import Path

import pytest

from moe_asr.data.tables import read_table

PREPARE = Path(__file__).resolve().parents[2] / "egs/speechocean762/asr1/local/prepare.py"


@pytest.fixture
def corpus(tmp_path):
    """Train: 6 adults and 3 children; test: one of each; two utterances each."""
    for part, ages in (("train", [20, 30, 7, 41, 8, 19, 25, 12, 33]), ("test", [6, 22])):
        folder = tmp_path / "corpus" / part
        folder.mkdir(parents=True)
        speakers = {f"{'9' if part == 'test' else '0'}{n:03d}": age for n, age in enumerate(ages)}
        names = [f"{speaker}{n:04d}" for speaker in speakers for n in range(2)]
        for file, lines in (
            ("text", [f"{name}\tWE CALL IT BEAR" for name in names]),
            ("wav.scp", [f"{name}\tWAVE/SPEAKER{name[:4]}/{name}.WAV" for name in names]),
            ("utt2spk", [f"{name}\t{name[:4]}" for name in names]),
            ("spk2age", [f"{speaker}\t{age}" for speaker, age in speakers.items()]),
        ):
            (folder / file).write_text("\n".join(lines) + "\n")
    return tmp_path / "corpus"


def run(corpus, out_dir, fails=False):
    options = ["--corpus_dir", corpus, "--out_dir", out_dir, "--dev_speakers", "3", "--init_speakers", "3"]
    done = subprocess.run([sys.executable, PREPARE, *options], capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    if fails:
        assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    return done.stderr


def test_sets_have_speakers_of_their_own_from_both_groups(corpus, tmp_path):
    run(corpus, tmp_path / "a")
    run(corpus, tmp_path / "b")
    tables = {name: read_table(tmp_path / f"a/{name}.tsv") for name in ("train", "dev", "target")}
    speakers = {name: {row.speaker for row in rows} for name, rows in tables.items()}
    assert [len(speakers[name]) for name in tables] == [6, 3, 2] and not speakers["train"] & speakers["dev"]
    assert sorted(row.accent for row in tables["dev"]) == ["adult"] * 4 + ["child"] * 2
    assert tables["target"][0].audio == str(corpus / "WAVE/SPEAKER9000/90000000.WAV")
    init = (tmp_path / "a/init.txt").read_text().split()
    assert len(init) == 3 and set(init) <= speakers["train"]
    assert (tmp_path / "a/target.txt").read_text() == "9000\n9001\n"
    for name in ("train.tsv", "dev.tsv", "init.txt"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_is_missing_is_named(corpus, tmp_path):
    assert "--corpus_dir" in run(tmp_path / "elsewhere", tmp_path / "out", fails=True)
    (corpus / "test/spk2age").write_text("9000\t6\n")
    assert "no age of speaker 9001" in run(corpus, tmp_path / "out", fails=True)
