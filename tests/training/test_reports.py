import json
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from moe_asr.errors import UserError
from moe_asr.training.reports import Reports


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_tensorboard_holds_the_metrics(tmp_path):
    reports = Reports(tmp_path, tensorboard=True)
    for step in (1, 2):
        reports.record(
            {"step": step, "epoch": 0, "batch": step, "loss": step / 2, "parts": {"ctc": 3.0 * step}, "none": None}
        )
    reports.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["epoch", "loss", "parts/ctc"]
    assert [(e.step, e.value) for e in events.Scalars("parts/ctc")] == [(1, 3.0), (2, 6.0)]
    assert lines(tmp_path / "metrics.jsonl")[1]["loss"] == 1.0


def test_records_of_what_comes_again_are_dropped(tmp_path):
    reports = Reports(tmp_path, tensorboard=True)
    for step, (epoch, batch) in enumerate([(0, 4), (1, 0), (1, 2), (1, 3)], start=1):
        reports.record({"step": step, "epoch": epoch, "batch": batch, "loss": float(step)})
        reports.skipped({"step": step, "epoch": epoch, "batch": batch, "ids": ["a"]})
    reports.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "epo')  # the process was killed here
    reports = Reports(tmp_path, True, position=(1, 2), step=3)
    reports.record({"step": 4, "epoch": 1, "batch": 3, "loss": 40.0})
    reports.close()
    assert [r["loss"] for r in lines(tmp_path / "metrics.jsonl")] == [1.0, 2.0, 3.0, 40.0]
    assert [r["step"] for r in lines(tmp_path / "skipped.jsonl")] == [1, 2, 3]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.value for e in events.Scalars("loss")] == [1.0, 2.0, 3.0, 40.0]


def test_lines_go_to_terminal_and_log(tmp_path, capsys):
    reports = Reports(tmp_path, tensorboard=False)
    reports.say("both [not markup]")
    reports.say("log", log_only=True)
    reports.progress(1, 2, "no bar where there is no terminal")
    reports.close()
    assert capsys.readouterr().out == "both [not markup]\n"
    assert (tmp_path / "train.log").read_text() == "both [not markup]\nlog\n"
    assert not (tmp_path / "tensorboard").exists()


def test_other_processes_are_silent(tmp_path, capsys):
    reports = Reports(tmp_path, tensorboard=True, silent=True)
    reports.say("x")
    reports.record({"step": 1, "epoch": 0, "batch": 1})
    reports.skipped({})
    reports.progress(1, 2, "x")
    reports.close()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_missing_tensorboard_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        Reports(tmp_path, tensorboard=True)
