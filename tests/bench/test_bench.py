"""That the benchmarks run; how fast anything is, is their business, not the tests'."""

import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "tools" / "bench"
sys.path.insert(0, str(BENCH))

import common  # noqa: E402


def test_expert_layer_prints_a_line_for_each_row():
    run = subprocess.run(
        [sys.executable, str(BENCH / "expert_layer.py"), "--quick", "--rows", "floor", "kept", "merged", "loop"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(BENCH.parents[1]), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )
    assert run.returncode == 0, run.stderr
    header, _, *lines = run.stdout.splitlines()
    assert "torch" in header and "1 thread" in header
    assert len(lines) == 9 + 2 + 2 + 2
    assert all(line.endswith(("ok", "short")) for line in lines if "=" in line.rpartition("d = ")[2])


@pytest.mark.parametrize("rows", ["PEFT LoRA", "factor", "X-LoRA"])
def test_expert_layer_against_peft(rows, capsys):
    pytest.importorskip("peft")
    import expert_layer

    common.main(expert_layer.make_rows, "", ["--quick", "--rows", rows])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert lines and not any("not measured" in line for line in lines)


def test_nf4_equals_bitsandbytes_and_has_its_size(capsys):
    pytest.importorskip("bitsandbytes")
    import nf4

    common.main(nf4.make_rows, "", ["--quick", "--check", "--rows", "bitsandbytes", "bits per weight"])
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2 + 4


def test_nf4_is_timed(capsys):
    import nf4

    common.main(nf4.make_rows, "", ["--quick", "--rows", "NF4"])
    assert len(capsys.readouterr().out.splitlines()) == 2 + 5


def row(value, bar, better="lower"):
    return common.Row("one", lambda rounds: [value] * rounds, bar, better=better)


@pytest.mark.parametrize(
    "made, end",
    [(row(1.0, 1.1), "ok"), (row(3.0, 2.0, "higher"), "ok"), (row(9.0, None), "x"), (row(1.1, 1.1), "ok")],
)
def test_check_passes_where_rows_reach_their_bars(made, end, capsys):
    common.main(lambda quick: [made], "", ["--check", "--rounds", "3"])
    assert capsys.readouterr().out.rstrip().endswith(end)


@pytest.mark.parametrize("made", [row(1.2, 1.1), row(1.0, 2.0, "higher")])
def test_check_fails_where_a_row_is_short(made, capsys):
    common.main(lambda quick: [made], "", ["--rounds", "3"])
    with pytest.raises(SystemExit) as stop:
        common.main(lambda quick: [made, row(1.0, None)], "", ["--check", "--rounds", "3"])
    assert stop.value.code == 1
    assert capsys.readouterr().out.count("short\n") == 2


def test_a_missing_library_is_named_and_fails_the_check(capsys):
    def measure(rounds):
        import no_such_library  # noqa: F401

    with pytest.raises(SystemExit):
        common.main(lambda quick: [common.Row("one", measure)], "", ["--check"])
    assert "not measured: no_such_library is not installed" in capsys.readouterr().out


def test_unknown_row_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        common.main(lambda quick: [row(1.0, None)], "", ["--rows", "two"])
    assert stop.value.code == 2


def test_paired_counts_cpu_time_of_numerator_over_denominator_in_each_round(monkeypatch):
    cost = {"a": 6.0, "b": 2.0}
    clock = [0.0]

    def spend(name):
        clock[0] += cost[name]

    monkeypatch.setattr(common.time, "process_time", lambda: clock[0])
    ratios = common.paired(lambda: (lambda: spend("a"), lambda: spend("b")), factor=1.5)(5)
    assert len(ratios) == 5 and statistics.median(ratios) == pytest.approx(2.0)


def test_resume_prints_a_line_for_each_place():
    command = [sys.executable, str(BENCH / "resume.py"), "--cuts", "300"]
    run = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(BENCH.parents[1])})
    assert run.returncode == 0, run.stderr
    header, *lines = run.stdout.splitlines()
    assert header.startswith("300 cuts, ") and len(lines) == 5
    assert all(re.match(r"going on after +\d+ batches of epoch 4: [\d.]+ s, first batch ", line) for line in lines)
