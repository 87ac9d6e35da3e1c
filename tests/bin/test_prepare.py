import json
import resource
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from moe_asr.bin.prepare import PrepareConfig, prepare
from moe_asr.config import run_command
from moe_asr.data.manifests import read_manifest


@pytest.fixture
def table(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    lines = ["id\taudio\ttext\tspeaker"] + [f"u{i}\ta.wav\tHello {i}!\ts{i % 3}" for i in range(30)]
    (tmp_path / "test.tsv").write_text("\n".join(lines))
    return tmp_path / "test.tsv"


def run(*arguments):
    run_command(PrepareConfig, prepare, [str(argument) for argument in arguments])


def test_writes_a_manifest_and_one_line(table, tmp_path, capsys):
    run("--table", table, "--manifest", tmp_path / "data/test.jsonl.gz")
    assert capsys.readouterr().out == "test: 30 utterances, 0.01 h, 3 speakers\n"
    utterances = read_manifest(tmp_path / "data/test.jsonl.gz")
    assert utterances[7].text == "hello 7" and utterances[7].audio == str(tmp_path / "a.wav")
    assert (tmp_path / "data/rejected-test.jsonl").read_text() == ""


def test_goes_on_without_what_is_rejected(table, tmp_path, capsys):
    table.write_text(table.read_text() + "\nbad\tnone.wav\thello\ts1")
    run("--table", table, "--manifest", tmp_path / "test.jsonl")
    assert "30 utterances" in (out := capsys.readouterr().out) and "; rejected 1 (" in out and out.count("\n") == 1
    entry = json.loads((tmp_path / "rejected-test.jsonl").read_text())
    assert (entry["id"], entry["line"], entry["reason"]) == ("bad", 32, "no such audio file")


def test_stops_above_the_limit_and_still_lists(table, tmp_path, capsys):
    table.write_text(table.read_text() + "".join(f"\nbad{i}\tnone.wav\thello\ts1" for i in range(3)))
    with pytest.raises(SystemExit) as caught:
        run("--table", table, "--manifest", tmp_path / "test.jsonl", "--rejected", tmp_path / "r.jsonl")
    error = capsys.readouterr().err
    assert caught.value.code == 1 and error.count("\n") == 1
    assert "3 of 33 utterances rejected (9.1%, limit 5.0%): 3 no such audio file" in error and "r.jsonl" in error
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 3 and not (tmp_path / "test.jsonl").exists()


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--table", "none.tsv"], 1, "no table at none.tsv"),
        (["--normaliser", "greek"], 1, "unknown text normaliser 'greek'"),
        (["--normalizer", "english"], 2, "normaliser"),
        (["--check.max_rejected", "few"], 2, "max_rejected"),
    ],
)
def test_bad_requests_are_one_line(table, tmp_path, capsys, arguments, code, message):
    with pytest.raises(SystemExit) as caught:
        run("--table", table, "--manifest", tmp_path / "m.jsonl", *arguments)
    error = capsys.readouterr().err
    assert caught.value.code == code and error.count("\n") == 1 and message in error


@pytest.mark.parametrize("command", ["prepare", "tokens"])
def test_help_is_instant(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-m", f"moe_asr.bin.{command}", "--help"], check=True, stdout=subprocess.DEVNULL)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 0.5
