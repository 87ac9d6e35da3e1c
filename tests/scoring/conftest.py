import json
import random
from pathlib import Path

import pytest

WORDS = ["red", "green", "blue", "one", "two", "three", "four", "*"]
SYSTEM = {
    "model": "exp/base/final",
    "adapter": None,
    "trainable_parameters": 0,
    "total_parameters": 1000,
    "mean_active_experts": None,
    "command": "python -m moe_asr.bin.decode --model exp/base/final",
    "git": "0123456789",
    "versions": {"python": "3.11.1", "torch": "2.0"},
    "seconds": 2.5,
    "date": "2026-01-31T12:00:00+00:00",
}


def make_lines(error_rate: float, seed: int, size: int = 60) -> list[dict]:
    """Lines of a hyps.jsonl: the same references for every `seed`, words of the hypothesis changed at random."""
    texts, noise = random.Random(0), random.Random(seed)
    lines = []
    for k in range(size):
        ref = [texts.choice(WORDS) for _ in range(texts.randint(2, 8))]
        hyp = [noise.choice(["x", "", "y y"]) if noise.random() < error_rate else word for word in ref]
        accent = ["us", "de", "be"][k % 3]
        line = {"id": f"utt-{k:03}", "ref": " ".join(ref), "hyp": " ".join(" ".join(hyp).split())}
        lines.append(line | {"speaker": f"{accent}{k % 6}", "accent": accent, "language": "en", "duration": 2.0})
    return lines


@pytest.fixture
def lines_of():
    """`lines_of(error_rate, seed)`: what `decode` writes with these."""
    return make_lines


@pytest.fixture
def decode(tmp_path):
    """Makes decode folders: `decode("name", error_rate=0.2, adapter="exp/lora")` gives the path."""

    def make(name: str, error_rate: float = 0.2, seed: int = 1, lines: list[dict] | None = None, **system) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        lines = make_lines(error_rate, seed) if lines is None else lines
        (folder / "hyps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        (folder / "system.json").write_text(json.dumps(SYSTEM | system), "utf-8")
        return folder

    return make
