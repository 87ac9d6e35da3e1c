import json
import resource
import subprocess
import sys

import pytest

from moe_asr.bin.score import ScoreConfig, score
from moe_asr.config import run_command

LINES = [
    {"id": "a", "ref": "One two.", "hyp": "one", "speaker": "s", "accent": "us", "language": "en", "duration": 1.0},
    {"id": "b", "ref": "three", "hyp": "three", "speaker": "t", "accent": "de", "language": "en", "duration": 1.0},
]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "test-clean"
    path.mkdir()
    (path / "hyps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    (path / "system.json").write_text("{}")
    return path


def run(*arguments):
    run_command(ScoreConfig, score, [str(argument) for argument in arguments])


def test_prints_a_table_and_writes_the_files(folder, capsys):
    run("--decode_dir", folder, "--normaliser", "english", "--bootstrap", 50)
    out = capsys.readouterr().out
    assert "test-clean: WER of text normalised as 'english', 2 utterances" in out and "33.33" in out
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["overall"]["rate"] == pytest.approx(1 / 3) and scores["raw"]["rate"] == pytest.approx(2 / 3)
    assert scores["settings"]["normaliser"] == "english" and scores["settings"]["bootstrap"] == 50
    assert {"command", "git", "versions", "date"} <= set(scores)
    for name in ("recogs-test-clean.txt", "errs-test-clean.txt", "wer-summary-test-clean.txt"):
        assert (folder / name).is_file() and name in out


def test_set_name_metric_and_comparison(folder, capsys):
    run("--decode_dir", folder, "--metric", "cer", "--set_name", "x", "--compare", folder, "--unit", "speaker")
    out = capsys.readouterr().out
    assert "x: CER of raw text" in out and f"against {folder}: " in out
    assert json.loads((folder / "scores.json").read_text())["comparison"]["units"] == 2


def test_mixed_text(folder, capsys):
    pytest.importorskip("opencc")
    pairs = [("我用 GitHub。", "我 用 github"), ("3個人", "三个人"), ("说 OK", "说 okay")]
    lines = [{"id": str(n), "ref": ref, "hyp": hyp, "speaker": f"s{n}"} for n, (ref, hyp) in enumerate(pairs)]
    (folder / "hyps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("--metric", "mer", "--normaliser", "mandarin", "--compare", folder, "--unit", "speaker")
    run("--decode_dir", folder, *options)
    assert "MER of text normalised as 'mandarin', 3 utterances" in capsys.readouterr().out
    assert "text=mandarin\t12.50" in (folder / "wer-summary-test-clean.txt").read_text(encoding="utf-8")
    assert (folder / "errs-test-clean.txt").read_text(encoding="utf-8").startswith("%MER 12.50% [1 / 8")
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["overall"]["n"] == 8 and scores["comparison"]["difference"] == 0


def fails(capsys, code, *arguments):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    out, err = capsys.readouterr()
    assert caught.value.code == code and err.startswith("error: ") and err.count("\n") == 1 and out == ""
    return err


def test_what_a_user_gets_wrong_is_one_line(folder, tmp_path, capsys):
    assert "no hyps.jsonl" in fails(capsys, 1, "--decode_dir", tmp_path)
    assert "mandarin" in fails(capsys, 1, "--decode_dir", folder, "--normaliser", "englisch")
    assert "bootstrap" in fails(capsys, 1, "--decode_dir", folder, "--bootstrap", 0)
    assert "ter" in fails(capsys, 2, "--decode_dir", folder, "--metric", "ter")
    assert "without '/'" in fails(capsys, 1, "--decode_dir", folder, "--set_name", "a/b")
    (folder / "system.json").unlink()
    assert "has not ended" in fails(capsys, 1, "--decode_dir", folder)
    assert not (folder / "scores.json").exists()
    run("--decode_dir", folder, "--allow_partial", "true")
    assert "not complete" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["score", "results"])
def test_help_is_instant_and_scoring_needs_no_torch(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", f"moe_asr.bin.{command}", "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    modules = "tables, results_file, report"
    code = f"import sys; from moe_asr.scoring import {modules}; assert not {{'torch', 'lhotse'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
