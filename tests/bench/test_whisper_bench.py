"""That the benchmarks of Whisper run, and that what they compare gives the same texts."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "bench"))

import common  # noqa: E402
import decode  # noqa: E402
import whisper_step  # noqa: E402


def lines(make_rows, capsys, *rows):
    common.main(make_rows, "", ["--quick", "--rows", *rows])
    return capsys.readouterr().out.splitlines()[2:]


def test_steps_and_features(capsys):
    found = lines(whisper_step.make_rows, capsys, "padded", "features", "loop")
    assert len(found) == 4 + 3 + 2 and not any("not measured" in line for line in found)
    assert next(line for line in found if "largest difference" in line).endswith("ok")


def test_steps_against_peft(capsys):
    pytest.importorskip("peft")
    (line,) = lines(whisper_step.make_rows, capsys, "PEFT")
    assert "not measured" not in line


def test_texts_are_those_of_generate(capsys):
    found = lines(decode.make_rows, capsys, "generate")
    assert len(found) == 4 and all(line.endswith("ok") for line in found if "texts equal" in line)
