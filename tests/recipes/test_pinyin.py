"""Sounds of Mandarin text, and the pairs that a language model learns from."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pypinyin", reason="the recipe commonvoice_zh needs pypinyin")
LOCAL = Path(__file__).resolve().parents[2] / "egs/commonvoice_zh/asr_llm1/local"


@pytest.fixture
def pinyin(monkeypatch):
    monkeypatch.syspath_prepend(str(LOCAL))
    import pinyin

    return pinyin


@pytest.mark.parametrize(
    "text, units",
    [
        ("大使馆", "d a 4 sh i 3 g uan 3"),
        ("全员", "q van 2 van 2"),
        ("我的", "uo 3 d e 5"),
        ("女玉居", "n v 3 v 4 j v 1"),
        ("银行行人", "in 2 h ang 2 x ing 2 r en 2"),  # read in context
        ("二嗯", "er 4 n 2"),
    ],
)
def test_syllables(pinyin, text, units):
    found = pinyin.read(text)
    assert len(found) == len(text) and [part for syllable in found for part in syllable] == units.split()


@pytest.mark.parametrize("text", ["大a", "三3", "オ", "天 安", "𫊻"])
def test_text_without_a_reading_has_no_syllables(pinyin, text):
    assert pinyin.read(text) is None


def test_a_syllable_is_taken_for_those_that_differ_in_one_part(pinyin):
    syllables = {("d", "a", "4"), ("d", "a", "1"), ("t", "a", "4"), ("a", "4"), ("d", "i", "1"), ("sh", "i", "3")}
    table = pinyin.confusions(syllables)
    assert table["[da4]"] == {"[da1]": 1.0, "[ta4]": 0.5, "[a4]": 0.5}  # one other tone, two other initials
    assert table["[da1]"] == {"[da4]": 1.0, "[di1]": 1.0} and table["[a4]"] == {"[da4]": 0.5, "[ta4]": 0.5}
    assert "[shi3]" not in table  # like none of them


def run(*options):
    return subprocess.run([sys.executable, LOCAL / "pinyin.py", *options], capture_output=True, text=True)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("id\taudio\ttext\taccent\nu1\ta.wav\t大使馆\tWu\nu2\tb.wav\t大abc\tWu\nu3\tc.wav\t\tWu\n")
    return path


def test_table_and_pairs(table, tmp_path):
    pytest.importorskip("jieba", reason="words are drawn from jieba's list")
    words = ["--words", "50", "--most_characters", "5"]
    made = ["--out_table", tmp_path / "u.tsv", "--out_confusions", tmp_path / "c.json"]
    done = run("--table", table, "--out_pairs", tmp_path / "p.jsonl", *made, *words)
    assert done.returncode == 0, done.stderr
    assert "1 utterances, 2 left out" in done.stdout
    rows = (tmp_path / "u.tsv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2 and rows[1].split("\t")[2:] == ["d a 4 sh i 3 g uan 3", "Wu"]
    pairs = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    assert pairs[0] == {"source": "[da4] [shi3] [guan3]", "target": "大使馆"}
    assert len(pairs) == 51 and len(set("".join(pair["target"] for pair in pairs)) - set("大使馆")) <= 5
    spoken = {unit for pair in pairs for unit in pair["source"].split()}
    assert set(json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))) <= spoken
    run("--table", table, "--out_pairs", tmp_path / "again.jsonl", *words)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "p.jsonl").read_bytes()


def test_frequent_words_are_drawn_more_often(pinyin):
    drawn = pinyin.draw({"a": 16, "b": 1}, 5000, 0.5, seed=0)
    assert abs(drawn.count("a") / 5000 - 0.8) < 0.03


def test_nothing_to_write_or_to_read(table, tmp_path):
    for options, says in (
        (["--table", table], "give out_table or out_pairs"),
        (["--table", tmp_path / "none.tsv", "--out_table", tmp_path / "u.tsv"], "no table at"),
    ):
        done = run(*options)
        assert done.returncode == 1 and says in done.stderr and len(done.stderr.splitlines()) == 1
