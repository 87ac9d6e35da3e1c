"""That the benchmark of speech LLMs runs, and that what it compares gives the same texts."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "bench"))

import common  # noqa: E402
import llm_decode  # noqa: E402


def test_texts_are_those_of_generate(capsys):
    common.main(llm_decode.make_rows, "", ["--quick"])
    found = capsys.readouterr().out.splitlines()[2:]
    assert len(found) == 4 and all(line.endswith("ok") for line in found if "texts equal" in line)
