"""The recipe for Common Voice's Mandarin: its tables, what it says about bad input, and all of it on the corpus."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_asr.data.tables import read_table

RECIPE = Path(__file__).resolve().parents[2] / "egs/commonvoice_zh/asr_llm1"
HEADER = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent\tlocale\n"
TEXTS = ("你好，学校。", "學習 3 天", "大使馆", "CDMA网络", "α粒子")


@pytest.fixture
def corpus(tmp_path):
    """Five sentences of each of three accents in each part; clips are not opened here."""
    folder = tmp_path / "zh-CN"
    (folder / "clips").mkdir(parents=True)
    for part in ("train", "dev", "test"):
        lines = []
        for accent in ("110000", "310000", "440000"):
            for number, text in enumerate(TEXTS):
                name = f"common_voice_zh-CN_{part}{accent}{number}"
                (folder / f"clips/{name}.ogg").touch()
                lines.append(f"{part}{accent}".ljust(128, "0") + f"\t{name}.mp3\t{text}\t2\t0\t\t\t{accent}\tzh-CN\n")
        (folder / f"{part}.tsv").write_text(HEADER + "".join(lines))
    return folder


def prepare(corpus, out_dir, *options, fails=False):
    for name in ("pypinyin", "opencc"):
        pytest.importorskip(name)
    command = [sys.executable, RECIPE / "local/prepare.py", "--corpus_dir", corpus, "--out_dir", out_dir, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=RECIPE)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    if fails:
        assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr if fails else done.stdout


def test_the_north_is_the_general_domain_and_each_other_group_an_accent(corpus, tmp_path):
    output = prepare(corpus, tmp_path / "out")
    tables = {path.stem: read_table(path) for path in (tmp_path / "out").glob("*.tsv")}
    made = [f"{part}_{kind}" for part in ("dev", "train") for kind in ("accents", "general", "text")]
    assert sorted(tables) == sorted([*made, "test"])
    assert {row.accent for row in tables["train_general"]} == {"Northern"}
    assert {row.accent for row in tables["train_accents"]} == {"Wu", "Yue-Ping"}
    assert {row.accent for row in tables["test"]} == {"Northern", "Wu", "Yue-Ping"}
    assert "Northern 3" in output and all(Path(row.audio).is_file() for row in tables["test"])


def test_what_has_no_reading_is_left_out_but_for_the_test_set(corpus, tmp_path):
    output = prepare(corpus, tmp_path / "out")
    assert output.count("6 utterances left out, because they have no Mandarin reading") == 2
    assert [row.text for row in read_table(tmp_path / "out/train_general.tsv")] == list(TEXTS[:3])
    assert len(read_table(tmp_path / "out/test.tsv")) == 15
    assert {row.text for row in read_table(tmp_path / "out/dev_text.tsv")} == {"你好学校", "学习三天", "大使馆"}


def test_what_is_missing_or_unknown_is_one_line(corpus, tmp_path):
    error = prepare(tmp_path / "elsewhere", tmp_path / "out", fails=True)
    assert "no " in error and "elsewhere/train.tsv: get it from https://commonvoice" in error
    assert "no table of accents at x.tsv" in prepare(corpus, tmp_path / "out", "--groups", "x.tsv", fails=True)
    error = prepare(corpus, tmp_path / "out", "--general_groups", "[Beijing, Bejing]", fails=True)
    assert "no accent is of the group Bejing; groups are Beijing, Ji-Lu" in error
    (corpus / "dev.tsv").write_text(HEADER)
    assert "dev.tsv: no line of it can be used" in prepare(corpus, tmp_path / "out", fails=True)


def test_mistakes_are_one_line(tmp_path):
    for options, says in (
        ([], "give --corpus-dir"),
        (["--corpus-dir", tmp_path, "--encoder", "hubert"], "whisper or conformer"),
        (["--corpus-dir", tmp_path, "--systems", "hdmole_oracle"], "needs the system hdmole"),
    ):
        done = subprocess.run([RECIPE / "run.sh", *options], capture_output=True, text=True)
        lines = [line for line in done.stderr.splitlines() if not line.startswith("setup: ")]
        assert done.returncode == 2 and len(lines) == 1 and says in lines[0], done.stderr


@pytest.mark.parametrize("encoder", ["whisper", "conformer"])
def test_recipe_runs_whole_on_the_recordings(encoder, tmp_path):
    corpora, models = os.environ.get("MOE_ASR_CORPORA"), os.environ.get("MOE_ASR_MODELS")
    if not corpora or not models:
        pytest.skip("MOE_ASR_CORPORA and MOE_ASR_MODELS are not set; they name the folders of common_voice/ and models")
    short = "--train.max_steps 2 --train.average last --train.average_count 1"
    done = subprocess.run(
        [RECIPE / "run.sh", "--corpus-dir", Path(corpora) / "common_voice", "--model-dir", models, "--encoder", encoder,
         "--data-dir", tmp_path / "data", "--exp-dir", tmp_path / "exp", "--results", tmp_path / "RESULTS.md",
         "--systems", "full hdmole hdmole_oracle", f"--training={short}", "--lm-training=--train.max_steps 2",
         "--starting=--epochs 1", "--decoding=--search.kind greedy"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "| HDMoLE with the true accent" in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
