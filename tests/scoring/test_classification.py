import numpy as np
import pytest

from moe_asr.scoring.classification import Classified, classification

UTTERANCES = [
    Classified(f"u{i}", label, guess, speaker)
    for i, (label, guess, speaker) in enumerate(
        [("b", "b", "x"), ("a", "b", "y"), ("b", "a", "x"), ("b", "b", "z"), ("a", "a", "y"), ("b", "b", "z")]
    )
]


def test_counts():
    found = classification(UTTERANCES, ["a", "b", "c"])
    assert found.confusion == [[1, 1, 0], [1, 3, 0], [0, 0, 0]]
    assert (found.overall.utterances, found.overall.right, found.unit) == (6, 4, "speaker")
    assert {name: one.rate for name, one in found.each.items()} == {"a": 0.5, "b": 0.75, "c": None}
    assert found.mean == pytest.approx((0.5 + 0.75) / 2) and found.majority == pytest.approx(4 / 6)
    lines = found.table().splitlines()
    assert len(lines) == 2 + 3 + 1 and [cell.strip() for cell in lines[3].split("|")][1:4] == ["b", "4", "75.00"]
    assert [cell.strip() for cell in lines[-1].split("|")][5:8] == ["2", "4", "0"]  # taken for each class


def test_intervals_resample_speakers_where_all_are_known():
    found = classification(UTTERANCES, ["a", "b"], replications=4000)
    assert found.each["a"].interval is None  # one speaker
    right, all_ = {"x": 1, "y": 1, "z": 2}, {"x": 2, "y": 2, "z": 2}
    generator = np.random.default_rng(1)
    drawn = generator.choice(["x", "y", "z"], size=(4000, 3))
    rates = [sum(right[s] for s in row) / sum(all_[s] for s in row) for row in drawn]
    assert found.overall.interval == pytest.approx(np.percentile(rates, [2.5, 97.5]).tolist(), abs=1e-9)
    nameless = [Classified(one.id, one.label, one.guess) for one in UTTERANCES]
    assert classification(nameless, ["a", "b"]).unit == "utterance"
