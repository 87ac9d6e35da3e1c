"""The page of promises names tests that there are."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_each_test_that_a_promise_names_is_there():
    text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    tests = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    names = re.findall(r"::(test_\w+)", text)
    source = "\n".join(tests.values())
    assert len(names) > 20 and not [name for name in names if f"def {name}(" not in source]
    assert {name for name in re.findall(r"(test_\w+\.py)", text)} <= tests.keys()
    paths = re.findall(r"`((?:tests|tools|utils|moe_asr|docs)/[\w./-]+)", text)
    assert not [path for path in paths if not (ROOT / path).exists()]
